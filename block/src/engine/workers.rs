//! Threads with an executor each.
//!
//! What enters: functions that build a future on the worker that will run it. The mailbox of a
//! worker is bounded, and a worker takes from it only while its task table has room.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::thread::JoinHandle;

use super::executor::{Body, Executor, ExecutorConfig, current};
use super::mailbox::{MailReceiver, MailSender, mailbox};

/// Functions that may wait in front of a worker.
const JOBS_MAX: usize = 1024;

type Task = Pin<Box<dyn Future<Output = ()>>>;

enum Job {
    Start(Box<dyn FnOnce() -> Task + Send>),
    Stop,
}

/// A fixed number of threads, each with an [`Executor`]. Dropped without [`Workers::shutdown`],
/// they end by themselves when every handle is gone and every task has ended.
pub struct Workers {
    handle: WorkersHandle,
    threads: Vec<JoinHandle<()>>,
}

/// Starts tasks on the threads of a [`Workers`].
#[derive(Clone)]
pub struct WorkersHandle {
    mailboxes: Arc<[MailSender<Job>]>,
}

impl Workers {
    /// Starts `count` threads (at least one) named `name-0`, `name-1` and so on.
    ///
    /// # Errors
    /// What the system says when it can't make a thread or a ring.
    pub fn start(name: &str, count: usize, config: ExecutorConfig) -> io::Result<Self> {
        let mut mailboxes = Vec::new();
        let mut threads = Vec::new();
        for worker in 0..count.max(1) {
            let (sender, receiver) = mailbox(JOBS_MAX);
            let (report, reported) = mpsc::sync_channel(1);
            let thread = std::thread::Builder::new()
                .name(format!("{name}-{worker}"))
                .spawn(move || run(&config, receiver, &report))?;
            // A worker that ended without a report has panicked; its mailbox is closed already.
            reported.recv().unwrap_or_else(|_| Err(io::Error::other("the worker panicked")))?;
            mailboxes.push(sender);
            threads.push(thread);
        }
        Ok(Self { handle: WorkersHandle { mailboxes: mailboxes.into() }, threads })
    }

    /// Number of workers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.handle.count()
    }

    /// See [`WorkersHandle::spawn_on`].
    pub fn spawn_on<F, Fut>(&self, worker: usize, build: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        self.handle.spawn_on(worker, build);
    }

    /// A handle for other threads and tasks.
    #[must_use]
    pub fn handle(&self) -> WorkersHandle {
        self.handle.clone()
    }

    /// Lets the tasks that were started before this call run to their end, then ends the threads.
    ///
    /// # Panics
    /// When a task panicked, which has ended its worker: with the panic of that task.
    pub fn shutdown(self) {
        for mailbox in self.handle.mailboxes.iter() {
            // A worker that is gone already needs no word.
            let _ = mailbox.send(Job::Stop);
        }
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl WorkersHandle {
    /// Number of workers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.mailboxes.len()
    }

    /// Calls `build` on a worker (its number is taken modulo [`WorkersHandle::count`]) and runs
    /// the future it returns there. Allocates. After [`Workers::shutdown`] `build` is dropped
    /// without being called.
    ///
    /// Blocks while 1024 others wait in front of the worker, which takes them only while its task
    /// table has room: keep the number of tasks below the bound of the table by other means. A
    /// worker that blocks in front of itself waits for ever.
    pub fn spawn_on<F, Fut>(&self, worker: usize, build: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let start = Box::new(move || -> Task { Box::pin(build()) });
        // An error means that the worker has ended, see above.
        let _ = self.mailboxes[worker % self.count()].send(Job::Start(start));
    }
}

fn run(
    config: &ExecutorConfig,
    mut jobs: MailReceiver<Job>,
    report: &mpsc::SyncSender<io::Result<()>>,
) {
    let executor = match Executor::new(config) {
        Ok(executor) => executor,
        Err(error) => {
            // The starter waits for exactly this one message.
            let _ = report.send(Err(error));
            return;
        }
    };
    let _ = report.send(Ok(()));
    executor.block_on(async move {
        while let Some(Job::Start(build)) = jobs.recv().await {
            // Built first: the building may start tasks, too.
            let task = build();
            until(|core| core.has_room()).await;
            let started = current().start(Body::Boxed(task));
            assert!(started.is_ok(), "there was room in the task table");
        }
        drop(jobs);
        until(|core| core.live_tasks() == 0).await;
    });
}

/// Waits for tasks to end until a condition on the task table holds.
async fn until(condition: impl Fn(&super::executor::Core) -> bool) {
    poll_fn(|cx| {
        let core = current();
        if condition(&core) {
            return Poll::Ready(());
        }
        core.wake_at_task_end(cx.waker());
        Poll::Pending
    })
    .await;
}
