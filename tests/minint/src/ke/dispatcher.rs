//! Dispatcher objects, ready queues, the dispatcher lock and the context switch.
//!
//! All state here is guarded by the dispatcher lock: taken at DISPATCH_LEVEL with
//! interrupts on, held across a context switch and released by the thread that
//! comes next. Whoever holds it may call nothing that waits. [`Locked`] is the proof
//! that it is held.
//!
//! Priorities 0–31 as in NT; the highest ready thread that may run on a processor
//! runs there; threads of one priority take turns of [`QUANTUM`] ticks.

use core::cell::Cell;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::irql::{self, DISPATCH_LEVEL};
use super::list::{List, container};
use super::thread::{self, State, Thread};
use crate::hal::{apic, cpu, entry, instr};

/// Clock ticks of a turn.
pub const QUANTUM: i32 = 6;
/// Wait status of a thread whose wait is over by object 0.
pub const STATUS_SUCCESS: i32 = 0;
/// `STATUS_ABANDONED_WAIT_0`.
pub const STATUS_ABANDONED: i32 = 0x80;
/// `STATUS_TIMEOUT`.
pub const STATUS_TIMEOUT: i32 = 0x102;

/// Types of dispatcher objects, `KOBJECTS`.
pub mod object {
    /// Notification event.
    pub const NOTIFICATION_EVENT: u8 = 0;
    /// Synchronization event.
    pub const SYNCHRONIZATION_EVENT: u8 = 1;
    /// Mutex.
    pub const MUTANT: u8 = 2;
    /// Process.
    pub const PROCESS: u8 = 3;
    /// Semaphore.
    pub const SEMAPHORE: u8 = 5;
    /// Thread.
    pub const THREAD: u8 = 6;
    /// Notification timer.
    pub const NOTIFICATION_TIMER: u8 = 8;
    /// Synchronization timer.
    pub const SYNCHRONIZATION_TIMER: u8 = 9;
}

/// `DISPATCHER_HEADER`.
#[repr(C)]
#[derive(Debug)]
pub struct Header {
    /// One of [`object`].
    pub kind: Cell<u8>,
    /// Depends on the type.
    pub flags: Cell<u8>,
    /// Object length in 32-bit words.
    pub size: Cell<u8>,
    /// Timer inserted, and the like.
    pub inserted: Cell<u8>,
    /// Signalled if above 0.
    pub signal: Cell<i32>,
    /// Wait blocks.
    pub waiters: List,
}

const _: () = assert!(size_of::<Header>() == size_of::<wdk_standin::wdk_sys::DISPATCHER_HEADER>());

impl Header {
    /// A header of an object that is not in use.
    pub const fn new() -> Self {
        Self {
            kind: Cell::new(0),
            flags: Cell::new(0),
            size: Cell::new(0),
            inserted: Cell::new(0),
            signal: Cell::new(0),
            waiters: List::new(),
        }
    }

    /// Makes it an object.
    pub fn initialize(&self, kind: u8, bytes: usize, signal: i32) {
        self.kind.set(kind);
        self.flags.set(0);
        self.size.set((bytes / 4) as u8);
        self.inserted.set(0);
        self.signal.set(signal);
        self.waiters.initialize();
    }
}

impl Default for Header {
    fn default() -> Self {
        Self::new()
    }
}

static HELD: AtomicBool = AtomicBool::new(false);
static OWNER: AtomicU32 = AtomicU32::new(u32::MAX);
/// Processors that run their idle thread.
static IDLE: AtomicU64 = AtomicU64::new(0);

struct Ready {
    queues: [List; 32],
    summary: Cell<u32>,
}

// SAFETY: guarded by the dispatcher lock.
unsafe impl Sync for Ready {}

static READY: Ready = Ready {
    queues: [const { List::new() }; 32],
    summary: Cell::new(0),
};

/// Proof that the dispatcher lock is held.
#[derive(Debug)]
pub(crate) struct Locked {
    old: u8,
}

fn acquire() {
    while HELD
        .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        while HELD.load(Ordering::Relaxed) {
            instr::pause();
        }
    }
    OWNER.store(cpu::current_number(), Ordering::Relaxed);
}

fn release() {
    OWNER.store(u32::MAX, Ordering::Relaxed);
    HELD.store(false, Ordering::Release);
}

/// Takes the dispatcher lock; IRQL at most DISPATCH_LEVEL.
pub(crate) fn lock() -> Locked {
    let old = irql::current();
    require!(
        old <= DISPATCH_LEVEL,
        "dispatcher",
        "IRQL {old}, at most 2 is allowed"
    );
    irql::raise(DISPATCH_LEVEL);
    acquire();
    Locked { old }
}

impl Drop for Locked {
    fn drop(&mut self) {
        release();
        irql::lower(self.old);
    }
}

/// Empties the queues; before the first thread.
pub(crate) fn initialize() {
    for queue in &READY.queues {
        queue.initialize();
    }
}

