//! One io_uring and the operations in flight on it.
//!
//! Queue entries enter, results leave. The table of operations grows to the largest number that
//! was ever in flight (bounded by what the tasks of the executor can have in flight) and is
//! reused from then on.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::task::Waker;

use io_uring::{Builder, IoUring, cqueue, opcode, squeue, types};

/// `user_data` of completions that nobody waits for.
const IGNORED: u64 = u64::MAX;
/// `user_data` of the poll on the doorbell.
const DOORBELL: u64 = u64::MAX - 1;
/// `IORING_ENTER_GETEVENTS` of the kernel's interface: with deferred task work, completions are
/// produced only by a call that carries it.
const ENTER_GETEVENTS: u32 = 1;
/// Completion queue entries for each submission queue entry.
const COMPLETIONS_PER_SUBMISSION: u32 = 8;

enum Slot {
    Free,
    Waiting(Waker),
    Done(i32),
    /// In flight, and nobody wants its result any more.
    Abandoned,
}

/// What [`Ring::reap_one`] found.
pub(super) enum Reaped {
    /// The completion queue is empty.
    Nothing,
    /// A completion that wakes nobody.
    Silent,
    /// The task to wake for an operation that is done.
    Wake(Waker),
    /// The doorbell's poll ended and has to be started again.
    DoorbellLost,
}

pub(super) struct Ring {
    uring: IoUring,
    slots: Vec<Slot>,
    free: Vec<u32>,
    enter_calls: u64,
}

