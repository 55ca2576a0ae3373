use super::*;
use proptest::prelude::*;
use tidemark_wire::{AgentId, AgentRun, Epoch, Timeline, VolumeId, WallMicros};

const OURS: JournalId = JournalId::from_bytes([1; 16]);
const OTHER: JournalId = JournalId::from_bytes([2; 16]);
const WHOLE: Phase = Phase::Whole { copy_end: None };

fn hello(journal: JournalId, released: u64, newest: u64) -> Hello {
    Hello {
        agent: AgentId::NIL,
        volume: VolumeId::NIL,
        journal,
        timeline: Timeline(1),
        epoch: Epoch(1),
        released: Seq(released),
        newest: Seq(newest),
        size_bytes: 4096,
        block_bytes: 512,
        name: String::new(),
        run: AgentRun::default(),
        unsure_after: None,
    }
}

fn welcome(journal: JournalId, durable: u64, span_open: u64) -> Welcome {
    Welcome {
        journal,
        timeline: Timeline(1),
        epoch: Epoch(2),
        durable: Seq(durable),
        span_open: Seq(span_open),
        window_bytes: 1 << 20,
        seeded: false,
        last_time: WallMicros(0),
        size_bytes: 1 << 20,
        lineage: Lineage::Same,
        compare: false,
        unsure: Vec::new(),
    }
}

fn copying(first: u64) -> Phase {
    Phase::Copying { first: Seq(first), cause: CopyCause::Gap(GapReason::RingFull) }
}

fn known(copied: bool, phase: Phase) -> Known {
    Known { copied, phase, sent: Seq(1 << 40), is_first: false }
}

#[test]
fn a_stream_that_fits_goes_on() {
    for durable in [10, 15, 20] {
        let verdict = judge(&hello(OURS, 10, 20), &welcome(OURS, durable, 0), &known(true, WHOLE));
        assert_eq!(verdict, Verdict::Resume);
    }
}

#[test]
fn a_collector_without_a_copy_gets_one() {
    let initial = Verdict::CopyAnew(CopyCause::Initial);
    assert_eq!(
        judge(&hello(JournalId::NIL, 0, 3), &welcome(OURS, 0, 0), &known(false, WHOLE)),
        initial
    );
    assert_eq!(judge(&hello(OURS, 0, 3), &welcome(OURS, 0, 0), &known(false, WHOLE)), initial);
    assert_eq!(judge(&hello(OURS, 5, 9), &welcome(OTHER, 0, 0), &known(true, WHOLE)), initial);
}

#[test]
fn an_image_below_the_journal_is_compared_never_taken_as_zeroes() {
    let seeded = |journal| Welcome { seeded: true, ..welcome(journal, 0, 0) };
    for (hello, known) in [
        (hello(JournalId::NIL, 0, 3), known(false, WHOLE)),
        (hello(OURS, 0, 3), known(false, WHOLE)),
        (hello(OURS, 0, 3), known(false, copying(2))),
        (hello(OURS, 0, 3), known(false, Phase::Wanted(CopyCause::Initial))),
        (hello(OURS, 0, 3), known(false, Phase::Wanted(CopyCause::Seeded))),
        (hello(OURS, 5, 9), known(true, WHOLE)),
        (hello(OTHER, 5, 9), known(true, WHOLE)),
    ] {
        let verdict = judge(&hello, &seeded(OURS), &known);
        assert_eq!(verdict, Verdict::CopyAnew(CopyCause::Seeded), "{hello:?} {known:?}");
    }
}

#[test]
fn a_first_copy_that_was_interrupted_goes_on_as_a_comparison() {
    // A successor of a killed agent, or one that lost its ring in a power cut.
    for phase in [WHOLE, Phase::Whole { copy_end: Some(Seq(11)) }] {
        let verdict = judge(&hello(OURS, 0, 900), &welcome(OURS, 50, 4), &known(false, phase));
        let again = CopyCause::Gap(GapReason::CopyInterrupted);
        assert_eq!(verdict, Verdict::ResumeAndCopy(again), "{phase:?}");
    }
    let lost = Phase::Wanted(CopyCause::Gap(GapReason::RingLost));
    let verdict = judge(&hello(OURS, 0, 900), &welcome(OURS, 50, 4), &known(false, lost));
    assert_eq!(verdict, Verdict::Resume, "the copy that is wanted compares");
    // The collector was killed: the copy that runs goes on, since its begin has arrived.
    let first = Phase::Copying { first: Seq(4), cause: CopyCause::Initial };
    let known = Known { sent: Seq(60), ..known(false, first) };
    let verdict = judge(&hello(OURS, 40, 900), &welcome(OURS, 50, 4), &known);
    assert_eq!(verdict, Verdict::Resume);
}

