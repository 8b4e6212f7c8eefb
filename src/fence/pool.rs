//! Threads for work within limits: a few, lent one piece of work at a time. One whose work is left is lost, and another takes its place.

use super::{Fallen, Limits, allocator};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A stack in which half a million nested values can be dropped; its pages are taken when they are needed.
const STACK: usize = 256 << 20;
/// How many threads there may be at once.
const THREADS: usize = 8;
/// How often a thread is looked at that has not answered. Time is counted in looks: while the process is stopped, none passes.
const TICK: Duration = Duration::from_millis(10);

type Job = Box<dyn FnOnce() + Send>;

struct Worker {
    jobs: Sender<Job>,
    /// Whether it wanted more memory than it may have, and so stands still.
    over: &'static AtomicBool,
}

struct Pool {
    idle: Vec<Worker>,
    live: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool {
    idle: Vec::new(),
    live: 0,
});
static RETURNED: Condvar = Condvar::new();

/// Takes a thread, waiting for one where all are at work.
fn take() -> Result<Worker, Fallen> {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(worker) = pool.idle.pop() {
            return Ok(worker);
        }
        if pool.live < THREADS {
            let worker = start()?;
            pool.live += 1;
            return Ok(worker);
        }
        pool = RETURNED.wait(pool).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Gives a thread back, or says that one is lost.
fn give(worker: Option<Worker>) {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    match worker {
        Some(worker) => pool.idle.push(worker),
        None => pool.live -= 1,
    }
    RETURNED.notify_one();
}

fn start() -> Result<Worker, Fallen> {
    let (jobs, next) = mpsc::channel::<Job>();
    let over = Box::leak(Box::new(AtomicBool::new(false)));
    let work = move || {
        while let Ok(job) = next.recv() {
            job();
        }
    };
    let thread = std::thread::Builder::new()
        .name("fence".to_owned())
        .stack_size(STACK);
    thread.spawn(work).map_err(|_| Fallen::NoThread)?;
    Ok(Worker { jobs, over })
}

/// Runs work that does not panic on one of the threads.
pub(super) fn run<T: Send + 'static>(
    limits: Limits,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fallen> {
    let worker = take()?;
    let over = worker.over;
    let (done, answer) = mpsc::sync_channel(1);
    let job = move || {
        let result = allocator::within(limits.bytes, over, work);
        let _ = done.send(result);
    };
    let mut looks = limits.time.as_millis() / TICK.as_millis() + 1;
    if worker.jobs.send(Box::new(job)).is_err() {
        give(None);
        return Err(Fallen::NoThread);
    }
    loop {
        let fallen = match answer.recv_timeout(TICK) {
            Ok(result) => {
                give(Some(worker));
                return Ok(result);
            }
            Err(RecvTimeoutError::Disconnected) => Fallen::Panicked,
            Err(RecvTimeoutError::Timeout) if over.load(Ordering::Acquire) => {
                Fallen::Large(limits.bytes)
            }
            Err(RecvTimeoutError::Timeout) if looks == 0 => Fallen::Late(limits.time),
            Err(RecvTimeoutError::Timeout) => {
                looks -= 1;
                continue;
            }
        };
        give(None);
        return Err(fallen);
    }
}
