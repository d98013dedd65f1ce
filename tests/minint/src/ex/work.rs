//! System worker threads and their queues.
//!
//! A pool of threads takes jobs in order. Jobs are added at IRQL up to
//! DISPATCH_LEVEL and run at PASSIVE_LEVEL, without any lock. When all threads of
//! a pool are busy the one that takes a job first starts another, up to a limit,
//! so a job that blocks holds up nothing else.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, Ordering};

use wdk_standin::wdk_sys::{KSEMAPHORE, PVOID, PWORK_QUEUE_ITEM, ULONG};

use super::nt;
use crate::ke::irql::{DISPATCH_LEVEL, PASSIVE_LEVEL, current, require_irql};
use crate::ke::spinlock::SpinLock;
use crate::ob::argument::borrow;

/// Work for a thread.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Threads and the queue that they serve.
pub(crate) struct Pool {
    jobs: SpinLock<VecDeque<Job>>,
    semaphore: UnsafeCell<core::mem::MaybeUninit<KSEMAPHORE>>,
    idle: AtomicU32,
    threads: AtomicU32,
    most: u32,
}

// SAFETY: the semaphore is initialized once in `start` and serialised by the
// dispatcher; the rest is locked or atomic.
unsafe impl Sync for Pool {}

/// `ExQueueWorkItem`, work items, deferred deletion.
pub(crate) static SYSTEM: Pool = Pool::new(16);

impl Pool {
    /// A pool of at most this many threads, not started.
    pub(crate) const fn new(most: u32) -> Self {
        Self {
            jobs: SpinLock::new(VecDeque::new()),
            semaphore: UnsafeCell::new(core::mem::MaybeUninit::uninit()),
            idle: AtomicU32::new(0),
            threads: AtomicU32::new(0),
            most,
        }
    }

    fn semaphore(&self) -> *mut KSEMAPHORE {
        self.semaphore.get().cast()
    }

    /// Starts the first threads. PASSIVE_LEVEL, once.
    pub(crate) fn start(&'static self, threads: u32) {
        // SAFETY: nobody uses it before `start`.
        unsafe { nt::KeInitializeSemaphore(self.semaphore(), 0, i32::MAX) };
        for _ in 0..threads {
            self.add_thread();
        }
    }

    fn add_thread(&'static self) {
        let number = self.threads.fetch_add(1, Ordering::Relaxed);
        if number >= self.most || !start_thread(serve, core::ptr::from_ref(self).cast_mut().cast())
        {
            let _ = self.threads.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Adds a job. IRQL at most DISPATCH_LEVEL.
    pub(crate) fn add(&self, job: Job) {
        self.jobs.lock().push_back(job);
        // SAFETY: initialized in `start`.
        unsafe { nt::KeReleaseSemaphore(self.semaphore(), 0, 1, 0) };
    }

    fn run(&'static self) -> ! {
        loop {
            let _ = self.idle.fetch_add(1, Ordering::SeqCst);
            let _ = super::event::wait_for(self.semaphore().cast(), None);
            let left = self.idle.fetch_sub(1, Ordering::SeqCst) - 1;
            if left == 0 {
                self.add_thread();
            }
            let job = self.jobs.lock().pop_front();
            if let Some(job) = job {
                job();
                crate::require!(
                    current() == PASSIVE_LEVEL,
                    "worker routine",
                    "returned at IRQL {}",
                    current()
                );
            }
        }
    }
}

unsafe extern "C" fn serve(pool: PVOID) {
    // SAFETY: `add_thread` passes a `&'static Pool`.
    let pool: &'static Pool = unsafe { &*pool.cast::<Pool>() };
    pool.run()
}

/// Starts a thread of the System process. PASSIVE_LEVEL.
pub(crate) fn start_thread(routine: unsafe extern "C" fn(PVOID), context: PVOID) -> bool {
    let mut handle = core::ptr::null_mut();
    // SAFETY: all pointers outlive the call; the routine is `'static`.
    let status = unsafe {
        nt::PsCreateSystemThread(
            &raw mut handle,
            0x001F_FFFF,
            core::ptr::null_mut(),
            core::ptr::null_mut(),
            core::ptr::null_mut(),
            Some(routine),
            context,
        )
    };
    if status < 0 {
        return false;
    }
    let _ = crate::ob::close_handle(handle);
    true
}

/// Starts the system's pool.
pub(super) fn start() {
    SYSTEM.start(4);
}

struct Shared(*mut c_void);
// SAFETY: carries an address to the one job that uses it.
unsafe impl Send for Shared {}

/// Runs `f` on an object in a system worker. IRQL at most DISPATCH_LEVEL.
pub(crate) fn defer(f: fn(*mut c_void), object: *mut c_void) {
    let shared = Shared(object);
    SYSTEM.add(Box::new(move || {
        let shared = shared;
        f(shared.0);
    }));
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExQueueWorkItem(item: PWORK_QUEUE_ITEM, queue: ULONG) {
    const API: &str = "ExQueueWorkItem";
    const MAXIMUM_WORK_QUEUE: ULONG = 7;
    require_irql(DISPATCH_LEVEL, API);
    crate::require!(
        queue < MAXIMUM_WORK_QUEUE + 32,
        API,
        "no such queue: {}",
        queue
    );
    let links = borrow!(item, API);
    crate::require!(
        links.List.Flink.is_null(),
        API,
        "the item at {:p} is queued already",
        item
    );
    links.List.Flink = item.cast();
    let shared = Shared(item.cast());
    SYSTEM.add(Box::new(move || {
        let shared = shared;
        let item = borrow!(
            shared.0.cast::<wdk_standin::wdk_sys::WORK_QUEUE_ITEM>(),
            API
        );
        let (routine, parameter) = (item.WorkerRoutine, item.Parameter);
        // The routine may free or queue the item again.
        item.List.Flink = core::ptr::null_mut();
        if let Some(routine) = routine {
            // SAFETY: the driver's routine, at PASSIVE_LEVEL as documented.
            unsafe { routine(parameter) };
        }
    }));
}
