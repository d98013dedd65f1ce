//! Timers: `KTIMER`, timeouts of waits, and what the clock does with them.
//!
//! One list in order of due time, under the dispatcher lock. The clock interrupt
//! compares the first due time, kept in an atomic, and asks for the dispatch
//! interrupt of processor 0, which fires what is due.

use core::cell::Cell;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use super::dispatcher::{self, Header, Locked, object};
use super::dpc::{self, Dpc};
use super::irql::{DISPATCH_LEVEL, require_irql};
use super::list::{List, container};
use super::thread::Thread;
use super::wait;
use crate::hal::clock;

/// `KTIMER`.
#[repr(C)]
#[derive(Debug)]
pub struct Timer {
    /// Signalled when it has fired.
    pub header: Header,
    due: Cell<u64>,
    link: List,
    dpc: Cell<*const Dpc>,
    processor: Cell<u32>,
    period: Cell<i32>,
}

const _: () = assert!(size_of::<Timer>() == size_of::<wdk_standin::wdk_sys::KTIMER>());
const _: () =
    assert!(offset_of!(Timer, period) == offset_of!(wdk_standin::wdk_sys::KTIMER, Period));
const _: () = assert!(offset_of!(Timer, dpc) == offset_of!(wdk_standin::wdk_sys::KTIMER, Dpc));

struct Timers {
    head: List,
}

// SAFETY: guarded by the dispatcher lock.
unsafe impl Sync for Timers {}

static TIMERS: Timers = Timers { head: List::new() };
static NEXT_DUE: AtomicU64 = AtomicU64::new(u64::MAX);

/// Interrupt time at which the next timer is due.
pub(crate) fn next_due() -> u64 {
    NEXT_DUE.load(Ordering::Acquire)
}

/// Interrupt time of a `LARGE_INTEGER` due time: negative is relative, else system time.
pub(crate) fn due_time(value: i64) -> u64 {
    if value <= 0 {
        clock::interrupt_time().saturating_add(value.unsigned_abs())
    } else {
        (value as u64).saturating_sub(clock::system_start()).max(1)
    }
}

pub(crate) fn initialize() {
    TIMERS.head.initialize();
}

fn timer_of(link: *const List) -> &'static Timer {
    let timer = container::<Timer>(link, offset_of!(Timer, link));
    // SAFETY: the list holds set timers by this link.
    unsafe { &*timer }
}

fn update_next() {
    let next = TIMERS
        .head
        .first()
        .map_or(u64::MAX, |link| timer_of(link).due.get());
    NEXT_DUE.store(next, Ordering::Release);
}

fn insert(timer: &Timer, due: u64) {
    timer.due.set(due);
    timer.header.inserted.set(1);
    // Behind all that are due no later.
    let mut before = TIMERS.head.first();
    while let Some(link) = before {
        if timer_of(link).due.get() > due {
            break;
        }
        before = TIMERS.head.after(link);
    }
    match before {
        Some(link) => timer_of(link).link.push_back(&timer.link),
        None => TIMERS.head.push_back(&timer.link),
    }
    update_next();
}

fn remove(timer: &Timer) -> bool {
    if timer.header.inserted.replace(0) == 0 {
        return false;
    }
    timer.link.remove();
    update_next();
    true
}

impl Timer {
    /// A timer that is not in use.
    pub const fn new() -> Self {
        Self {
            header: Header::new(),
            due: Cell::new(0),
            link: List::new(),
            dpc: Cell::new(ptr::null()),
            processor: Cell::new(0),
            period: Cell::new(0),
        }
    }

    /// Makes it a timer of this kind.
    pub fn initialize(&self, kind: u8) {
        self.header.initialize(kind, size_of::<Self>(), 0);
        self.dpc.set(ptr::null());
        self.period.set(0);
    }
}

impl Default for Timer {
    fn default() -> Self {
        Self::new()
    }
}

/// Starts the timeout of a wait.
pub(crate) fn start_thread_timer(_: &Locked, thread: &Thread, due: u64) {
    thread.timer.header.signal.set(0);
    insert(&thread.timer, due);
}

/// Ends the timeout of a wait.
pub(crate) fn cancel_thread_timer(_: &Locked, thread: &Thread) {
    remove(&thread.timer);
}