#[test]
fn a_lost_ring_is_a_gap_and_no_first_copy_while_the_collector_has_records() {
    let lost = Phase::Wanted(CopyCause::Gap(GapReason::RingLost));
    let verdict = judge(&hello(OURS, 0, 900), &welcome(OURS, 50, 0), &known(true, lost));
    assert_eq!(verdict, Verdict::Resume, "the gap is the first record in the ring");
    let verdict = judge(&hello(OURS, 0, 900), &welcome(OURS, 0, 0), &known(false, lost));
    assert_eq!(verdict, Verdict::CopyAnew(CopyCause::Initial), "nothing has ever arrived");
}

#[test]
fn a_pause_ends_with_a_comparison() {
    let paused = |copied| known(copied, Phase::Paused);
    let fits = judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 0), &paused(true));
    assert_eq!(fits, Verdict::Resume, "what was captured before the pause");
    let in_span = judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 12), &paused(false));
    assert_eq!(in_span, Verdict::Resume);
    let anew = judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 0), &paused(false));
    assert_eq!(anew, Verdict::CopyAnew(CopyCause::Gap(GapReason::Paused)));
    let behind = judge(&hello(OURS, 10, 20), &welcome(OURS, 9, 0), &paused(true));
    assert_eq!(behind, Verdict::CopyAnew(CopyCause::Gap(GapReason::CollectorBehind)));
}

#[test]
fn a_comparison_that_a_person_asked_for_leaves_the_stream_whole() {
    let asked = Phase::Wanted(CopyCause::Asked);
    let verdict = judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 0), &known(true, asked));
    assert_eq!(verdict, Verdict::Resume);
    let begun = Phase::Copying { first: Seq(14), cause: CopyCause::Asked };
    let verdict = judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 14), &known(false, begun));
    assert_eq!(verdict, Verdict::Resume, "its span goes on");
    let verdict = judge(&hello(OURS, 10, 20), &welcome(OURS, 13, 0), &known(true, begun));
    assert_eq!(verdict, Verdict::Resume, "its begin is still in the ring");
}

#[test]
fn another_timeline_is_never_continued() {
    let other = Welcome { timeline: Timeline(2), ..welcome(OURS, 15, 0) };
    let verdict = judge(&hello(OURS, 10, 20), &other, &known(true, WHOLE));
    assert_eq!(verdict, Verdict::CopyAnew(CopyCause::Gap(GapReason::CollectorBehind)));
    let never = judge(&hello(JournalId::NIL, 0, 20), &welcome(OURS, 15, 0), &known(false, WHOLE));
    assert_eq!(never, Verdict::CopyAnew(CopyCause::Gap(GapReason::SourceBehind)));
}

#[test]
fn whatever_does_not_fit_is_a_gap() {
    let gap = |reason| Verdict::CopyAnew(CopyCause::Gap(reason));
    let behind = judge(&hello(OURS, 10, 20), &welcome(OURS, 9, 0), &known(true, WHOLE));
    assert_eq!(behind, gap(GapReason::CollectorBehind));
    let ahead = judge(&hello(OURS, 10, 20), &welcome(OURS, 21, 0), &known(true, WHOLE));
    assert_eq!(ahead, gap(GapReason::SourceBehind));
    let other = judge(&hello(OURS, 10, 20), &welcome(OTHER, 15, 0), &known(true, WHOLE));
    assert_eq!(other, gap(GapReason::CollectorBehind));
}

#[test]
fn an_open_span_is_closed_by_whoever_finds_it() {
    let verdict = judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 12), &known(true, WHOLE));
    assert!(matches!(verdict, Verdict::ResumeAndCopy(_)));
    let phase = copying(12);
    let verdict = judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 12), &known(false, phase));
    assert_eq!(verdict, Verdict::Resume);
}

