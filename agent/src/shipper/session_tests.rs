use super::*;
use tidemark_wire::{AgentId, Epoch, Timeline, VolumeId, WallMicros};

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
    }
}

fn copying(first: u64) -> Phase {
    Phase::Copying { first: Seq(first), cause: CopyCause::Gap(GapReason::RingFull) }
}

fn known(copied: bool, phase: Phase) -> Known {
    Known { copied, phase, sent: None }
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
    let known = Known { sent: Some(Seq(60)), ..known(false, first) };
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
    let known = Known { copied: true, phase: WHOLE, sent: Some(Seq(14)) };
    assert_eq!(judge(&hello(OURS, 10, 20), &welcome(OURS, 14, 0), &known), Verdict::Resume);
    assert_eq!(
        judge(&hello(OURS, 10, 20), &welcome(OURS, 15, 0), &known),
        Verdict::CopyAnew(CopyCause::Gap(GapReason::SourceBehind))
    );
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
