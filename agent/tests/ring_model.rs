//! The ring against a model of it, step by step on one thread, and what a kill then leaves.

#![allow(clippy::disallowed_methods, reason = "a test waits in real time")]

mod ring_support;

use std::collections::VecDeque;
use std::path::Path;

use proptest::prelude::*;
use ring_support::*;
use tidemark_agent::ring::{Consumer, Extent, InFlight, Next, Ring};
use tidemark_wire::record::check_pieces;
use tidemark_wire::{RecordKind, Seq};

#[derive(Clone, Debug)]
enum Step {
    Reserve { offset: u64, len: usize, seed: u8 },
    Drop(usize),
    Claim(usize),
    ClaimFlush,
    Commit(usize),
    Void(usize),
    Next,
    Release(u64),
    Rewind(u64),
    Raise(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![1..600usize, 4000..20_000usize, 200_000..300_000usize];
    prop_oneof![
        4 => (0..100_000u64, len, any::<u8>())
            .prop_map(|(offset, len, seed)| Step::Reserve { offset, len, seed }),
        1 => any::<usize>().prop_map(Step::Drop),
        4 => any::<usize>().prop_map(Step::Claim),
        1 => Just(Step::ClaimFlush),
        4 => any::<usize>().prop_map(Step::Commit),
        1 => any::<usize>().prop_map(Step::Void),
        4 => Just(Step::Next),
        2 => (0..40u64).prop_map(Step::Release),
        1 => (0..40u64).prop_map(Step::Rewind),
        1 => (0..20u64).prop_map(Step::Raise),
    ]
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum ModelState {
    InFlight,
    Committed,
    Void,
}

struct ModelRecord {
    seq: u64,
    offset: u64,
    payload: Vec<u8>,
    pages: u32,
    state: ModelState,
}

struct Pair {
    ring: Ring,
    consumer: Consumer,
    reserved: Vec<(u64, Extent)>,
    in_flight: Vec<InFlight>,
    records: VecDeque<ModelRecord>,
    /// Index of the next record to be read, in `records`.
    cursor: usize,
    next_seq: u64,
}

fn pages_of(offset: u64, len: usize) -> u32 {
    let lead = usize::try_from(offset % 4096).expect("small");
    u32::try_from((lead + len).div_ceil(4096)).expect("small")
}

impl Pair {
    fn new(path: &Path) -> Self {
        let ring = create(path, &small()).expect("a new ring");
        let consumer = ring.consumer().expect("the first");
        assert!(ring.consumer().is_none(), "one at a time");
        Self {
            ring,
            consumer,
            reserved: Vec::new(),
            in_flight: Vec::new(),
            records: VecDeque::new(),
            cursor: 0,
            next_seq: 1,
        }
    }

    fn pages_used(&self) -> u32 {
        let reserved = self.reserved.iter().map(|(offset, e)| pages_of(*offset, e.len()));
        reserved.sum::<u32>() + self.records.iter().map(|r| r.pages).sum::<u32>()
    }

    fn claim(&mut self, index: usize) {
        if self.reserved.is_empty() {
            return;
        }
        let (offset, extent) = self.reserved.remove(index % self.reserved.len());
        let (len, payload) = (extent.len(), extent.as_slice().to_vec());
        match self.ring.claim(&write_spec(offset, len), Some(extent)) {
            Ok(in_flight) => {
                self.claimed(in_flight, offset, payload, pages_of(offset, len));
            }
            Err(back) => {
                assert_eq!(self.records.len(), 16, "refused only when full");
                self.reserved.push((offset, back.expect("handed back")));
            }
        }
    }

    fn claimed(&mut self, in_flight: InFlight, offset: u64, payload: Vec<u8>, pages: u32) {
        assert_eq!(in_flight.seq(), Seq(self.next_seq));
        if let Some(chunk) = in_flight.chunk() {
            assert_eq!(chunk.as_slice(), payload);
            assert_eq!(chunk.as_ptr() as u64 % 4096, offset % 4096, "on the volume's grid");
        }
        let (seq, state) = (self.next_seq, ModelState::InFlight);
        self.records.push_back(ModelRecord { seq, offset, payload, pages, state });
        self.next_seq += 1;
        self.in_flight.push(in_flight);
    }

    fn end(&mut self, index: usize, state: ModelState) {
        if self.in_flight.is_empty() {
            return;
        }
        let in_flight = self.in_flight.remove(index % self.in_flight.len());
        let seq = in_flight.seq().0;
        self.records.iter_mut().find(|r| r.seq == seq).expect("known").state = state;
        if state == ModelState::Committed { in_flight.commit() } else { in_flight.void() }
    }

    fn read_next(&mut self) {
        while self.records.get(self.cursor).is_some_and(|r| r.state == ModelState::Void) {
            self.cursor += 1;
        }
        match (self.consumer.next(), self.records.get(self.cursor)) {
            (Next::Empty, None) => {}
            (Next::InFlight, Some(record)) => assert_eq!(record.state, ModelState::InFlight),
            (Next::Record(found), Some(record)) => {
                assert_eq!(record.state, ModelState::Committed);
                assert_eq!(found.header.seq(), Seq(record.seq));
                assert_eq!(found.header.offset_bytes.get(), record.offset);
                assert_eq!(found.payload, record.payload);
                check_pieces(&found.header, found.sums, found.payload).expect("sums hold");
                self.cursor += 1;
            }
            (_, record) => panic!("model has {:?}", record.map(|r| (r.seq, r.state))),
        }
    }

    fn release(&mut self, seq: u64) {
        self.consumer.release_through(Seq(seq));
        while let Some(record) = self.records.front() {
            match record.state {
                ModelState::InFlight => break,
                ModelState::Committed if record.seq > seq => break,
                ModelState::Committed | ModelState::Void => {}
            }
            self.records.pop_front();
            self.cursor = self.cursor.saturating_sub(1);
        }
    }

    fn rewind(&mut self, after: u64) {
        self.consumer.rewind_to(Seq(after));
        self.cursor = self
            .records
            .iter()
            .position(|r| match r.state {
                ModelState::InFlight => true,
                ModelState::Committed => r.seq > after,
                ModelState::Void => false,
            })
            .unwrap_or(self.records.len());
    }

    /// What a kill now would leave: the model's records, and nothing else.
    fn check_kill(&self, path: &Path) {
        let (ring, recovery) =
            open(&as_after_kill(path), &small()).expect("a kill damages nothing");
        let of = |state| self.records.iter().filter(move |r| r.state == state);
        assert_eq!(recovery.kept, of(ModelState::Committed).count() as u64);
        let starts: Vec<_> = recovery.in_flight.iter().map(|range| range.start()).collect();
        let writes = of(ModelState::InFlight).filter(|r| !r.payload.is_empty());
        assert_eq!(starts, writes.map(|r| r.offset).collect::<Vec<_>>());
        assert_eq!(ring.used().pages_used, self.records.iter().map(|r| r.pages).sum::<u32>());
        assert_eq!(ring.used().slots_used as usize, self.records.len());
        assert_eq!(ring.next_seq(), Seq(self.next_seq));
        ring.settle(recovery);
        let mut consumer = ring.consumer().expect("nobody has the role");
        for record in of(ModelState::Committed) {
            let Next::Record(found) = consumer.next() else { panic!("{} is lost", record.seq) };
            assert_eq!(found.header.seq(), Seq(record.seq));
            assert_eq!(found.payload, record.payload);
        }
        assert!(matches!(consumer.next(), Next::Empty));
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Reserve { offset, len, seed } => match self.ring.reserve(offset, len) {
                Some(mut extent) => {
                    assert!((1..=len).contains(&extent.len()));
                    fill(&mut extent, seed);
                    self.reserved.push((offset, extent));
                }
                None => assert_eq!(self.pages_used(), 256, "refused only when full"),
            },
            Step::Drop(index) if !self.reserved.is_empty() => {
                self.reserved.remove(index % self.reserved.len());
            }
            Step::Drop(_) => {}
            Step::Claim(index) => self.claim(index),
            Step::ClaimFlush => match self.ring.claim(&plain_spec(RecordKind::Flush, 0, 0), None) {
                Ok(in_flight) => self.claimed(in_flight, 0, Vec::new(), 0),
                Err(_) => assert_eq!(self.records.len(), 16),
            },
            Step::Commit(index) => self.end(index, ModelState::Committed),
            Step::Void(index) => self.end(index, ModelState::Void),
            Step::Next => self.read_next(),
            Step::Release(ahead) => {
                let first = self.records.front().map_or(self.next_seq, |r| r.seq);
                self.release((first + ahead).saturating_sub(20));
            }
            Step::Rewind(ahead) => {
                let first = self.records.front().map_or(self.next_seq, |r| r.seq);
                self.rewind((first + ahead).saturating_sub(10));
            }
            Step::Raise(by) => {
                self.ring.raise_seq(Seq(self.next_seq + by));
                self.next_seq += by + 1;
            }
        }
        assert_eq!(self.ring.used().pages_used, self.pages_used());
        assert_eq!(self.ring.used().slots_used as usize, self.records.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn the_ring_does_what_its_model_does(steps in prop::collection::vec(step(), 1..200)) {
        let dir = tmpfs_dir();
        let path = dir.path().join("ring");
        let mut pair = Pair::new(&path);
        for step in steps {
            pair.apply(step);
        }
        pair.check_kill(&path);
        while !pair.in_flight.is_empty() {
            pair.end(0, ModelState::Committed);
        }
        pair.reserved.clear();
        pair.release(u64::MAX - 1);
        prop_assert_eq!(pair.ring.used().pages_used, 0);
        prop_assert_eq!(pair.ring.used().slots_used, 0);
    }
}