/// Fires what is due; in the dispatch interrupt of processor 0, at DISPATCH_LEVEL.
pub(crate) fn expire() {
    let locked = dispatcher::lock();
    let now = clock::interrupt_time();
    while let Some(link) = TIMERS.head.first() {
        let timer = timer_of(link);
        if timer.due.get() > now {
            break;
        }
        remove(timer);
        timer.header.signal.set(1);
        let period = timer.period.get();
        if period > 0 {
            let step = period as u64 * 10_000;
            // Periods that went by unseen are not made up for.
            let missed = (now - timer.due.get()) / step;
            insert(timer, timer.due.get() + (missed + 1) * step);
        }
        let dpc = timer.dpc.get();
        wait::test(&locked, &timer.header, 0);
        if !dpc.is_null() {
            // SAFETY: the DPC that the driver gave with the timer and keeps until it cancels.
            dpc::insert(unsafe { &*dpc }, 0, 0);
        }
    }
}

/// Each set timer with the routine of its DPC, for the unload check.
pub(crate) fn each(f: &mut dyn FnMut(usize, usize)) {
    let _locked = dispatcher::lock();
    let mut entry = TIMERS.head.first();
    while let Some(link) = entry {
        let timer = timer_of(link);
        let dpc = timer.dpc.get();
        // SAFETY: NULL, or a DPC as in `expire`.
        let routine = unsafe { dpc.as_ref() }.map_or(0, Dpc::routine);
        f(ptr::from_ref(timer) as usize, routine);
        entry = TIMERS.head.after(link);
    }
}

fn timer<'a>(timer: *mut c_void, api: &str) -> &'a Timer {
    require!(!timer.is_null(), api, "the timer is NULL");
    // SAFETY: the caller vouches for the timer; its type is checked next.
    let timer = unsafe { &*timer.cast::<Timer>() };
    let kind = timer.header.kind.get();
    require!(
        matches!(
            kind,
            object::NOTIFICATION_TIMER | object::SYNCHRONIZATION_TIMER
        ),
        api,
        "{:p} is no initialised timer",
        ptr::from_ref(timer)
    );
    timer
}

/// `KeInitializeTimer`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInitializeTimer(timer: *mut c_void) {
    // SAFETY: forwarded to the caller.
    unsafe { KeInitializeTimerEx(timer, 0) };
}

/// `KeInitializeTimerEx`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInitializeTimerEx(timer: *mut c_void, timer_type: i32) {
    require_irql(DISPATCH_LEVEL, "KeInitializeTimerEx");
    // SAFETY: the caller gives memory for a KTIMER.
    let timer = unsafe { &*timer.cast::<Timer>() };
    timer.initialize(object::NOTIFICATION_TIMER + (timer_type & 1) as u8);
}

/// `KeSetTimer`: whether it was set already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSetTimer(timer: *mut c_void, due: i64, dpc: *mut c_void) -> u8 {
    // SAFETY: forwarded to the caller.
    unsafe { KeSetTimerEx(timer, due, 0, dpc) }
}

/// `KeSetTimerEx`; the period is in milliseconds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSetTimerEx(
    object: *mut c_void,
    due: i64,
    period: i32,
    dpc: *mut c_void,
) -> u8 {
    let api = "KeSetTimerEx";
    require_irql(DISPATCH_LEVEL, api);
    require!(period >= 0, api, "the period is negative");
    let timer = timer(object, api);
    if !dpc.is_null() {
        dpc::check(dpc.cast(), api);
    }
    let _locked = dispatcher::lock();
    let was_set = remove(timer);
    timer.header.signal.set(0);
    timer.dpc.set(dpc.cast());
    timer.period.set(period);
    insert(timer, due_time(due));
    u8::from(was_set)
}

/// `KeSetCoalescableTimer`: the tolerance is not used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSetCoalescableTimer(
    timer: *mut c_void,
    due: i64,
    period: u32,
    _tolerance: u32,
    dpc: *mut c_void,
) -> u8 {
    // SAFETY: forwarded to the caller.
    unsafe { KeSetTimerEx(timer, due, period as i32, dpc) }
}

/// `KeCancelTimer`: whether it was set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeCancelTimer(object: *mut c_void) -> u8 {
    let api = "KeCancelTimer";
    require_irql(DISPATCH_LEVEL, api);
    let timer = timer(object, api);
    let _locked = dispatcher::lock();
    u8::from(remove(timer))
}

/// `KeReadStateTimer`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeReadStateTimer(object: *mut c_void) -> u8 {
    u8::from(timer(object, "KeReadStateTimer").header.signal.get() > 0)
}
