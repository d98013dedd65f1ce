//! The thread that turns what root mode saw into findings.
//!
//! One system thread at PASSIVE_LEVEL while monitoring runs. Every 20 ms it takes
//! the cores' events, lets the assembler make findings of them and wakes those
//! who wait; every second, and before each round that has something to judge, it
//! looks whether the system's list of drivers has changed. (A thread, not a timer
//! with its DPC and work item: the look asks the system for a list, which needs
//! PASSIVE_LEVEL and may wait.) While monitoring is off there is no thread. [`Drain::start`] and
//! [`Drain::stop`] are called under the `control` lock; the thread takes the
//! other locks in their order and never that one, so a stop can wait for it.

use core::cell::UnsafeCell;

use detector::wire::StartError;

use crate::clock;
use crate::control::Driver;
use crate::device::size_u32;
use crate::images::Look;
use crate::machine::Machine;
use crate::status::Failure;
use crate::wdk_crates::wdk_sys::{
    _EVENT_TYPE, _KWAIT_REASON, _MODE, HANDLE, KEVENT, LARGE_INTEGER, NT_SUCCESS,
    OBJ_KERNEL_HANDLE, OBJECT_ATTRIBUTES, PVOID, STATUS_SUCCESS, STATUS_TIMEOUT, THREAD_ALL_ACCESS,
    ntddk::{
        KeInitializeEvent, KeSetEvent, KeWaitForSingleObject, ObReferenceObjectByHandle,
        ObfDereferenceObject, PsCreateSystemThread, PsTerminateSystemThread, ZwClose,
    },
};

/// 20 ms, relative, in units of 100 ns.
const PERIOD: i64 = -20 * 10_000;
/// Rounds from one look at the list of drivers to the next: one second.
const ROUNDS_PER_REFRESH: u32 = 50;

/// The thread and what ends it.
pub(crate) struct Drain(UnsafeCell<Running>);

struct Running {
    /// Set when the thread is to end. Waited on by the thread.
    stop: KEVENT,
    /// The thread object, null while there is none.
    thread: PVOID,
}

// SAFETY: `thread` is touched under the `control` lock only; the event is the
// kernel's, good for any thread.
unsafe impl Sync for Drain {}
// SAFETY: moved only while no thread runs.
unsafe impl Send for Drain {}

impl Drain {
    /// No thread.
    pub(crate) fn new() -> Self {
        Self(UnsafeCell::new(Running {
            stop: KEVENT::default(),
            thread: core::ptr::null_mut(),
        }))
    }

    fn event(&self) -> *mut KEVENT {
        let running = self.0.get();
        // SAFETY: a field's address; nothing is read.
        unsafe { &raw mut (*running).stop }
    }

    fn thread(&self) -> *mut PVOID {
        let running = self.0.get();
        // SAFETY: a field's address; nothing is read.
        unsafe { &raw mut (*running).thread }
    }

    /// Starts the thread. Under the `control` lock, while there is none.
    pub(crate) fn start(&self, driver: &'static Driver) -> Result<(), Failure> {
        // SAFETY: no thread uses the event, and the driver never moves.
        unsafe { KeInitializeEvent(self.event(), _EVENT_TYPE::NotificationEvent, 0) };
        let mut attributes = OBJECT_ATTRIBUTES {
            Length: size_u32::<OBJECT_ATTRIBUTES>(),
            Attributes: OBJ_KERNEL_HANDLE,
            ..OBJECT_ATTRIBUTES::default()
        };
        let mut handle: HANDLE = core::ptr::null_mut();
        // SAFETY: PASSIVE_LEVEL; the driver outlives the thread.
        let status = unsafe {
            PsCreateSystemThread(
                &raw mut handle,
                THREAD_ALL_ACCESS,
                &raw mut attributes,
                core::ptr::null_mut(),
                core::ptr::null_mut(),
                Some(run),
                core::ptr::from_ref(driver).cast_mut().cast(),
            )
        };
        if !NT_SUCCESS(status) {
            return Err(Failure::new(StartError::NoMemory));
        }
        // SAFETY: a thread handle of ours; the object goes into our field. A
        // kernel handle with full access cannot be refused.
        let _ = unsafe {
            ObReferenceObjectByHandle(
                handle,
                THREAD_ALL_ACCESS,
                core::ptr::null_mut(),
                KERNEL_MODE,
                self.thread(),
                core::ptr::null_mut(),
            )
        };
        // SAFETY: our handle; the reference keeps the object.
        let _ = unsafe { ZwClose(handle) };
        Ok(())
    }

    /// Ends the thread and waits until it has. Under the `control` lock.
    pub(crate) fn stop(&self) {
        // SAFETY: under the lock nobody else touches the field.
        let thread = unsafe { core::ptr::replace(self.thread(), core::ptr::null_mut()) };
        if thread.is_null() {
            return;
        }
        // SAFETY: the event is initialized.
        let _ = unsafe { KeSetEvent(self.event(), 0, 0) };
        wait(thread, None);
        // SAFETY: the reference that `start` took.
        let _ = unsafe { ObfDereferenceObject(thread) };
    }
}

#[expect(clippy::cast_possible_truncation, reason = "0 or 1")]
const KERNEL_MODE: i8 = _MODE::KernelMode as i8;

/// Waits for a dispatcher object. `true` when the time was over first.
fn wait(object: PVOID, time: Option<i64>) -> bool {
    let mut limit = LARGE_INTEGER {
        QuadPart: time.unwrap_or(0),
    };
    let limit = match time {
        Some(_) => &raw mut limit,
        None => core::ptr::null_mut(),
    };
    // SAFETY: PASSIVE_LEVEL; the caller's object is live.
    let status =
        unsafe { KeWaitForSingleObject(object, _KWAIT_REASON::Executive, KERNEL_MODE, 0, limit) };
    status == STATUS_TIMEOUT
}

unsafe extern "C" fn run(context: PVOID) {
    // SAFETY: `start` gave us the driver, which outlives this thread.
    let driver: &'static Driver = unsafe { &*context.cast::<Driver>() };
    let mut rounds = 0;
    while wait(driver.drain.stop_event(), Some(PERIOD)) {
        rounds += 1;
        if rounds >= ROUNDS_PER_REFRESH {
            rounds = 0;
            driver.refresh_images(Look::Whole);
        }
        driver.look_at_entries();
        now(driver);
    }
    // SAFETY: this is the thread itself; nothing is left to be dropped.
    let _ = unsafe { PsTerminateSystemThread(STATUS_SUCCESS) };
}

/// Takes all events that wait. PASSIVE_LEVEL, no lock of the driver held.
pub(crate) fn now(driver: &Driver) {
    if waiting(driver) {
        // Before the events are judged: a module may have been unloaded since.
        driver.refresh_images(Look::List);
    }
    if round(driver) > 0 {
        driver.findings.wake(false);
    }
}

fn waiting(driver: &Driver) -> bool {
    driver.machine.lock().as_ref().is_some_and(Machine::waiting)
}

/// Takes all events. Returns the number of new findings.
fn round(driver: &Driver) -> u64 {
    let images = driver.images.lock();
    let slot = driver.machine.lock();
    let Some(machine) = &*slot else {
        return 0;
    };
    let mut round = driver.findings.round(clock::now());
    let view = images.view();
    let mut export = |base, offset| images.export(base, offset);
    let lost = machine.drain(&mut |event, page| {
        round.push(event, page, &view, &mut export);
    });
    round.lost(lost);
    round.finish()
}

impl Drain {
    /// What the thread waits on.
    pub(crate) fn stop_event(&self) -> PVOID {
        self.event().cast()
    }
}
