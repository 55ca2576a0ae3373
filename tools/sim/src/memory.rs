//! Large zeroed memory comes from the kernel at once, untouched.
//!
//! A volume sets its buffers aside when it is opened: megabytes that are zeroed, which is right for
//! a daemon and was half of a simulation's time, in which a volume is opened ten times and uses
//! little of them. The shipped code stays as it is; only the simulator's program has this.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes from which on it is worth a call of the kernel.
const LARGE_BYTES: usize = 128 * 1024;
/// Alignment that no small allocation has, and every page.
const PAGE_BYTES: usize = 4096;

/// See the module's documentation.
pub(crate) struct Memory;

fn is_mapped(layout: &Layout) -> bool {
    layout.align() == PAGE_BYTES && layout.size() >= LARGE_BYTES
}

fn map(bytes: usize) -> *mut u8 {
    let bytes = NonZeroUsize::new(bytes).expect("a large number");
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new private mapping at a place that the kernel chooses touches no other memory.
    let mapped = unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_PRIVATE) };
    mapped.map_or(std::ptr::null_mut(), |start| start.as_ptr().cast())
}

// SAFETY: what is mapped is told from the rest by its layout alone, which each call is given, so
// each piece goes back to where it came from. A mapping is aligned to a page, and zeroed.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_mapped(&layout) {
            return map(layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_mapped(&layout) {
            return map(layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if !is_mapped(&layout) {
            // SAFETY: the caller's promise.
            return unsafe { System.dealloc(start, layout) };
        }
        let start = NonNull::new(start).map(NonNull::cast::<c_void>);
        // SAFETY: a mapping of this length was made there by `map`, and nobody uses it any more.
        let unmapped = start.map(|start| unsafe { munmap(start, layout.size()) });
        debug_assert_eq!(unmapped, Some(Ok(())));
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        assert!(layout.align() < PAGE_BYTES, "buffers of whole pages never grow");
        // SAFETY: the caller's promise; what is not aligned to a page is not mapped.
        unsafe { System.realloc(start, layout, bytes) }
    }
}
