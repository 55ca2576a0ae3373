//! Futures of one task that go on side by side.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

/// One of several walks of the same task.
pub(super) type Lane<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Ends when all lanes have ended. Whatever wakes the task lets each of them look: they are few,
/// and what one does between two waits is short.
pub(super) async fn all(mut lanes: Vec<Lane<'_>>) {
    poll_fn(|cx| {
        lanes.retain_mut(|lane| lane.as_mut().poll(cx).is_pending());
        if lanes.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Lets the other tasks of the thread run before this one goes on.
pub(super) async fn turn() {
    let mut is_over = false;
    poll_fn(|cx| {
        if is_over {
            return Poll::Ready(());
        }
        is_over = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
