//! Two waits, of which the first to end counts.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

/// Ends when either does; the other is dropped.
pub async fn first_of(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|cx| match one.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => other.as_mut().poll(cx),
    })
    .await;
}
