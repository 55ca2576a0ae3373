//! A bounded queue from many threads to one task.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use super::lock;

/// The receiver is gone; the message comes back.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads this mailbox any more")]
pub struct SendError<T>(pub T);

/// Why [`MailSender::try_send`] failed; the message comes back.
#[derive(Debug, thiserror::Error)]
pub enum TrySendError<T> {
    /// The mailbox holds as many messages as it was made for.
    #[error("the mailbox is full")]
    Full(T),
    /// The receiver is gone.
    #[error("nobody reads this mailbox any more")]
    Closed(T),
}

struct Shared<T> {
    state: Mutex<State<T>>,
    room: Condvar,
    capacity: usize,
}

struct State<T> {
    messages: VecDeque<T>,
    receiver: Option<Waker>,
    senders: usize,
    receiver_gone: bool,
}

/// Makes a mailbox for at most `capacity` messages (at least one), allocated here and now.
#[must_use]
pub fn mailbox<T: Send>(capacity: usize) -> (MailSender<T>, MailReceiver<T>) {
    let capacity = capacity.max(1);
    let state = State {
        messages: VecDeque::with_capacity(capacity),
        receiver: None,
        senders: 1,
        receiver_gone: false,
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), room: Condvar::new(), capacity });
    (MailSender { shared: Arc::clone(&shared) }, MailReceiver { shared })
}

/// The sending end; clone it for each thread.
pub struct MailSender<T> {
    shared: Arc<Shared<T>>,
}

impl<T: Send> MailSender<T> {
    /// Sends, and blocks the calling thread while the mailbox is full. Not for the thread of the
    /// executor that receives: it would wait for itself.
    ///
    /// # Errors
    /// The message, when the receiver is gone.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        let mut state = lock(&self.shared.state);
        while state.messages.len() >= self.shared.capacity && !state.receiver_gone {
            state = self.shared.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.receiver_gone {
            return Err(SendError(message));
        }
        state.messages.push_back(message);
        let waker = state.receiver.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Sends if there is room, and never blocks.
    ///
    /// # Errors
    /// The message, when the mailbox is full or the receiver is gone.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let mut state = lock(&self.shared.state);
        if state.receiver_gone {
            return Err(TrySendError::Closed(message));
        }
        if state.messages.len() >= self.shared.capacity {
            return Err(TrySendError::Full(message));
        }
        state.messages.push_back(message);
        let waker = state.receiver.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl<T> Clone for MailSender<T> {
    fn clone(&self) -> Self {
        lock(&self.shared.state).senders += 1;
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for MailSender<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.senders -= 1;
        let waker = if state.senders == 0 { state.receiver.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The receiving end, for one task.
pub struct MailReceiver<T> {
    shared: Arc<Shared<T>>,
}

impl<T: Send> MailReceiver<T> {
    /// The next message, or `None` when the mailbox is empty and every sender is gone.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &Context<'_>) -> Poll<Option<T>> {
        let mut state = lock(&self.shared.state);
        if let Some(message) = state.messages.pop_front() {
            drop(state);
            self.shared.room.notify_one();
            return Poll::Ready(Some(message));
        }
        if state.senders == 0 {
            return Poll::Ready(None);
        }
        state.receiver = Some(cx.waker().clone());
        Poll::Pending
    }

    /// A message that is there already.
    pub fn try_recv(&mut self) -> Option<T> {
        let message = lock(&self.shared.state).messages.pop_front();
        if message.is_some() {
            self.shared.room.notify_one();
        }
        message
    }
}

impl<T> Drop for MailReceiver<T> {
    fn drop(&mut self) {
        let messages = {
            let mut state = lock(&self.shared.state);
            state.receiver_gone = true;
            state.receiver = None;
            std::mem::take(&mut state.messages)
        };
        self.shared.room.notify_all();
        // Outside the lock: a message may own a sender of this very mailbox.
        drop(messages);
    }
}
