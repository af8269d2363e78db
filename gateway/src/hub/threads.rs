//! The threads of the shards: each has a runtime of its own and performs what its mailbox brings.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::{Handle, LocalOptions};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::mailbox::{Batch, Mailbox};
use super::shard::Shard;
use super::{HubCore, Inlet};
use crate::dispatch::ResyncReason;

/// The threads that shards run on, each with a runtime of its own.
pub struct Threads(Vec<Thread>);

struct Thread {
    runtime: Handle,
    start: Option<oneshot::Sender<ShardStart>>,
    ended: oneshot::Receiver<()>,
    thread: std::thread::JoinHandle<()>,
}

/// What a thread needs to run its shard.
struct ShardStart {
    index: u16,
    core: Arc<HubCore>,
    inlet: Arc<Inlet>,
    shutdown: CancellationToken,
}

impl Drop for ShardStart {
    /// However the thread ends, no caller waits for its answers.
    fn drop(&mut self) {
        self.inlet.mailbox.close();
    }
}

impl Threads {
    /// Starts `shards` threads, which wait for [`Hub::start`](super::Hub::start). Dropped before that, they end.
    ///
    /// # Errors
    /// A thread or its runtime cannot be created.
    pub fn start(shards: usize) -> std::io::Result<Self> {
        (0..shards)
            .map(Thread::start)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Starts a shard on each thread, and returns how to reach them.
    pub(super) fn begin(
        &mut self,
        core: &Arc<HubCore>,
        shutdown: &CancellationToken,
    ) -> Arc<[Arc<Inlet>]> {
        let begin = |(index, thread): (usize, &mut Thread)| {
            let inlet = Arc::new(Inlet {
                mailbox: Mailbox::new(),
                turn: Default::default(),
                overflowed: AtomicBool::new(false),
            });
            let start = ShardStart {
                index: index as u16,
                core: Arc::clone(core),
                inlet: Arc::clone(&inlet),
                shutdown: shutdown.clone(),
            };
            if let Some(thread) = thread.start.take() {
                // A thread that is gone drops it, and so closes its mailbox.
                let _ = thread.send(start);
            }
            inlet
        };
        self.0.iter_mut().enumerate().map(begin).collect()
    }

    /// Returns the runtime of the only thread, or `None` if there are several.
    pub fn only(&self) -> Option<Handle> {
        match &*self.0 {
            [only] => Some(only.runtime.clone()),
            _ => None,
        }
    }

    /// Waits until any thread has ended, asked or not.
    pub async fn any_ended(&mut self) {
        futures_util::future::select_all(self.0.iter_mut().map(|thread| &mut thread.ended))
            .await
            .0
            .ok();
    }

    /// Waits for all threads, and returns whether none panicked.
    pub fn join(self) -> bool {
        let panicked = self
            .0
            .into_iter()
            .filter_map(|thread| thread.thread.join().err())
            .count();
        panicked == 0
    }
}

impl Thread {
    fn start(index: usize) -> std::io::Result<Self> {
        let (start, started) = oneshot::channel::<ShardStart>();
        let (ends, ended) = oneshot::channel();
        // A local runtime must be created on the thread that it runs on.
        let (created, outcome) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("shard-{index}"))
            .spawn(move || {
                // However this thread ends, the supervisor sees it.
                let _ends: oneshot::Sender<()> = ends;
                match tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build_local(LocalOptions::default())
                {
                    Ok(runtime) => {
                        let _ = created.send(Ok(runtime.handle().clone()));
                        runtime.block_on(async {
                            let Ok(start) = started.await else { return };
                            // A task like those of connections: waking the future of `block_on` itself would poll all sockets.
                            if let Err(error) = tokio::task::spawn_local(run(start)).await
                                && error.is_panic()
                            {
                                std::panic::resume_unwind(error.into_panic());
                            }
                        });
                        // Does not wait for blocking tasks, such as the look-up of a name.
                        runtime.shutdown_background();
                    }
                    Err(error) => drop(created.send(Err(error))),
                }
            })?;
        let runtime = outcome
            .recv()
            .unwrap_or_else(|_| Err(std::io::Error::other("the thread of a shard ended")))?;
        Ok(Self {
            runtime,
            start: Some(start),
            ended,
            thread,
        })
    }
}

/// Capacity for so many commands is kept between batches.
const KEPT_BATCH: usize = 4096;

async fn run(start: ShardStart) {
    let ShardStart {
        index,
        core,
        inlet,
        shutdown,
    } = &start;
    let shard = Shard::new(*index, Arc::clone(core));
    let mut live = core.live.clone();
    let mut timer = tokio::task::spawn_local(Rc::clone(&shard).run_timer());
    let answering = Arc::clone(inlet);
    tokio::task::spawn_local(async move { answering.turn.answer().await });
    let mut batch = Batch::new();
    loop {
        tokio::select! {
            () = inlet.mailbox.take(&mut batch) => {
                shard.perform(&mut batch, &inlet.mailbox).await;
                // Other tasks run even if the mailbox is never empty.
                tokio::task::coop::consume_budget().await;
                if batch.capacity() > KEPT_BATCH {
                    batch = Batch::new();
                }
                if inlet.overflowed.swap(false, Ordering::Acquire) {
                    shard.resync(ResyncReason::Overloaded).await;
                }
            }
            Ok(()) = live.changed() => shard.reload(),
            ended = &mut timer => match ended {
                Ok(never) => match never {},
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => return,
            },
            () = shutdown.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;
    use crate::clock::SystemClock;
    use crate::config::Live;
    use crate::hub::{Hub, HubOptions, bus_for_tests};
    use crate::metrics::Metrics;

    fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..1000 {
            if condition() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("waited in vain: {what}");
    }

    #[tokio::test]
    async fn a_shard_whose_thread_is_stuck_is_named_until_it_turns_again() {
        let mut threads = Threads::start(2).unwrap();
        let metrics = Metrics::new();
        let live = watch::channel(Arc::new(Live::defaults())).1;
        let shutdown = CancellationToken::new();
        let options = HubOptions {
            bus: bus_for_tests(&live, &metrics).await,
            live,
            clock: Arc::new(SystemClock),
            metrics,
            shutdown: shutdown.clone(),
        };
        let hub = Hub::start(options, &mut threads);
        let mut turns = hub.turns(Duration::from_millis(1));
        let (release, held) = mpsc::channel::<()>();
        // The first of two that are equally empty.
        hub.place(move |_, _| {
            let _ = held.recv();
        });
        eventually("the stuck one has missed ten", || {
            turns.check() >= Some((0, Duration::from_millis(10)))
        });
        let (shard, _) = turns.check().unwrap();
        assert_eq!(shard, 0, "the other one turns");
        drop(release);
        eventually("both turn", || {
            std::thread::sleep(Duration::from_millis(20));
            turns.check().is_none()
        });
        shutdown.cancel();
        assert!(threads.join());
    }
}
