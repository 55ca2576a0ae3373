//! The network between agent and collector: bytes arrive late, in order, or not at all.
//!
//! Fault model. Each direction of a connection delivers what was written in order, each piece
//! after a time of its own. A connection that is cut delivers any prefix of what is under way,
//! then its end; a silent one (a machine without power) delivers what is under way and then
//! nothing, ever, so that the other side holds it for alive. The network can be down for a time:
//! no new connection comes about, and what is under way waits. A bit under way can change.
//! Connections that were dialed one after the other may arrive in any order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidemark_block::engine::Event;
use tidemark_wire::frame::{FRAME_HEADER_BYTES, FrameHeader};

use crate::executor::first_of;
use crate::random::Random;
use crate::time::Time;

/// One direction of a connection.
#[derive(Default)]
pub(crate) struct Pipe {
    state: RefCell<PipeState>,
    changed: Event,
}

#[derive(Default)]
struct PipeState {
    /// Arrived and not read.
    arrived: VecDeque<u8>,
    /// Under way, with the time of arrival.
    flying: VecDeque<(Duration, Vec<u8>)>,
    /// When the last of it arrives.
    last: Duration,
    /// When the end arrives.
    ends: Option<Duration>,
    /// What is written goes nowhere.
    is_dead: bool,
    /// The writer finds out.
    is_reset: bool,
}

impl Pipe {
    /// Takes what has arrived by now; says when something arrives next.
    fn arrive(&self, now: Duration) -> Option<Duration> {
        let mut state = self.state.borrow_mut();
        while state.flying.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, bytes)) = state.flying.pop_front() {
                state.arrived.extend(bytes);
            }
        }
        state.flying.front().map(|(at, _)| *at).or(state.ends.filter(|at| *at > now))
    }

    fn has_ended(&self, now: Duration) -> bool {
        let state = self.state.borrow();
        state.flying.is_empty() && state.ends.is_some_and(|at| at <= now)
    }

    /// True when a whole frame has arrived, or a head that is none.
    fn has_frame(&self) -> bool {
        let state = self.state.borrow();
        let mut head = [0; FRAME_HEADER_BYTES];
        if state.arrived.len() < head.len() {
            return false;
        }
        head.iter_mut().zip(&state.arrived).for_each(|(to, from)| *to = *from);
        FrameHeader::decode(&head).map_or(true, |(header, _)| {
            state.arrived.len() >= head.len() + header.body_bytes.get() as usize
        })
    }

    /// Delivers any prefix of what is under way, then the end.
    fn cut(&self, now: Duration, random: &Random) {
        {
            let mut state = self.state.borrow_mut();
            let kept = random.place(state.flying.len() + 1);
            state.flying.truncate(kept);
            if let Some((_, bytes)) = state.flying.back_mut() {
                bytes.truncate(random.place(bytes.len() + 1));
            }
            let last = state.flying.back().map_or(now, |(at, _)| *at);
            (state.ends, state.is_dead, state.is_reset) = (Some(last), true, true);
        }
        self.changed.notify_all();
    }

    /// The writer has closed it.
    fn close(&self, now: Duration) {
        {
            let mut state = self.state.borrow_mut();
            if state.is_dead {
                return;
            }
            let last = state.last.max(now);
            (state.ends, state.is_dead) = (Some(last), true);
        }
        self.changed.notify_all();
    }

    /// The reader has closed it.
    fn refuse(&self) {
        let mut state = self.state.borrow_mut();
        state.flying.clear();
        (state.is_dead, state.is_reset) = (true, true);
    }

    fn silence(&self) {
        self.state.borrow_mut().is_dead = true;
    }

    fn delay(&self, until: Duration) {
        let mut state = self.state.borrow_mut();
        let PipeState { flying, ends, last, .. } = &mut *state;
        for at in flying.iter_mut().map(|(at, _)| at).chain(ends).chain([last]) {
            *at = (*at).max(until);
        }
    }

    fn flip(&self, random: &Random) -> bool {
        let mut state = self.state.borrow_mut();
        if state.flying.is_empty() {
            return false;
        }
        let piece = random.place(state.flying.len());
        let bytes = &mut state.flying[piece].1;
        // What a cut has left of a piece may be nothing.
        let has_bits = !bytes.is_empty();
        if has_bits {
            flip(bytes, random);
        }
        has_bits
    }
}

fn flip(bytes: &mut [u8], random: &Random) {
    let at = random.place(bytes.len());
    bytes[at] ^= 1 << random.below(8);
}

/// One side of a connection.
pub(crate) struct Link {
    incoming: Rc<Pipe>,
    outgoing: Rc<Pipe>,
    network: Rc<Network>,
    /// Nothing that is written goes out any more: the writer is dead and does not know it.
    pub(crate) is_muted: Rc<dyn Fn() -> bool>,
}

impl Link {
    /// Waits until a frame, the end, or something that is no frame can be read without waiting.
    pub(crate) async fn readable(&self) {
        let time = &self.network.time;
        loop {
            let changed = self.incoming.changed.wait();
            let next = self.incoming.arrive(time.now());
            if self.is_readable() {
                return;
            }
            match next {
                Some(at) => first_of(changed, time.sleep_until(at)).await,
                None => changed.await,
            }
        }
    }

    pub(crate) fn is_readable(&self) -> bool {
        let now = self.network.time.now();
        self.incoming.arrive(now);
        self.incoming.has_frame() || self.incoming.has_ended(now)
    }
}

