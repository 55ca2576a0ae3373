//! What uses the protected disk: some clients that write, zero, trim and flush in a few zones.
//!
//! Each change is told to the model before it is given to the volume, and again when it is
//! answered. The guest must not wait for anything but the disk, nor see an error that the disk
//! has not made; and after a flush has lost what was written it must see one before the next flush
//! succeeds.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tidemark_agent::volume::Volume;
use tidemark_block::{ByteRange, Device, DeviceError, Durability, Payload, ZeroOptions};

use crate::disk::{Disk, SimStore};
use crate::executor::Group;
use crate::figures::Step;
use crate::model::{What, ZONE_BYTES};
use crate::world::World;

/// Longest time that one change may take: the disk takes 30 ms at most for a part of it.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// What all clients share; outlives the agent.
pub(crate) struct Guest {
    clients: u64,
    /// Operations that are not yet begun.
    left: Cell<u64>,
    in_flight: Cell<u64>,
    is_stopped: Cell<bool>,
    /// Longest pause between two operations, in microseconds.
    think_max: u64,
    /// Long pauses that are left.
    lulls: Cell<u64>,
    /// Until when nobody begins anything.
    lull_until: Cell<Duration>,
    /// Failures of the disk when a flush began that was answered.
    flushed_at: Cell<u64>,
    /// Flushes that lost something, when the guest was last told of a failure.
    told_at: Cell<u64>,
}

impl Guest {
    pub(crate) fn new(clients: u64, operations: u64, think_max: u64, lulls: u64) -> Self {
        Self {
            clients,
            left: Cell::new(operations),
            in_flight: Cell::new(0),
            is_stopped: Cell::new(false),
            think_max,
            lulls: Cell::new(lulls),
            lull_until: Cell::default(),
            flushed_at: Cell::default(),
            told_at: Cell::default(),
        }
    }

    pub(crate) fn left(&self) -> u64 {
        self.left.get()
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.get()
    }

    /// Now and then the guest does nothing for so long that what is idle can be told.
    async fn lull(&self, world: &World) {
        if self.lulls.get() > 0 && world.random.chance(3) {
            self.lulls.set(self.lulls.get() - 1);
            let seconds = Duration::from_secs(world.random.between(20, 140));
            self.lull_until.set(world.time.now() + seconds);
        }
        world.time.sleep_until(self.lull_until.get()).await;
    }

