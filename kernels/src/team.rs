//! A team of threads that share the tasks of one kernel after another.
//!
//! A model is some thousand small kernels behind each other: a thread that goes to sleep between two of them, or is handed its part through a
//! queue, loses more than the part takes. While a team works ([`Team::run`]), its members watch one word of memory for the next job and
//! take tasks from a counter; whoever is not there in time does not hold up the others. Members sleep when nothing comes for a while.
//!
//! Tasks of tasks run where they are. Outside of a team everything runs on the calling thread.
#![expect(
    unsafe_code,
    reason = "a job is borrowed by threads that outlive it; it ends when all have left it"
)]

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};

/// Looks at the next job before a member gives others its processor, and how often it does that before it sleeps: some hundred
/// microseconds.
const LOOKS: (u32, u32) = (1000, 300);
/// Parts of what is left of the tasks that each thread would get: it takes one of them at a time.
const SHARE: usize = 4;

/// Bits of [`Shared::state`]: the number of the job, whether it is open, and how many members are in it.
const JOB: u64 = 1 << 32;
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

type Job<'a> = dyn Fn() + Sync + 'a;

thread_local! {
    /// The team that tasks of this thread are shared with.
    static CURRENT: Cell<*const Team> = const { Cell::new(ptr::null()) };
}

/// Threads that work together.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    members: Vec<JoinHandle<()>>,
    busy: AtomicBool,
}

struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Option<*const Job<'static>>>,
    asleep: AtomicUsize,
    over: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

// SAFETY: `job` is written by the thread that runs the team, while no job is open and nobody is inside; members read it when they are inside.
unsafe impl Sync for Shared {}
// SAFETY: the job behind the pointer may be called from any thread.
unsafe impl Send for Shared {}

impl Team {
    /// A team of `threads`: the one that calls [`run`](Team::run), and new ones.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            asleep: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        });
        let mut team = Self {
            shared,
            members: Vec::new(),
            busy: AtomicBool::new(false),
        };
        for i in 1..threads {
            let shared = Arc::clone(&team.shared);
            let builder = thread::Builder::new().name(format!("kernel {i}"));
            // Those that are there already end with the team.
            team.members.push(builder.spawn(move || shared.attend())?);
        }
        Ok(team)
    }

    /// The team of `threads` that everybody shares who asks for as many.
    ///
    /// # Errors
    /// As for [`new`](Team::new).
    pub fn of(threads: usize) -> io::Result<Arc<Self>> {
        static TEAMS: Mutex<BTreeMap<usize, Weak<Team>>> = Mutex::new(BTreeMap::new());
        let mut teams = TEAMS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(team) = teams.get(&threads).and_then(Weak::upgrade) {
            return Ok(team);
        }
        let team = Arc::new(Self::new(threads)?);
        teams.insert(threads, Arc::downgrade(&team));
        Ok(team)
    }

    /// Threads of the team.
    pub fn threads(&self) -> usize {
        self.members.len() + 1
    }

    /// Does `work` on this thread; the tasks in it are shared with the team. While another thread has the team, they are not.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        let free = || {
            let taken = self.busy.swap(true, Ordering::Acquire);
            !taken
        };
        if self.members.is_empty() || !CURRENT.get().is_null() || !free() {
            return work();
        }
        let _left = Left(&self.busy);
        let _was = Current::set(self);
        work()
    }

    /// Lets members call `job`, calls it on this thread, and returns when all have come back from it.
    fn call(&self, job: &Job<'_>) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime is taken off. No member calls the job after this function: it closes the job, and waits for those inside.
        let job: &'static Job<'static> = unsafe { std::mem::transmute(job) };
        let number = shared.state.load(Ordering::Relaxed) & !(JOB - 1);
        // SAFETY: no job is open, and nobody is inside of one: this thread has the team.
        unsafe { *shared.job.get() = Some(job) };
        let open = number.wrapping_add(JOB) | OPEN;
        shared.state.store(open, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            for member in &self.members {
                member.thread().unpark();
            }
        }
        let _closed = Closed(shared);
        job();
    }
}

/// Closes a job, and waits for those inside: on whatever way its function ends.
struct Closed<'a>(&'a Shared);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while self.0.state.load(Ordering::Acquire) & INSIDE != 0 {
            looks += 1;
            if looks < LOOKS.0 {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }
}