impl Ring {
    /// A ring that suits one thread, or the best that an older kernel can do.
    pub(super) fn new(entries: u32) -> io::Result<Self> {
        match one_thread_builder(entries).build(entries.next_power_of_two()) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Self::plain(entries),
            other => Ok(Self::over(other.map_err(explained)?)),
        }
    }

    /// A ring as every kernel with io_uring can make it.
    pub(super) fn plain(entries: u32) -> io::Result<Self> {
        let made = plain_builder(entries).build(entries.next_power_of_two());
        Ok(Self::over(made.map_err(explained)?))
    }

    fn over(uring: IoUring) -> Self {
        let capacity = uring.params().sq_entries() as usize;
        Self {
            uring,
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            enter_calls: 0,
        }
    }

    /// Number of `io_uring_enter` calls so far.
    pub(super) fn enter_calls(&self) -> u64 {
        self.enter_calls
    }

    /// Another descriptor of the ring: the kernel takes it down when the last one is closed.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        // SAFETY: the descriptor is the ring's, which outlives this call.
        unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) }.try_clone_to_owned()
    }

    /// A place in the table for a new operation, whose completion will wake `waker`.
    pub(super) fn allocate(&mut self, waker: Waker) -> u32 {
        if let Some(id) = self.free.pop() {
            self.slots[id as usize] = Slot::Waiting(waker);
            return id;
        }
        let id = u32::try_from(self.slots.len()).expect("fewer than 2^32 operations in flight");
        self.slots.push(Slot::Waiting(waker));
        // The list of free places must not grow when an operation ends.
        self.free.reserve(self.slots.capacity());
        id
    }

    /// Queues an entry; false when the queue is full and has to be submitted first.
    ///
    /// # Safety
    /// Everything that the entry points to stays valid and untouched until its completion.
    pub(super) unsafe fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's promise is the one that `push` asks for.
        unsafe { self.uring.submission().push(entry) }.is_ok()
    }

    /// The result of an operation, which leaves the table; otherwise remembers whom to wake.
    pub(super) fn take_result(&mut self, id: u32, waker: Option<&Waker>) -> Option<i32> {
        match &mut self.slots[id as usize] {
            Slot::Done(result) => {
                let result = *result;
                self.slots[id as usize] = Slot::Free;
                self.free.push(id);
                Some(result)
            }
            Slot::Waiting(known) => {
                if let Some(waker) = waker {
                    known.clone_from(waker);
                }
                None
            }
            Slot::Free | Slot::Abandoned => {
                unreachable!("operation {id} was asked for after its result was taken or given up")
            }
        }
    }

    /// Leaves an operation to itself; its place is free again when it completes.
    pub(super) fn abandon(&mut self, id: u32) {
        let slot = &mut self.slots[id as usize];
        match std::mem::replace(slot, Slot::Abandoned) {
            Slot::Waiting(_) => {}
            Slot::Done(_) => {
                *slot = Slot::Free;
                self.free.push(id);
            }
            Slot::Free | Slot::Abandoned => unreachable!("operation {id} was given up twice"),
        }
    }

    /// Takes one completion from the queue.
    pub(super) fn reap_one(&mut self) -> Reaped {
        let Some(completion) = self.uring.completion().next() else {
            return Reaped::Nothing;
        };
        match completion.user_data() {
            IGNORED => Reaped::Silent,
            DOORBELL if cqueue::more(completion.flags()) => Reaped::Silent,
            DOORBELL => {
                // Linux before 5.13 can't poll for more than one event.
                let result = completion.result();
                assert!(result >= 0, "the doorbell can't be polled: errno {}", -result);
                Reaped::DoorbellLost
            }
            id => {
                let slot = usize::try_from(id).ok().and_then(|id| self.slots.get_mut(id));
                let slot = slot.expect("the kernel completes only what was submitted");
                match std::mem::replace(slot, Slot::Done(completion.result())) {
                    Slot::Waiting(waker) => Reaped::Wake(waker),
                    Slot::Abandoned => {
                        *slot = Slot::Free;
                        self.free.push(u32::try_from(id).expect("it is a place in the table"));
                        Reaped::Silent
                    }
                    Slot::Free | Slot::Done(_) => unreachable!("operation {id} completed twice"),
                }
            }
        }
    }

    /// True when the kernel has something to do for us or to tell us: entries are queued, or
    /// completions wait for a call to be produced.
    pub(super) fn needs_enter(&mut self) -> bool {
        let queue = self.uring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Submits what is queued and waits until at least `wanted` completions are there. Interrupts
    /// and short memory count as success: the caller looks at the queues and comes again.
    pub(super) fn enter(&mut self, wanted: u32) -> io::Result<()> {
        let queued = u32::try_from(self.uring.submission().len()).unwrap_or(u32::MAX);
        self.enter_calls += 1;
        // SAFETY: no argument is passed; entries were checked when they were pushed.
        let entered = unsafe {
            self.uring.submitter().enter::<libc::sigset_t>(queued, wanted, ENTER_GETEVENTS, None)
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

/// The entry that carries the completion of operation `id` back to its place in the table.
pub(super) fn tagged(entry: squeue::Entry, id: u32) -> squeue::Entry {
    entry.user_data(u64::from(id))
}

/// The entry that asks the kernel to give up operation `id`.
pub(super) fn cancel_entry(id: u32) -> squeue::Entry {
    opcode::AsyncCancel::new(u64::from(id)).build().user_data(IGNORED)
}

/// The entry that reports every ring of an eventfd without reading it. It has no buffer, so the
/// ring may be torn down while it is armed.
pub(super) fn doorbell_entry(fd: RawFd) -> squeue::Entry {
    const POLL_IN: u32 = libc::POLLIN.unsigned_abs() as u32;
    opcode::PollAdd::new(types::Fd(fd), POLL_IN).multi(true).build().user_data(DOORBELL)
}

/// Says what to do where io_uring is switched off.
fn explained(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::ENOSYS) => io::Error::new(
            error.kind(),
            format!("io_uring is not available ({error}); see sysctl kernel.io_uring_disabled"),
        ),
        _ => error,
    }
}

fn plain_builder(entries: u32) -> Builder {
    let mut builder = IoUring::builder();
    let completions = entries.next_power_of_two().saturating_mul(COMPLETIONS_PER_SUBMISSION);
    builder.dontfork().setup_clamp().setup_cqsize(completions);
    builder
}

/// Linux 6.1 knows all of these: the kernel need not guard the ring against other threads, and
/// does the work that ends an operation when this thread comes for it, not in its way.
fn one_thread_builder(entries: u32) -> Builder {
    let mut builder = plain_builder(entries);
    builder
        .setup_submit_all()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_defer_taskrun();
    builder
}