fn thread_of(link: *const List) -> &'static Thread {
    let thread = container::<Thread>(link, offset_of!(Thread, ready_link));
    // SAFETY: the ready queues hold live threads by this link.
    unsafe { &*thread }
}

/// Makes a thread ready and tells a processor about it, if one should run it now.
pub(crate) fn ready(_: &Locked, thread: &'static Thread) {
    enqueue(thread, false);
    let affinity = thread.affinity.get();
    let idle = IDLE.load(Ordering::Acquire) & affinity;
    let this = cpu::current_number();
    let last = thread.cpu.get();
    let target = if idle >> last & 1 == 1 {
        Some(last)
    } else if idle != 0 {
        Some(idle.trailing_zeros())
    } else {
        // The processor whose thread has the lowest priority, if lower than this one's.
        (0..super::cpu_count())
            .filter(|&number| affinity >> number & 1 == 1)
            .map(|number| (running_priority(number), number != this, number))
            .min()
            .filter(|&(priority, ..)| priority < thread.priority.get())
            .map(|(.., number)| number)
    };
    if let Some(number) = target {
        request(number, this);
    }
}

fn running_priority(number: u32) -> i8 {
    thread::running(number).map_or(31, |thread| thread.priority.get())
}

/// Asks a processor to choose its thread anew.
fn request(number: u32, this: u32) {
    let target = cpu::of(number as usize);
    target.reschedule.store(true, Ordering::Release);
    if number == this {
        apic::send_self(apic::DISPATCH_VECTOR);
    } else {
        apic::send_fixed(
            target.apic_id.load(Ordering::Acquire),
            apic::DISPATCH_VECTOR,
        );
    }
}

fn enqueue(thread: &'static Thread, front: bool) {
    thread.state.set(State::Ready);
    let priority = thread.priority.get() as usize & 31;
    let queue = &READY.queues[priority];
    if front {
        queue.push_front(&thread.ready_link);
    } else {
        queue.push_back(&thread.ready_link);
    }
    READY.summary.set(READY.summary.get() | 1 << priority);
}

fn dequeue(thread: &'static Thread) {
    thread.ready_link.remove();
    let priority = thread.priority.get() as usize & 31;
    if READY.queues[priority].is_empty() {
        READY.summary.set(READY.summary.get() & !(1 << priority));
    }
}

/// The best ready thread for processor `number` with a priority of at least `least`.
fn best(number: u32, least: i8) -> Option<&'static Thread> {
    let mut summary = READY.summary.get();
    while summary != 0 {
        let priority = summary.ilog2();
        if (priority as i8) < least {
            return None;
        }
        let queue = &READY.queues[priority as usize];
        let mut entry = queue.first();
        while let Some(link) = entry {
            let thread = thread_of(link);
            if thread.affinity.get() >> number & 1 == 1 {
                return Some(thread);
            }
            entry = queue.after(link);
        }
        summary &= !(1 << priority);
    }
    None
}

/// Gives the processor to the best ready thread or to the idle thread; returns
/// when the calling thread runs again, perhaps on another processor. The lock stays
/// held throughout.
fn switch_away() {
    let number = cpu::current_number();
    let next = best(number, 0);
    let next = match next {
        Some(thread) => {
            dequeue(thread);
            thread
        }
        None => thread::idle(number),
    };
    switch_to(number, next);
}

fn switch_to(number: u32, next: &'static Thread) {
    let previous = thread::current();
    let this = cpu::of(number as usize);
    this.quantum_end.store(false, Ordering::Relaxed);
    this.quantum.store(QUANTUM, Ordering::Relaxed);
    if ptr::eq(next, thread::idle(number)) {
        IDLE.fetch_or(1 << number, Ordering::AcqRel);
    } else {
        IDLE.fetch_and(!(1 << number), Ordering::AcqRel);
    }
    next.state.set(State::Running);
    next.cpu.set(number);
    if ptr::eq(previous, next) {
        return;
    }
    cpu::set_current_thread(number, ptr::from_ref(next) as usize);
    cpu::set_kernel_stack(number, next.stack_top.get());
    let root = next.root();
    if this.root.load(Ordering::Relaxed) != root {
        this.root.store(root, Ordering::Relaxed);
        // SAFETY: every address space has the same kernel half.
        unsafe { instr::write_cr3(root) };
    }
    let mask = super::extended::mask();
    // SAFETY: both frames belong to threads whose state the dispatcher lock guards; `next` is not running.
    unsafe { entry::KiSwapContext(previous.context.get(), next.context.get(), mask) };
}

/// Blocks the current thread, whose state and wait blocks are set, and returns its
/// wait status when it runs again; the lock is released then.
pub(crate) fn block(locked: Locked) -> i32 {
    let old = locked.old;
    core::mem::forget(locked);
    let current = thread::current();
    require!(
        !ptr::eq(current, thread::idle(cpu::current_number())),
        "dispatcher",
        "the idle thread cannot wait"
    );
    switch_away();
    release();
    irql::lower(old);
    current.wait_status.get()
}