#[test]
fn outside_of_a_span_only_a_whole_copy_is_continued() {
    let gap = CopyCause::Gap(GapReason::SourceBehind);
    for (phase, wanted) in [
        (Phase::Wanted(gap), Verdict::CopyAnew(gap)),
        (copying(16), Verdict::CopyAnew(CopyCause::Gap(GapReason::CopyInterrupted))),
        (
            Phase::Whole { copy_end: Some(Seq(18)) },
            Verdict::CopyAnew(CopyCause::Gap(GapReason::CopyInterrupted)),
        ),
        (WHOLE, Verdict::CopyAnew(CopyCause::Gap(GapReason::CopyInterrupted))),
        (Phase::Whole { copy_end: Some(Seq(15)) }, Verdict::Resume),
    ] {
        let verdict = judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 0), &known(false, phase));
        assert_eq!(verdict, wanted, "{phase:?}");
    }
    let first = judge(&hello(OURS, 0, 20), &welcome(OURS, 0, 0), &known(false, copying(4)));
    assert_eq!(first, Verdict::CopyAnew(CopyCause::Initial));
    let lost = known(true, Phase::Wanted(CopyCause::Gap(GapReason::RingFull)));
    assert_eq!(judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 0), &lost), Verdict::Resume);
}

#[test]
fn records_that_another_agent_sent_are_noticed() {
    let known = Known { sent: Seq(14), ..known(true, WHOLE) };
    assert_eq!(judge(&hello(OURS, 10, 20), &welcome(OURS, 14, 0), &known), Verdict::Resume);
    assert_eq!(
        judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 0), &known),
        Verdict::CopyAnew(CopyCause::Gap(GapReason::SourceBehind))
    );
}

#[test]
fn who_remembers_less_decides_before_any_number_does() {
    let gap = |reason| Verdict::CopyAnew(CopyCause::Gap(reason));
    for (lineage, reason) in [
        (Lineage::SourceOlder, GapReason::SourceBehind),
        (Lineage::CollectorOlder, GapReason::CollectorBehind),
    ] {
        for (durable, span_open) in [(10, 0), (15, 0), (20, 0), (15, 12)] {
            for phase in [WHOLE, copying(12), Phase::Wanted(CopyCause::Asked), Phase::Paused] {
                let welcome = Welcome { lineage, ..welcome(OURS, durable, span_open) };
                let verdict = judge(&hello(OURS, 10, 20), &welcome, &known(true, phase));
                assert_eq!(verdict, gap(reason), "{welcome:?} {phase:?}");
            }
        }
        let empty = Welcome { lineage, ..welcome(OURS, 0, 0) };
        let verdict = judge(&hello(OURS, 0, 20), &empty, &known(false, WHOLE));
        assert_eq!(verdict, Verdict::CopyAnew(CopyCause::Initial));
        let seeded = Welcome { seeded: true, ..empty };
        let verdict = judge(&hello(OURS, 0, 20), &seeded, &known(true, WHOLE));
        assert_eq!(verdict, Verdict::CopyAnew(CopyCause::Seeded), "never taken as zeroes");
    }
}

#[test]
fn records_under_numbers_of_this_process_from_before_its_first_session_are_another_ones() {
    // The state file was put back to one from before: its numbers were used by then.
    let first = Known { sent: Seq(14), is_first: true, ..known(true, WHOLE) };
    let behind = Verdict::CopyAnew(CopyCause::Gap(GapReason::SourceBehind));
    assert_eq!(judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 0), &first), behind);
    assert_eq!(judge(&hello(OURS, 10, 20), &welcome(OURS, 14, 0), &first), Verdict::Resume);
}