/// Leaves a job, on whatever way it ends.
struct Inside<'a>(&'a Shared);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        for member in self.members.drain(..) {
            member.thread().unpark();
            // A member catches what its jobs throw.
            let _ = member.join();
        }
    }
}

/// Gives the team back.
struct Left<'a>(&'a AtomicBool);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The team of this thread for a while.
struct Current(*const Team);

impl Current {
    fn set(team: *const Team) -> Self {
        Self(CURRENT.replace(team))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

impl Shared {
    /// What a member does.
    fn attend(&self) {
        let mut seen = 0;
        while let Some(state) = self.next(seen) {
            let inside = self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if inside.is_err() {
                continue;
            }
            let _inside = Inside(self);
            seen = state & !(JOB - 1);
            // SAFETY: this member is inside of an open job: nobody writes it.
            if let Some(job) = unsafe { *self.job.get() } {
                // SAFETY: whoever opened the job waits until all who are inside have left.
                unsafe { (*job)() };
            }
        }
    }

    /// Waits for a job other than the one seen last; nothing if the team is over.
    fn next(&self, seen: u64) -> Option<u64> {
        let is_new = |state: u64| state & OPEN != 0 && state & !(JOB - 1) != seen;
        let mut looks = 0;
        loop {
            let state = self.state.load(Ordering::Acquire);
            if is_new(state) {
                return Some(state);
            }
            if self.over.load(Ordering::Relaxed) {
                return None;
            }
            looks += 1;
            if looks < LOOKS.0 {
                std::hint::spin_loop();
            } else if looks < LOOKS.0 + LOOKS.1 {
                thread::yield_now();
            } else {
                self.asleep.fetch_add(1, Ordering::SeqCst);
                // Who opens a job looks for sleepers behind that, so one of both sees the other.
                let state = self.state.load(Ordering::SeqCst);
                if !is_new(state) && !self.over.load(Ordering::SeqCst) {
                    thread::park();
                }
                self.asleep.fetch_sub(1, Ordering::SeqCst);
                looks = 0;
            }
        }
    }
}

/// Threads that tasks of this one are shared with, itself included.
pub fn threads() -> usize {
    let team = CURRENT.get();
    if team.is_null() {
        return 1;
    }
    // SAFETY: `Team::run` borrows the team as long as it is the current one.
    unsafe { &*team }.threads()
}

/// Calls `task` with each number below `count`, once, on the threads of the team. A task that panics lets the others end first.
pub fn range(count: usize, task: impl Fn(usize) + Sync) {
    let team = CURRENT.get();
    if team.is_null() || count < 2 {
        (0..count).for_each(task);
        return;
    }
    // SAFETY: `Team::run` borrows the team as long as it is the current one.
    let team = unsafe { &*team };
    let parts = SHARE * team.threads();
    let next = AtomicUsize::new(0);
    let thrown: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
    let share = || {
        let mut from = next.load(Ordering::Relaxed);
        while from < count {
            let to = from + ((count - from) / parts).max(1);
            match next.compare_exchange_weak(from, to, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    (from..to).for_each(&task);
                    from = next.load(Ordering::Relaxed);
                }
                Err(now) => from = now,
            }
        }
    };
    let job = || {
        // Tasks of tasks are not shared: nobody would be there for them.
        let _was = Current::set(ptr::null());
        if let Err(why) = catch_unwind(AssertUnwindSafe(share)) {
            next.store(count, Ordering::Relaxed);
            let mut thrown = thrown.lock().unwrap_or_else(PoisonError::into_inner);
            if thrown.is_none() {
                *thrown = Some(why);
            } else {
                // One is told of. Dropping another one could throw as well.
                std::mem::forget(why);
            }
        }
    };
    team.call(&job);
    let thrown = thrown.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(why) = thrown {
        resume_unwind(why);
    }
}

/// Calls `task` with each item, on the threads of the team.
pub fn each<T: Send>(items: impl IntoIterator<Item = T>, task: impl Fn(T) + Sync) {
    if threads() == 1 {
        items.into_iter().for_each(task);
        return;
    }
    let slots: Vec<Mutex<Option<T>>> = items.into_iter().map(|x| Mutex::new(Some(x))).collect();
    range(slots.len(), |i| {
        let item = slots[i]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(item) = item {
            task(item);
        }
    });
}

/// [`each`] with a task that may fail; later ones may then not be called.
///
/// # Errors
/// One of the tasks'.
pub fn try_each<T: Send, E: Send>(
    items: impl IntoIterator<Item = T>,
    task: impl Fn(T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    if threads() == 1 {
        return items.into_iter().try_for_each(task);
    }
    let (failed, found) = (AtomicBool::new(false), Mutex::new(None));
    each(items, |item| {
        if failed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(why) = task(item) {
            failed.store(true, Ordering::Relaxed);
            *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.map_or(Ok(()), Err)
}

/// What `task` makes of each item, in their order, on the threads of the team.
pub fn map<T: Send, R: Send>(
    items: impl IntoIterator<Item = T>,
    task: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    if threads() == 1 {
        return items.into_iter().map(task).collect();
    }
    let items: Vec<T> = items.into_iter().collect();
    let mut made: Vec<Option<R>> = items.iter().map(|_| None).collect();
    each(made.iter_mut().zip(items), |(to, item)| {
        *to = Some(task(item));
    });
    made.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_task_is_done_once() {
        let team = Team::new(4).unwrap();
        for count in [0, 1, 2, 5, 1000] {
            for _ in 0..200 {
                let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                team.run(|| {
                    range(count, |i| {
                        done[i].fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        }
        let squares = team.run(|| map(0..100, |i| i * i));
        assert_eq!(squares, (0..100).map(|i| i * i).collect::<Vec<_>>());
    }

    #[test]
    fn tasks_are_shared_and_theirs_are_not() {
        let team = Team::new(3).unwrap();
        let seen = Mutex::new(Vec::new());
        team.run(|| {
            assert_eq!(threads(), 3);
            range(3, |_| {
                assert_eq!(threads(), 1);
                thread::sleep(Duration::from_millis(30));
                let me = thread::current().id();
                range(2, |_| assert_eq!(me, thread::current().id()));
                let mut seen = seen.lock().unwrap();
                if !seen.contains(&me) {
                    seen.push(me);
                }
            });
            assert_eq!(threads(), 3);
        });
        assert_eq!(seen.into_inner().unwrap().len(), 3);
        assert_eq!(threads(), 1);
    }

    #[test]
    fn sleepers_are_woken() {
        let team = Team::new(2).unwrap();
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(50));
            let ids = team.run(|| {
                map(0..2, |_| {
                    thread::sleep(Duration::from_millis(20));
                    thread::current().id()
                })
            });
            assert_ne!(ids[0], ids[1]);
        }
    }

    #[test]
    fn a_team_that_is_taken_is_done_without() {
        let team = Team::of(2).unwrap();
        assert!(Arc::ptr_eq(&team, &Team::of(2).unwrap()));
        team.run(|| {
            thread::scope(|scope| {
                let other = scope.spawn(|| team.run(threads));
                assert_eq!(other.join().unwrap(), 1);
            });
            assert_eq!(threads(), 2);
        });
    }

    /// What throws when it is dropped.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(thread::panicking(), "dropped");
        }
    }

    #[test]
    fn what_a_task_throws_arrives_and_leaves_the_team_in_order() {
        let team = Team::new(3).unwrap();
        for _ in 0..50 {
            let thrown = catch_unwind(AssertUnwindSafe(|| {
                team.run(|| range(9, |i| assert!(i != 5, "five")));
            }));
            let why = thrown.unwrap_err();
            let why = why.downcast_ref::<&str>().map(|s| (*s).to_owned());
            assert_eq!(why.as_deref(), Some("five"));
            assert_eq!(threads(), 1);
        }
        // On two threads at once.
        let both = std::sync::Barrier::new(2);
        let thrown = catch_unwind(AssertUnwindSafe(|| {
            team.run(|| {
                range(2, |_| {
                    both.wait();
                    std::panic::panic_any(Bomb);
                });
            });
        }));
        std::mem::forget(thrown);
        let failed = team.run(|| try_each(0..9, |i| if i == 7 { Err(i) } else { Ok(()) }));
        assert_eq!(failed, Err(7));
        assert_eq!(team.run(threads), 3);
    }
}
