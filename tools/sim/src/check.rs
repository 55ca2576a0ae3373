//! What has to hold when everything is quiet.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use tidemark_block::ByteRange;
use tidemark_collector::error::ViewError;
use tidemark_collector::ingest::volume::Held;
use tidemark_collector::storage::MemoryStorage;
use tidemark_collector::storage::pages::PAGE_BYTES;
use tidemark_collector::view::View;
use tidemark_wire::Seq;

use crate::model::{Moments, SECTOR, ZONE_BYTES};
use crate::world::World;

/// States that are opened, at most, beside the points.
const STATES_MAX: usize = 24;
/// Bytes that are looked at together.
const STEP_BYTES: usize = 64 * 1024;
/// Bits that are changed in the collector's files at the end.
const FLIPS: usize = 40;

type SimView = View<MemoryStorage>;

/// Everything.
///
/// # Errors
/// What does not hold.
pub(crate) fn all(world: &World) -> Result<(), String> {
    if let Some(seq) = world.collector.witness.reused() {
        return Err(format!("two records had the number {seq}"));
    }
    let held = world.collector.held().ok_or("the collector's volume can't be read")?;
    latest(world, &held)?;
    states(world, &held)?;
    spans(world, &held)?;
    points(world, &held)?;
    damage(world, &held)
}

/// With bits of its files changed the collector gives out what is right, or an error.
fn damage(world: &World, held: &Held<MemoryStorage>) -> Result<(), String> {
    let storage = world.collector.storage.borrow();
    let is_data = |path: &PathBuf| {
        path.extension().is_some_and(|ext| ext == "seg" || ext == "open" || ext == "img")
    };
    let paths: Vec<PathBuf> = storage.paths().into_iter().filter(is_data).collect();
    for _ in 0..FLIPS {
        let path = &paths[world.random.place(paths.len())];
        let at = world.random.place(1 << 18);
        if storage.data_at(path, at) > 0 {
            storage.flip(path, at, world.random.pick(&[0, 3, 7]));
        }
    }
    let Ok(Some(view)) = open(held, held.reader.durable()) else { return Ok(()) };
    let image = world.disk.image();
    for zone in world.model.zones() {
        let (mut ours, mut theirs) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
        for at in (zone..zone + ZONE_BYTES).step_by(PAGE_BYTES) {
            image.read(at, &mut ours);
            if view.read_at(&mut theirs, at as u64).is_ok() && ours != theirs {
                return Err(format!("damage was given out as the newest state's bytes at {at}"));
            }
        }
    }
    Ok(())
}

/// The newest state is what the backing store holds, byte for byte.
fn latest(world: &World, held: &Held<MemoryStorage>) -> Result<(), String> {
    let newest = held.reader.durable();
    let view = open(held, newest)?.ok_or("the newest state is not offered")?;
    // Whatever a page cache shows, this is what the disk has.
    world.disk.uncache(0, world.disk.size_bytes());
    let image = world.disk.image();
    if view.size_bytes() != image.len() as u64 {
        return Err(format!("the newest state has {} bytes", view.size_bytes()));
    }
    let (mut ours, mut theirs) = (vec![0; STEP_BYTES], vec![0; STEP_BYTES]);
    for at in (0..image.len()).step_by(STEP_BYTES) {
        let len = STEP_BYTES.min(image.len() - at);
        if image.run(at, at + len) == (len, false) && is_hole(&view, at, len)? {
            continue;
        }
        let (ours, theirs) = (&mut ours[..len], &mut theirs[..len]);
        image.read(at, ours);
        view.read_at(theirs, at as u64)
            .map_err(|error| format!("the newest state, {newest}, at {at}: {error}"))?;
        if ours != theirs {
            let byte = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
            let place = at + byte.unwrap_or(0);
            return Err(format!("the newest state, {newest}, differs from the disk at {place}"));
        }
    }
    let now = world.model.now();
    let moments = judge(world, &view).map_err(|text| format!("the newest state: {text}"))?;
    if moments.last < now {
        return Err(format!("the newest state is from {moments:?}, it is {now}"));
    }
    Ok(())
}

/// True when a view says of itself that all of a run is zero.
fn is_hole(view: &SimView, at: usize, len: usize) -> Result<bool, String> {
    let range = ByteRange::new(at as u64, len as u64).ok_or("a run of a disk")?;
    let mut extents = Vec::new();
    let asked = view.status(range, 1, &mut extents);
    asked.map_err(|error| format!("what is at {at}: {error}"))?;
    Ok(extents.first().is_some_and(|first| first.zero && first.len_bytes >= range.len()))
}