/// Leaves the processor for good; the state is set to Terminated.
pub(crate) fn leave(locked: Locked) -> ! {
    core::mem::forget(locked);
    switch_away();
    super::bugcheck::violation("dispatcher", format_args!("a terminated thread runs again"))
}

/// First act of a new thread: it comes out of a switch with the lock held.
pub(crate) fn begin() {
    release();
    irql::lower(irql::PASSIVE_LEVEL);
}

/// Gives up the rest of the turn to a thread of at least the same priority.
/// Returns whether another thread ran.
pub(crate) fn yield_now() -> bool {
    let locked = lock();
    let current = thread::current();
    let number = cpu::current_number();
    let old = locked.old;
    let moved = current.affinity.get() >> number & 1 == 0;
    let least = if moved { 0 } else { current.priority.get() };
    let Some(next) = best(number, least).or_else(|| moved.then(|| thread::idle(number))) else {
        return false;
    };
    core::mem::forget(locked);
    if !ptr::eq(next, thread::idle(number)) {
        dequeue(next);
    }
    requeue_current(current, number);
    switch_to(number, next);
    release();
    irql::lower(old);
    true
}

/// Puts the running thread back; another processor that may run it is told.
fn requeue_current(current: &'static Thread, number: u32) {
    if ptr::eq(current, thread::idle(number)) {
        return;
    }
    enqueue(current, false);
    let idle = IDLE.load(Ordering::Acquire) & current.affinity.get() & !(1 << number);
    if idle != 0 {
        request(idle.trailing_zeros(), number);
    } else if current.affinity.get() >> number & 1 == 0 {
        let other = current.affinity.get().trailing_zeros();
        request(other, number);
    }
}

/// The scheduling part of the dispatch interrupt, at DISPATCH_LEVEL on the stack of
/// the thread that was interrupted.
pub(crate) fn reschedule() {
    let this = cpu::current();
    let quantum_end = this.quantum_end.swap(false, Ordering::AcqRel);
    let wanted = this.reschedule.swap(false, Ordering::AcqRel);
    if !quantum_end && !wanted {
        return;
    }
    let locked = lock();
    let current = thread::current();
    let number = cpu::current_number();
    let idle = ptr::eq(current, thread::idle(number));
    if quantum_end && !idle {
        // A boost fades by one each turn.
        let base = current.base_priority.get();
        if current.priority.get() > base {
            current.priority.set(current.priority.get() - 1);
        }
        this.quantum.store(QUANTUM, Ordering::Relaxed);
    }
    let moved = !idle && current.affinity.get() >> number & 1 == 0;
    let least = if idle || moved {
        0
    } else if quantum_end {
        current.priority.get()
    } else {
        current.priority.get() + 1
    };
    let next = match best(number, least) {
        Some(next) => {
            dequeue(next);
            next
        }
        None if moved => thread::idle(number),
        None => return,
    };
    core::mem::forget(locked);
    if !idle {
        requeue_current(current, number);
    }
    switch_to(number, next);
    release();
}

/// Lifts a waiting thread out of its wait with this status.
pub(crate) fn unwait(locked: &Locked, thread: &'static Thread, status: i32, boost: i8) {
    super::wait::unlink(thread);
    super::timer::cancel_thread_timer(locked, thread);
    thread.wait_status.set(status);
    let base = thread.base_priority.get();
    if base < 16 {
        thread
            .priority
            .set(thread.priority.get().max((base + boost).min(15)));
    }
    ready(locked, thread);
}

/// Changes a thread's priority, wherever it is.
pub(crate) fn set_priority(locked: &Locked, thread: &'static Thread, priority: i8) {
    if thread.state.get() == State::Ready {
        dequeue(thread);
        thread.priority.set(priority);
        ready(locked, thread);
    } else {
        let lower = priority < thread.priority.get();
        thread.priority.set(priority);
        if lower && thread.state.get() == State::Running {
            request(thread.cpu.get(), cpu::current_number());
        }
    }
}

/// Changes a thread's affinity. A running thread that may not stay is moved by the
/// dispatch interrupt of its processor.
pub(crate) fn set_affinity(locked: &Locked, thread: &'static Thread, affinity: u64) {
    if thread.state.get() == State::Ready {
        dequeue(thread);
        thread.affinity.set(affinity);
        ready(locked, thread);
        return;
    }
    thread.affinity.set(affinity);
    if thread.state.get() == State::Running && affinity >> thread.cpu.get() & 1 == 0 {
        request(thread.cpu.get(), cpu::current_number());
    }
}

/// Forgets what ran on a processor that was started anew.
pub(crate) fn restarted(number: u32) {
    let this = cpu::of(number as usize);
    this.reschedule.store(true, Ordering::Release);
    this.quantum_end.store(false, Ordering::Release);
    this.dpc_active.store(false, Ordering::Release);
    thread::idle(number).state.set(State::Running);
}

/// Marks this processor as one that runs its idle thread.
pub(crate) fn mark_idle(number: u32) {
    IDLE.fetch_or(1 << number, Ordering::AcqRel);
}
