//! Bytes of a file in memory, by pages: what was never written takes no room, and a copy shares
//! its pages until one of the two changes.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

type Page = [u8; PAGE_BYTES];

/// A run of bytes that begins as zeroes. Pages that are all zero may or may not be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    pages: BTreeMap<usize, Arc<Page>>,
    len: usize,
}

impl Pages {
    /// A run of `len` zeroes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self { pages: BTreeMap::new(), len }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Cuts it, or adds zeroes.
    pub fn resize(&mut self, len: usize) {
        if len < self.len {
            self.zero(len, self.len - len);
        }
        self.len = len;
    }

    /// Writes at a place, growing where needed.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        self.len = self.len.max(at + bytes.len());
        for (page, within, part) in parts(at, bytes.len()) {
            let kept = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            let from = &bytes[part.clone()];
            Arc::make_mut(kept)[within..within + from.len()].copy_from_slice(from);
        }
    }

    /// Makes a run zero, within the length.
    pub fn zero(&mut self, at: usize, len: usize) {
        let len = len.min(self.len.saturating_sub(at));
        let (first, behind) = (at.div_ceil(PAGE_BYTES), (at + len) / PAGE_BYTES);
        for (page, within, part) in
            parts(at, len).filter(|(page, ..)| !(first..behind).contains(page))
        {
            if let Some(kept) = self.pages.get_mut(&page) {
                Arc::make_mut(kept)[within..within + part.len()].fill(0);
            }
        }
        if first < behind {
            let whole: Vec<usize> =
                self.pages.range(first..behind).map(|(page, _)| *page).collect();
            for page in whole {
                self.pages.remove(&page);
            }
        }
    }

    /// Fills `out` from a place; what lies behind the end reads as zeroes.
    pub fn read(&self, at: usize, out: &mut [u8]) {
        for (page, within, part) in parts(at, out.len()) {
            let out = &mut out[part];
            match self.pages.get(&page) {
                Some(kept) => out.copy_from_slice(&kept[within..within + out.len()]),
                None => out.fill(0),
            }
        }
    }

    /// Length of the run at `at` that is all kept, or all not kept (zero), and which; up to `end`.
    #[must_use]
    pub fn run(&self, at: usize, end: usize) -> (usize, bool) {
        let end = end.min(self.len);
        if at >= end {
            return (0, false);
        }
        let first = at / PAGE_BYTES;
        let kept = self.pages.contains_key(&first);
        let mut behind = first + 1;
        if kept {
            while behind * PAGE_BYTES < end && self.pages.contains_key(&behind) {
                behind += 1;
            }
        } else {
            behind = self.pages.range(behind..).next().map_or(usize::MAX, |(page, _)| *page);
        }
        (behind.saturating_mul(PAGE_BYTES).min(end) - at, kept)
    }

    /// All bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        for (page, kept) in &self.pages {
            let start = page * PAGE_BYTES;
            let end = (start + PAGE_BYTES).min(self.len);
            if start < end {
                bytes[start..end].copy_from_slice(&kept[..end - start]);
            }
        }
        bytes
    }
}

impl From<&[u8]> for Pages {
    fn from(bytes: &[u8]) -> Self {
        let mut pages = Self::default();
        pages.write(0, bytes);
        pages
    }
}

/// The parts of a run that lie in one page each: page, place in it, place in the run.
fn parts(at: usize, len: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let (page, within) = ((at + done) / PAGE_BYTES, (at + done) % PAGE_BYTES);
        let part = done..(done + PAGE_BYTES - within).min(len);
        done = part.end;
        Some((page, within, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written_and_zeroed() {
        let mut pages = Pages::zeroed(20_000);
        let mut plain = vec![0_u8; 20_000];
        for (at, len, value) in [(100, 9000, 1), (4096, 4096, 2), (8000, 5, 3), (15_000, 5000, 4)] {
            pages.write(at, &vec![value; len]);
            plain[at..at + len].fill(value);
        }
        pages.zero(4000, 5000);
        plain[4000..9000].fill(0);
        assert_eq!(pages.to_vec(), plain);
        let copy = pages.clone();
        pages.resize(10_000);
        pages.resize(20_000);
        plain[10_000..].fill(0);
        assert_eq!(pages.to_vec(), plain);
        assert_eq!(copy.to_vec()[15_000], 4, "a copy keeps its own");
        let mut part = [9; 300];
        copy.read(19_900, &mut part);
        assert_eq!((part[99], part[100]), (4, 0), "behind the end are zeroes");
        assert_eq!(pages.run(0, 20_000), (4096, true));
        assert_eq!(pages.run(4096, 20_000), (4096, false), "zeroed whole");
    }
}
