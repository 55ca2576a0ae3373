//! Buffers of one size, allocated once and lent out as chunks.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::future::Future;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::lock;
use super::wait_list::WaitList;
use crate::chunk::{Chunk, ChunkPool};

/// Alignment of every buffer, in bytes: enough for direct I/O on any device.
const BUFFER_ALIGN: usize = 4096;

/// A fixed number of buffers. Clones share them, and any thread may take one.
///
/// When all are lent out, [`BufferPool::take`] waits, in order of arrival. A buffer comes back
/// when the last chunk of it is dropped. Taking and giving back allocate nothing. The bytes of a
/// buffer are what its last holder left there.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    memory: NonNull<u8>,
    layout: Layout,
    /// Distance of two buffers, in bytes.
    stride: usize,
    /// Usable bytes of a buffer.
    len: usize,
    /// Number of chunks of each buffer.
    holders: Box<[AtomicU32]>,
    state: Mutex<State>,
}

// SAFETY: the memory is reached only through chunks, each buffer by the chunks of one holder; the
// rest is Send and Sync by itself.
unsafe impl Send for Shared {}
// SAFETY: see above.
unsafe impl Sync for Shared {}

struct State {
    free: Vec<u32>,
    /// Buffers among the free ones that belong to tasks that were woken for them and have not
    /// run yet. Never more than there are free ones.
    promised: usize,
    waiting: WaitList,
}

impl State {
    fn take_unpromised(&mut self) -> Option<u32> {
        if self.free.len() > self.promised { self.free.pop() } else { None }
    }

    /// Promises a buffer that became free to the one who waits longest.
    fn promise(&mut self) -> Option<Waker> {
        let waker = self.waiting.pop();
        self.promised += usize::from(waker.is_some());
        waker
    }
}

impl BufferPool {
    /// Allocates `count` buffers of `len` bytes each, zeroed and aligned to 4096 bytes.
    ///
    /// # Panics
    /// When `count` or `len` is 0 or their product does not fit in memory.
    #[must_use]
    pub fn new(count: usize, len: usize) -> Self {
        assert!(count > 0 && len > 0, "a pool of {count} buffers of {len} bytes");
        let stride = len.next_multiple_of(BUFFER_ALIGN);
        let bytes = stride.checked_mul(count).expect("the pool's size fits in usize");
        let layout = Layout::from_size_align(bytes, BUFFER_ALIGN).expect("a valid size");
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let memory = NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout));
        let last = u32::try_from(count).expect("a pool has fewer than 2^32 buffers");
        let state =
            State { free: (0..last).rev().collect(), promised: 0, waiting: WaitList::new() };
        let holders = (0..count).map(|_| AtomicU32::new(0)).collect();
        let state = Mutex::new(state);
        Self { shared: Arc::new(Shared { memory, layout, stride, len, holders, state }) }
    }

    /// Length of each buffer in bytes.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        self.shared.len
    }

    /// A buffer, as soon as there is one.
    pub async fn take(&self) -> Chunk {
        Take { pool: self, ticket: None }.await
    }

    /// A buffer, if there is one.
    #[must_use]
    pub fn try_take(&self) -> Option<Chunk> {
        let index = lock(&self.shared.state).take_unpromised()?;
        Some(self.chunk(index))
    }

    fn chunk(&self, index: u32) -> Chunk {
        let place = index as usize;
        // Relaxed: the buffer came off the free list under its lock, which orders everything.
        self.shared.holders[place].store(1, Ordering::Relaxed);
        // SAFETY: `place` is less than the number of buffers, so the address is inside.
        let start = unsafe { self.shared.memory.add(place * self.shared.stride) };
        let pool: Arc<dyn ChunkPool> = Arc::clone(&self.shared) as Arc<dyn ChunkPool>;
        // SAFETY: the memory is initialized (zeroed at first), lives as long as the pool that the
        // chunk holds, and is nobody else's until the count of holders is zero again.
        unsafe { Chunk::from_pool(start, self.shared.len, pool, index) }
    }
}

impl ChunkPool for Shared {
    fn retain(&self, buffer: u32) {
        // Relaxed: the caller holds a chunk of this buffer, so the count can't reach zero here.
        self.holders[buffer as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn release(&self, buffer: u32) {
        // Release pairs with the acquire fence: the last holder sees that the others are done.
        if self.holders[buffer as usize].fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // Acquire pairs with the release above.
        fence(Ordering::Acquire);
        let waker = {
            let mut state = lock(&self.state);
            state.free.push(buffer);
            state.promise()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; every chunk holds the pool, so none is left.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}

struct Take<'a> {
    pool: &'a BufferPool,
    ticket: Option<u64>,
}

impl Future for Take<'_> {
    type Output = Chunk;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Chunk> {
        let this = &mut *self;
        let mut state = lock(&this.pool.shared.state);
        let index = match this.ticket {
            None => state.take_unpromised(),
            Some(ticket) if state.waiting.refresh(ticket, cx.waker()) => return Poll::Pending,
            Some(_) => {
                this.ticket = None;
                state.promised -= 1;
                state.free.pop()
            }
        };
        match index {
            Some(index) => {
                drop(state);
                Poll::Ready(this.pool.chunk(index))
            }
            None => {
                this.ticket = Some(state.waiting.push(cx.waker()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Take<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let next = {
            let mut state = lock(&self.pool.shared.state);
            if state.waiting.remove(ticket) {
                return;
            }
            // Woken, but gone before it took its buffer: the next one gets it.
            state.promised -= 1;
            state.promise()
        };
        if let Some(next) = next {
            next.wake();
        }
    }
}
