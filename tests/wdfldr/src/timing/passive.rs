//! Callbacks in a system worker thread, counted so that an end can be awaited.

use core::{
    ffi::c_void,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use wdk_standin::wdk_sys::{PDEVICE_OBJECT, ntddk::KeGetCurrentThread};

use crate::{
    nt::{event::Event, spinlock::SpinLock, worker::Worker},
    object::store::Handle,
};

pub(super) struct Passive {
    worker: Worker,
    queued: AtomicBool,
    outstanding: SpinLock<u32>,
    idle: Event,
    thread: AtomicUsize,
}

fn this_thread() -> usize {
    // SAFETY: reads the processor's own record.
    unsafe { KeGetCurrentThread() }.addr()
}

impl Passive {
    pub(super) fn new(device: PDEVICE_OBJECT) -> Option<Self> {
        Some(Self {
            worker: Worker::new(device)?,
            queued: AtomicBool::new(false),
            outstanding: SpinLock::new(0),
            idle: Event::new(),
            thread: AtomicUsize::new(0),
        })
    }

    /// Once it lies in its object.
    pub(super) fn initialize(&self) {
        self.idle.initialize(false, true);
    }

    /// Queues the call unless it is queued already.
    pub(super) fn queue(
        &self,
        run: unsafe extern "C" fn(PDEVICE_OBJECT, *mut c_void),
        object: Handle,
    ) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        {
            let mut outstanding = self.outstanding.lock();
            *outstanding += 1;
            self.idle.clear();
        }
        self.worker.queue(run, object.0);
    }

    /// In the worker thread: the call itself.
    pub(super) fn run(&self, call: impl FnOnce()) {
        self.queued.store(false, Ordering::Release);
        self.thread.store(this_thread(), Ordering::Release);
        call();
        self.thread.store(0, Ordering::Release);
        let mut outstanding = self.outstanding.lock();
        *outstanding -= 1;
        if *outstanding == 0 {
            self.idle.set();
        }
    }

    /// Until no call is queued or runs; from inside the call it does not wait.
    pub(super) fn wait(&self) {
        if self.thread.load(Ordering::Acquire) != this_thread() {
            let _ = self.idle.wait(None);
        }
    }
}