    /// How long the guest still does nothing at `now`, when it pauses.
    pub(crate) fn lull_left(&self, now: Duration) -> Option<Duration> {
        self.lull_until.get().checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Lets nobody begin anything on this process of the agent.
    pub(crate) fn stop(&self) {
        self.is_stopped.set(true);
    }

    /// The agent is gone, and every operation with it.
    pub(crate) fn cut_off(&self) {
        self.in_flight.set(0);
    }

    /// Looks at an answer to what began when the disk had failed `failures` times and lost what was
    /// written `losses` times. `Err` says what must not be.
    fn check(
        &self,
        disk: &Disk,
        (failures, losses): (u64, u64),
        (what, result): (&str, &Result<(), DeviceError>),
    ) -> Result<(), String> {
        let is_flush = what == "flush";
        // What nobody was told of when it happened is told with the next flush.
        let has_failed = disk.failures() > failures.min(self.flushed_at.get());
        if is_flush {
            self.flushed_at.set(self.flushed_at.get().max(failures));
        }
        match result {
            Err(error) => {
                self.told_at.set(disk.losses());
                let why = format!("the guest's {what} failed, the disk has not: {error}");
                if has_failed { Ok(()) } else { Err(why) }
            }
            Ok(()) if is_flush && losses > self.told_at.get() => {
                Err("a flush succeeded, and what was written before it is lost".into())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// Starts the clients on a volume that was opened.
pub(crate) fn start(world: &Rc<World>, volume: &Arc<Volume<SimStore>>) {
    world.guest.is_stopped.set(false);
    // A new process knows of nothing before.
    world.guest.told_at.set(world.disk.losses());
    for _ in 0..world.guest.clients {
        let (world, volume) = (Rc::clone(world), Arc::clone(volume));
        let executor = Rc::clone(&world.executor);
        executor.spawn(Group::Agent, Step::Write, async move { run(&world, &volume).await });
    }
}

async fn run(world: &World, volume: &Volume<SimStore>) {
    let (guest, disk) = (&world.guest, &world.disk);
    loop {
        world.executor.at(Step::Write);
        if world.random.chance(60) {
            let micros = world.random.below(guest.think_max + 1);
            world.time.sleep(Duration::from_micros(micros)).await;
        }
        guest.lull(world).await;
        if guest.left.get() == 0 || guest.is_stopped.get() {
            return;
        }
        guest.left.set(guest.left.get() - 1);
        guest.in_flight.set(guest.in_flight.get() + 1);
        world.figures.borrow_mut().operations += 1;
        let begun = world.time.now();
        let (before, resizes) = ((disk.failures(), disk.losses()), disk.resizes());
        let (what, result) = operate(world, volume).await;
        guest.in_flight.set(guest.in_flight.get() - 1);
        if world.time.now() > begun + WAIT_MAX {
            let waited = world.time.now().saturating_sub(begun);
            world.breaks(format!("the guest's {what} took {} s", waited.as_secs()));
        }
        if let Err(why) = guest.check(disk, before, (what, &result))
            && disk.resizes() == resizes
        {
            world.breaks(why);
        }
    }
}

async fn operate(
    world: &World,
    volume: &Volume<SimStore>,
) -> (&'static str, Result<(), DeviceError>) {
    let random = &world.random;
    match random.below(100) {
        0..68 => ("write", write(world, volume).await),
        68..76 => ("trim", zero(world, volume, true).await),
        76..85 => ("zeroing", zero(world, volume, false).await),
        85..88 => ("read", read(world, volume).await),
        _ => {
            world.executor.at(Step::Flush);
            let begun = world.model.now();
            let flushed = volume.flush().await;
            if flushed.is_ok() {
                world.model.flushed(begun);
            }
            ("flush", flushed)
        }
    }
}

/// A range in or across a zone; `large` ones may be as large as the disk.
fn range(world: &World, volume: &Volume<SimStore>, allow_large: bool) -> (usize, usize) {
    let size = usize::try_from(volume.size_bytes()).expect("a small disk");
    let (random, size) = (&world.random, size.min(world.disk.size_bytes()));
    if allow_large && random.chance(6) {
        return if random.chance(50) { (0, size) } else { (random.place(size / 2), size / 3) };
    }
    let zones = world.model.zones();
    let zone = zones[random.place(zones.len())];
    let sectors = ZONE_BYTES / 512;
    let (start, len) = match random.below(10) {
        0 => (random.place(ZONE_BYTES - 1), 1 + random.place(3000)),
        1..4 => (random.place(sectors / 8) * 4096, 4096 * (1 + random.place(4))),
        4 => (0, ZONE_BYTES + 4096 * random.place(40)),
        _ => (random.place(sectors) * 512, 512 * (1 + random.place(8))),
    };
    (zone + start, len.min(size - zone - start))
}

fn durability(world: &World) -> Durability {
    if world.random.chance(10) { Durability::Stable } else { Durability::Cached }
}

async fn write(world: &World, volume: &Volume<SimStore>) -> Result<(), DeviceError> {
    let (start, len) = range(world, volume, false);
    let mut bytes = vec![0; len];
    world.random.fill(&mut bytes);
    if world.random.chance(20) {
        // What shrinks is compressed.
        let half = len / 2;
        bytes[half..].fill(world.random.pick(&[1, 2, 3]));
    }
    let durability = durability(world);
    let id = world.model.begin(start, What::Data(bytes.clone()));
    world.trace.say(|| format!("guest: write {id} of {len} at {start}"));
    let written = write_bytes(volume, start, &bytes, durability).await;
    world.trace.say(|| format!("guest: write {id} {written:?}"));
    match &written {
        Ok(()) => world.model.done(id),
        Err(_) => world.model.gone(id),
    }
    written
}

async fn write_bytes(
    volume: &Volume<SimStore>,
    start: usize,
    bytes: &[u8],
    durability: Durability,
) -> Result<(), DeviceError> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = byte_range(start + done, bytes.len() - done);
        let mut payload = volume.reserve(rest).await?;
        let memory = payload.bytes_mut();
        let len = memory.len();
        memory.copy_from_slice(&bytes[done..done + len]);
        volume.write(payload, durability).await?;
        done += len;
    }
    Ok(())
}

async fn zero(world: &World, volume: &Volume<SimStore>, is_trim: bool) -> Result<(), DeviceError> {
    world.executor.at(Step::Zero);
    let (start, len) = range(world, volume, true);
    let (range, durability) = (byte_range(start, len), durability(world));
    let id = world.model.begin(start, What::Zero(len));
    world.trace.say(|| format!("guest: zero {id} of {len} at {start}, trim: {is_trim}"));
    let done = if is_trim {
        volume.trim(range, durability).await
    } else {
        let no_hole = world.random.chance(30);
        volume.write_zeroes(range, ZeroOptions { no_hole, fast: false, durability }).await
    };
    world.trace.say(|| format!("guest: zero {id} {done:?}"));
    match &done {
        Ok(()) => world.model.done(id),
        Err(_) => world.model.gone(id),
    }
    done
}

async fn read(world: &World, volume: &Volume<SimStore>) -> Result<(), DeviceError> {
    let (start, len) = range(world, volume, false);
    let chunk = tidemark_block::Chunk::zeroed(len);
    volume.read(start as u64, chunk).await.map(|_| ())
}

fn byte_range(start: usize, len: usize) -> ByteRange {
    ByteRange::new(start as u64, len as u64).expect("a range of the disk")
}
