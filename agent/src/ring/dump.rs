//! An independent reader of a ring's file: plain reads of plain bytes, none of the code that
//! writes them. For people after an incident, and as the witness in the tests.
//!
//! It takes no lock. On a ring in use, a record that was released while it was being looked at
//! is left out, since its stamp changed meanwhile.

use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tidemark_wire::record::check_pieces;
use tidemark_wire::{RecordHeader, VolumeId};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::error::{RingError, RingErrorKind as Kind};
use super::format::{FixedHeader, Layout, MAGIC, PAGE_BYTES, SLOT_BYTES, Slot, VERSION, Words};

/// What a ring's file says.
#[derive(Debug)]
pub struct Dump {
    /// The volume.
    pub volume: VolumeId,
    /// Number of payload pages.
    pub page_count: u32,
    /// Number of slots.
    pub slot_count: u32,
    /// Next ticket to be claimed.
    pub tail: u64,
    /// Oldest ticket that is not released.
    pub head: u64,
    /// Largest sequence number that was released.
    pub released_seq: u64,
    /// Writes are not captured.
    pub capture_off: bool,
    /// The slots that are not free, by rising ticket.
    pub entries: Vec<Entry>,
}

/// One slot that is not free.
#[derive(Debug)]
pub struct Entry {
    /// The ticket.
    pub ticket: u64,
    /// How far it got.
    pub state: EntryState,
    /// The record's header; without meaning where the state is void.
    pub header: RecordHeader,
    /// First page of the payload.
    pub first_page: u32,
    /// Pages of the payload.
    pub pages: u32,
    /// What is wrong with the record, or `None` when all its checksums hold.
    pub damage: Option<String>,
}

/// How far a ticket got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// The change may have taken effect.
    InFlight,
    /// A complete record.
    Committed,
    /// Nothing that counts.
    Void,
    /// No state has this number.
    Unknown(u64),
}

/// Reads and checks a ring's file.
///
/// # Errors
/// `Missing`, `NotARing`, `Version`, `Damaged` (the header) or `Io`. Damage to records is told
/// in their entries.
pub fn read(path: &Path) -> Result<Dump, RingError> {
    let file = File::open(path).map_err(|e| {
        let missing = e.kind() == io::ErrorKind::NotFound;
        RingError::io(if missing { Kind::Missing } else { Kind::Io }, path, "open the file", e)
    })?;
    let reader = Reader { path, file };
    let header: FixedHeader = reader.get(0)?;
    if header.magic != MAGIC {
        return Err(reader.error(Kind::NotARing, "does not begin as a change ring does"));
    }
    if header.version.get() != VERSION {
        let detail = format!("has version {}, this agent knows {VERSION}", header.version);
        return Err(reader.error(Kind::Version, detail));
    }
    if header.header_sum.get() != header.compute_sum() {
        return Err(reader.error(Kind::Damaged, "the header does not match its checksum"));
    }
    let layout = header.layout();
    let word = |offset| reader.get::<U64>(offset).map(U64::get);
    let mut dump = Dump {
        volume: VolumeId::from_bytes(header.volume),
        page_count: layout.page_count,
        slot_count: layout.slot_count,
        tail: word(offset_of!(Words, tail))?,
        head: word(offset_of!(Words, head))?,
        released_seq: word(offset_of!(Words, released_seq))?,
        capture_off: word(offset_of!(Words, capture_off))? != 0,
        entries: Vec::new(),
    };
    for slot in 0..layout.slot_count as usize {
        dump.entries.extend(reader.entry(layout, slot)?);
    }
    dump.entries.sort_by_key(|entry| entry.ticket);
    Ok(dump)
}

struct Reader<'a> {
    path: &'a Path,
    file: File,
}

impl Reader<'_> {
    fn error(&self, kind: Kind, detail: impl Into<String>) -> RingError {
        RingError::new(kind, self.path, detail)
    }

    fn fill(&self, offset: usize, into: &mut [u8]) -> Result<(), RingError> {
        self.file.read_exact_at(into, offset as u64).map_err(|e| {
            let cut = e.kind() == io::ErrorKind::UnexpectedEof;
            let kind = if cut { Kind::NotARing } else { Kind::Io };
            RingError::io(kind, self.path, &format!("read at byte {offset}"), e)
        })
    }

    fn get<T: FromBytes + IntoBytes + FromZeros>(&self, offset: usize) -> Result<T, RingError> {
        let mut value = T::new_zeroed();
        self.fill(offset, value.as_mut_bytes())?;
        Ok(value)
    }

    fn entry(&self, layout: Layout, index: usize) -> Result<Option<Entry>, RingError> {
        let offset = PAGE_BYTES + index * SLOT_BYTES;
        let slot: Slot = self.get(offset)?;
        let (ticket, state) = (slot.stamp.get() / 8, slot.stamp.get() % 8);
        let state = match state {
            0 => return Ok(None),
            2 => EntryState::InFlight,
            3 => EntryState::Committed,
            4 => EntryState::Void,
            other => EntryState::Unknown(other),
        };
        let wrong_slot = ticket % u64::from(layout.slot_count) != index as u64;
        let damage = match state {
            _ if wrong_slot => Some(format!("ticket {ticket} does not belong in slot {index}")),
            EntryState::Unknown(other) => Some(format!("state {other} is unknown")),
            EntryState::Void => None,
            EntryState::InFlight | EntryState::Committed => self.damage_of(layout, &slot)?,
        };
        let again: U64 = self.get(offset + offset_of!(Slot, stamp))?;
        if again.get() / 8 != ticket {
            return Ok(None);
        }
        let (first_page, pages) = (slot.first_page.get(), slot.pages.get());
        Ok(Some(Entry { ticket, state, header: slot.header, first_page, pages, damage }))
    }

    /// Checks a record's header, checksums and payload.
    fn damage_of(&self, layout: Layout, slot: &Slot) -> Result<Option<String>, RingError> {
        let header = &slot.header;
        if let Err(error) = header.check_fields() {
            return Ok(Some(error.to_string()));
        }
        let (first, pages) = (slot.first_page.get(), slot.pages.get());
        let end = first.checked_add(pages);
        if end.is_none_or(|end| end > layout.page_count) || pages < header.sum_count.get() {
            return Ok(Some(format!("{pages} pages from page {first} can't hold the payload")));
        }
        let mut sums = vec![U64::new(0); header.sum_count.get() as usize];
        let mut payload = vec![0; header.payload_bytes.get() as usize];
        if !payload.is_empty() {
            self.fill(layout.sum_at(first), sums.as_mut_bytes())?;
            let lead = usize::try_from(header.grid_offset() % PAGE_BYTES as u64).expect("small");
            self.fill(layout.page_at(first) + lead, &mut payload)?;
        }
        let mut sealed = *header;
        sealed.seal(&sums);
        if sealed.header_sum != header.header_sum {
            return Ok(Some("header and checksums do not match the header's checksum".into()));
        }
        Ok(check_pieces(header, &sums, &payload).err().map(|error| error.to_string()))
    }
}