impl Read for &Link {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut state = self.incoming.state.borrow_mut();
        state.arrived.read(out)
    }
}

impl Write for &Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[io::IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let mut bytes = Vec::with_capacity(slices.iter().map(|slice| slice.len()).sum());
        slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        let len = bytes.len();
        let mut state = self.outgoing.state.borrow_mut();
        if state.is_reset {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if state.is_dead || (self.is_muted)() {
            return Ok(len);
        }
        if len > 0 && self.network.flips_next.take() {
            flip(&mut bytes, &self.network.random);
        }
        let at = self.network.arrival().max(state.last);
        state.last = at;
        state.flying.push_back((at, bytes));
        drop(state);
        self.outgoing.changed.notify_all();
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if (self.is_muted)() {
            self.outgoing.cut(self.network.time.now(), &self.network.random);
        } else {
            self.outgoing.close(self.network.time.now());
        }
        self.incoming.refuse();
    }
}

/// See the module's documentation.
pub(crate) struct Network {
    time: Arc<Time>,
    random: Arc<Random>,
    /// Until when nothing is delivered.
    down_until: Cell<Duration>,
    is_listening: Cell<bool>,
    /// Connections that the collector has not taken, with the time of their arrival.
    arriving: RefCell<Vec<(Duration, Link)>>,
    dialed: Event,
    pipes: RefCell<Vec<(Rc<Pipe>, Rc<Pipe>)>>,
    /// A bit of what is sent next changes.
    flips_next: Cell<bool>,
}

impl Network {
    pub(crate) fn new(time: Arc<Time>, random: Arc<Random>) -> Rc<Self> {
        Rc::new(Self {
            time,
            random,
            down_until: Cell::default(),
            is_listening: Cell::new(false),
            arriving: RefCell::default(),
            dialed: Event::new(),
            pipes: RefCell::default(),
            flips_next: Cell::default(),
        })
    }

    fn arrival(&self) -> Duration {
        let micros = match self.random.below(50) {
            0 => self.random.between(1_000, 40_000),
            _ => self.random.between(30, 400),
        };
        (self.time.now() + Duration::from_micros(micros)).max(self.down_until.get())
    }

    /// The collector takes connections, or none.
    pub(crate) fn listen(&self, on: bool) {
        self.is_listening.set(on);
        if !on {
            let gone = std::mem::take(&mut *self.arriving.borrow_mut());
            drop(gone);
        }
    }

    /// Connects the agent.
    pub(crate) async fn dial(self: &Rc<Self>) -> io::Result<Link> {
        let arrives = self.arrival();
        if self.down_until.get() > self.time.now() {
            self.time.sleep(Duration::from_millis(self.random.between(1, 5_000))).await;
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.time.sleep(Duration::from_micros(self.random.between(30, 400))).await;
        if !self.is_listening.get() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (up, down) = (Rc::<Pipe>::default(), Rc::<Pipe>::default());
        let side = |incoming: &Rc<Pipe>, outgoing: &Rc<Pipe>| Link {
            incoming: Rc::clone(incoming),
            outgoing: Rc::clone(outgoing),
            network: Rc::clone(self),
            is_muted: Rc::new(|| false),
        };
        self.arriving.borrow_mut().push((arrives, side(&up, &down)));
        self.dialed.notify_all();
        let agents = side(&down, &up);
        let mut pipes = self.pipes.borrow_mut();
        pipes.retain(|(up, _)| Rc::strong_count(up) > 1);
        pipes.push((up, down));
        Ok(agents)
    }

    /// The collector takes the next connection that has arrived.
    pub(crate) async fn accept(&self) -> Link {
        loop {
            let dialed = self.dialed.wait();
            let now = self.time.now();
            let next = {
                let mut arriving = self.arriving.borrow_mut();
                let first = (0..arriving.len()).min_by_key(|index| arriving[*index].0);
                match first {
                    Some(index) if arriving[index].0 <= now => {
                        return arriving.swap_remove(index).1;
                    }
                    first => first.map(|index| arriving[index].0),
                }
            };
            match next {
                Some(at) => first_of(dialed, self.time.sleep_until(at)).await,
                None => dialed.await,
            }
        }
    }

    fn each(&self, mut act: impl FnMut(&Pipe)) {
        let pipes = self.pipes.borrow().clone();
        for (up, down) in &pipes {
            act(up);
            act(down);
        }
    }

    /// All connections break.
    pub(crate) fn cut(&self) {
        self.each(|pipe| pipe.cut(self.time.now(), &self.random));
    }

    /// Nothing is delivered for a while.
    pub(crate) fn go_down(&self, duration: Duration) {
        let until = self.time.now() + duration;
        self.down_until.set(until);
        self.each(|pipe| pipe.delay(until));
    }

    /// One machine loses its power: the other is not told.
    pub(crate) fn silence(&self) {
        self.each(Pipe::silence);
    }

    /// Changes a bit of what is under way, or else of what is sent next.
    pub(crate) fn flip(&self) {
        let mut done = false;
        self.each(|pipe| done = done || pipe.flip(&self.random));
        self.flips_next.set(!done);
    }

    /// From here on no bit changes.
    pub(crate) fn heal(&self) {
        self.go_down(Duration::ZERO);
        self.flips_next.set(false);
    }
}