fn open(held: &Held<MemoryStorage>, seq: Seq) -> Result<Option<SimView>, String> {
    match View::open(Arc::clone(&held.reader), Arc::clone(&held.seed), seq) {
        Ok(view) => Ok(Some(view)),
        Err(ViewError::NotOffered(_)) => Ok(None),
        Err(error) => Err(format!("the state {seq}: {error}")),
    }
}

/// The moments that a state can be from. What could not be read when it was captured is unknown.
fn judge(world: &World, view: &SimView) -> Result<Moments, String> {
    world.model.judge(|start, bytes| match view.read_at(bytes, start as u64) {
        Ok(()) => Ok(Vec::new()),
        Err(ViewError::Unreadable { .. }) => sectors(view, start, bytes),
        Err(error) => Err(format!("at {start}: {error}")),
    })
}

/// Reads what can be read, sector by sector, and names the rest.
fn sectors(view: &SimView, start: usize, bytes: &mut [u8]) -> Result<Vec<Range<usize>>, String> {
    let mut unknown = Vec::new();
    for (place, sector) in bytes.chunks_mut(SECTOR).enumerate() {
        let at = start + place * SECTOR;
        match view.read_at(sector, at as u64) {
            Ok(()) => {}
            Err(ViewError::Unreadable { .. }) => unknown.push(at..at + SECTOR),
            Err(error) => return Err(format!("at {at}: {error}")),
        }
    }
    Ok(unknown)
}

/// Every state that is offered is one that a power cut could have left, and later ones are later.
fn states(world: &World, held: &Held<MemoryStorage>) -> Result<(), String> {
    let durable = held.reader.durable();
    let mut records = world.collector.witness.records();
    records.retain(|seq| *seq <= durable);
    let mut sample: Vec<Seq> = (0..STATES_MAX.min(records.len()))
        .map(|_| records[world.random.place(records.len())])
        .collect();
    sample.extend(world.collector.witness.points().iter().map(|(seq, _)| *seq));
    sample.sort_unstable();
    sample.dedup();
    let (mut before, mut before_seq) = (Moments { first: 0, last: u64::MAX }, Seq(0));
    for seq in sample {
        let Some(view) = open(held, seq)? else { continue };
        world.figures.borrow_mut().states += 1;
        let moments = judge(world, &view).map_err(|text| format!("the state {seq}: {text}"))?;
        if moments.last < before.first {
            return Err(format!("the state {seq} is older than the state {before_seq}"));
        }
        if moments.first > before.first {
            (before, before_seq) = (moments, seq);
        }
    }
    Ok(())
}

/// Nothing within a span is offered.
fn spans(world: &World, held: &Held<MemoryStorage>) -> Result<(), String> {
    let oldest = held.reader.first_seq().unwrap_or(Seq(0));
    for span in held.reader.spans() {
        let end = span.end.ok_or("a span is open")?;
        let begin = span.begin.max(oldest);
        for _ in 0..4 {
            let seq = Seq(begin.0 + world.random.below(end.0.saturating_sub(begin.0).max(1)));
            if seq < end && held.reader.offerable(seq).is_ok() {
                return Err(format!("the state {seq} is offered, within the span to {end}"));
            }
        }
    }
    Ok(())
}

/// A point that is kept is behind everything that was answered when it was asked for.
fn points(world: &World, held: &Held<MemoryStorage>) -> Result<(), String> {
    for (seq, asked) in world.collector.witness.points() {
        let Some(view) = open(held, seq)? else { continue };
        world.figures.borrow_mut().points += 1;
        let moments = judge(world, &view).map_err(|text| format!("the point {seq}: {text}"))?;
        if moments.last < asked {
            return Err(format!("the point {seq} lacks what was answered before it was asked for"));
        }
    }
    Ok(())
}

/// True when the newest state has a range that could not be read when it was captured.
pub(crate) fn has_unreadable(world: &World) -> bool {
    let Some(held) = world.collector.held() else { return false };
    let Ok(Some(view)) = open(&held, held.reader.durable()) else { return false };
    let mut bytes = vec![0; STEP_BYTES];
    let size = usize::try_from(view.size_bytes()).unwrap_or(0);
    (0..size).step_by(STEP_BYTES).any(|at| {
        let len = STEP_BYTES.min(size - at);
        let mut read = || view.read_at(&mut bytes[..len], at as u64);
        !matches!(is_hole(&view, at, len), Ok(true))
            && matches!(read(), Err(ViewError::Unreadable { .. }))
    })
}
