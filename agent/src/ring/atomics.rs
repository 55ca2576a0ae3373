//! What the core of the ring needs of an atomic, so that it can run on words in mapped memory
//! and, under `cfg(loom)`, on loom's model of them. The same core code runs on both.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// An atomic of 64 bits.
pub trait Word {
    /// As the method of the same name of [`AtomicU64`].
    fn load(&self, order: Ordering) -> u64;
    /// As the method of the same name of [`AtomicU64`].
    fn store(&self, value: u64, order: Ordering);
    /// Compare and exchange with `AcqRel` on success and `Acquire` on failure.
    fn exchange(&self, current: u64, new: u64) -> Result<u64, u64>;
    /// As the method of the same name of [`AtomicU64`].
    fn fetch_max(&self, value: u64, order: Ordering) -> u64;
    /// As the method of the same name of [`AtomicU64`].
    fn fetch_and(&self, value: u64, order: Ordering) -> u64;
    /// A sequentially consistent fence.
    fn fence();
}

/// An atomic of 32 bits, on which the kernel lets a thread sleep.
pub trait Flag {
    /// As the method of the same name of [`AtomicU32`].
    fn load(&self, order: Ordering) -> u32;
    /// As the method of the same name of [`AtomicU32`].
    fn store(&self, value: u32, order: Ordering);
}

macro_rules! word {
    ($word:ty, $flag:ty, $fence:path) => {
        impl Word for $word {
            #[inline]
            fn load(&self, order: Ordering) -> u64 {
                self.load(order)
            }

            #[inline]
            fn store(&self, value: u64, order: Ordering) {
                self.store(value, order);
            }

            #[inline]
            fn exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
                self.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
            }

            #[inline]
            fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
                self.fetch_max(value, order)
            }

            #[inline]
            fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
                self.fetch_and(value, order)
            }

            #[inline]
            fn fence() {
                $fence(Ordering::SeqCst);
            }
        }

        impl Flag for $flag {
            #[inline]
            fn load(&self, order: Ordering) -> u32 {
                self.load(order)
            }

            #[inline]
            fn store(&self, value: u32, order: Ordering) {
                self.store(value, order);
            }
        }
    };
}

word!(AtomicU64, AtomicU32, std::sync::atomic::fence);

#[cfg(loom)]
word!(loom::sync::atomic::AtomicU64, loom::sync::atomic::AtomicU32, loom::sync::atomic::fence);