#[test]
fn a_map_that_could_not_be_kept_makes_the_first_session_compare() {
    let asked = Welcome { compare: true, ..welcome(OURS, 15, 0) };
    let hello = hello(OURS, 10, 20);
    let whole = Verdict::ResumeAndCopy(CopyCause::Gap(GapReason::MapInDoubt));
    for phase in [WHOLE, Phase::Wanted(CopyCause::Gap(GapReason::RingLost)), copying(12)] {
        let first = Known { is_first: true, ..known(true, phase) };
        assert_eq!(judge(&hello, &asked, &first), whole, "{phase:?}");
        assert_eq!(judge(&hello, &asked, &known(true, phase)), Verdict::Resume, "{phase:?}");
    }
}

fn phases() -> impl Strategy<Value = Phase> {
    let seq = || (0u64..40).prop_map(Seq);
    prop_oneof![
        prop::option::of(seq()).prop_map(|copy_end| Phase::Whole { copy_end }),
        Just(Phase::Wanted(CopyCause::Initial)),
        Just(Phase::Wanted(CopyCause::Gap(GapReason::RingLost))),
        seq().prop_map(|first| Phase::Copying { first, cause: CopyCause::Asked }),
        Just(Phase::Paused),
    ]
}

fn lineages() -> impl Strategy<Value = Lineage> {
    prop_oneof![
        4 => Just(Lineage::Same),
        1 => Just(Lineage::SourceOlder),
        1 => Just(Lineage::CollectorOlder),
    ]
}

proptest! {
    /// What the verdicts promise, for anything that two sides may say.
    #[test]
    fn a_stream_goes_on_only_where_it_continues(
        (released, more, durable, sent) in (0u64..30, 0u64..10, 0u64..40, 0u64..40),
        (span_open, timeline) in (prop_oneof![Just(0u64), 1u64..40], 1u32..3),
        (is_ours, copied, seeded, compare, is_first) in any::<(bool, bool, bool, bool, bool)>(),
        (phase, lineage) in (phases(), lineages()),
    ) {
        let hello = hello(OURS, released, released + more);
        let welcome = Welcome {
            timeline: Timeline(timeline), seeded, compare, lineage,
            ..welcome(if is_ours { OURS } else { OTHER }, durable, span_open)
        };
        let verdict = judge(&hello, &welcome, &Known { copied, phase, sent: Seq(sent), is_first });
        match verdict {
            Verdict::Resume | Verdict::ResumeAndCopy(_) => {
                prop_assert!(is_ours && timeline == 1 && lineage == Lineage::Same);
                prop_assert!((released..=released + more).contains(&durable) && durable <= sent);
                prop_assert!(verdict != Verdict::Resume || !(compare && is_first));
            }
            Verdict::CopyAnew(CopyCause::Initial) => prop_assert!(durable == 0 && !seeded),
            Verdict::CopyAnew(_) => {}
        }
    }
}

#[test]
fn a_token_waits_for_the_records_before_it() {
    let mut pending = PendingTokens::default();
    pending.arrived(SessionToken(7), 5);
    assert_eq!(pending.take_passed(4), None);
    pending.arrived(SessionToken(8), 6);
    pending.arrived(SessionToken(9), 9);
    assert_eq!(pending.take_passed(7), Some(SessionToken(8)));
    assert_eq!(pending.take_passed(8), None);
    assert_eq!(pending.take_passed(9), Some(SessionToken(9)));
}

#[test]
fn a_stream_that_is_always_behind_gives_tokens_back_all_the_same() {
    let mut pending = PendingTokens::default();
    let mut back = 0;
    for second in 0..1000 {
        pending.arrived(SessionToken(second), second * 100);
        back = pending.take_passed(second.saturating_sub(10) * 100).map_or(back, |t| t.0);
    }
    assert_eq!(back, 989);
    for second in 1000..9000 {
        pending.arrived(SessionToken(second), second * 100);
    }
    assert_eq!(pending.take_passed(u64::MAX), Some(SessionToken(8999)), "bounded");
}

#[test]
fn a_window_opens_with_acknowledgements() {
    let mut window = Window::new(10);
    window.sent(Seq(3), 8);
    assert!(window.is_open());
    window.sent(Seq(5), 8);
    assert!(!window.is_open());
    assert!(window.acknowledged(Seq(4), Seq(5)));
    assert!(window.is_open() && !window.is_empty());
    assert!(!window.acknowledged(Seq(6), Seq(5)), "never sent");
    assert!(Window::new(0).is_open(), "one frame may always be on its way");
}
