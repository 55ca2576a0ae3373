//! The executor and what runs on it, together.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::rc::Rc;

use std::time::Duration;

use super::*;

fn executor() -> Executor {
    Executor::new(&ExecutorConfig::default()).unwrap()
}

#[test]
fn tasks_run_beside_the_main_future() {
    let done = Rc::new(Cell::new(0));
    let seen = Rc::clone(&done);
    executor().block_on(async move {
        for _ in 0..10 {
            let done = Rc::clone(&done);
            spawn(async move {
                sleep(Duration::from_millis(1)).await;
                done.set(done.get() + 1);
            });
        }
        while seen.get() < 10 {
            sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn a_mailbox_wakes_the_executor_from_another_thread() {
    let (sender, mut receiver) = mailbox::<u32>(4);
    let other = std::thread::spawn(move || {
        for number in 0..10_000 {
            sender.send(number).unwrap();
        }
    });
    executor().block_on(async {
        for expected in 0..10_000 {
            assert_eq!(receiver.recv().await, Some(expected));
        }
        assert_eq!(receiver.recv().await, None, "every sender is gone");
    });
    other.join().unwrap();
}
