//! The kernel's side of a thread: its stack, context, waits; idle threads.
//!
//! A `Thread` is made by [`create`] and lives as long as someone holds a reference:
//! the running thread itself holds one, each handle another. Its stack is freed by
//! the reaper thread after it has left the processor for the last time. Fields are
//! guarded by the dispatcher lock unless their line says that only the thread itself
//! uses them.

use alloc::boxed::Box;
use core::cell::{Cell, UnsafeCell};
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::dispatcher::{self, Header, object};
use super::event::Event;
use super::list::List;
use super::spinlock::SpinLock;
use super::timer::Timer;
use super::wait::WaitBlock;
use super::{extended, irql};
use crate::hal::cpu::{self, MAX_CPUS};
use crate::hal::entry::{self, SwitchFrame};
use crate::hal::instr;
use crate::mm::{PAGE_SIZE, paging, physical, pool, region};
use crate::ps::process::Process;

/// Bytes of a kernel stack, as on 64-bit Windows.
pub const STACK_BYTES: usize = 24 * 1024;
/// Bytes of the stack on which DPC routines run.
const DPC_STACK_BYTES: usize = 24 * 1024;
/// Most objects of one wait, `MAXIMUM_WAIT_OBJECTS`.
pub const MAXIMUM_WAIT_OBJECTS: usize = 64;
/// Priority of ordinary threads.
pub const NORMAL_PRIORITY: i8 = 8;

/// Scheduling state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, never ready yet.
    Initialized,
    /// On a ready queue.
    Ready,
    /// On a processor.
    Running,
    /// In a wait.
    Waiting,
    /// Over.
    Terminated,
}

/// `KTHREAD` and `ETHREAD`.
#[repr(C)]
pub struct Thread {
    /// Signalled when the thread has ended.
    pub header: Header,
    /// Registers while it does not run.
    pub(crate) context: UnsafeCell<SwitchFrame>,
    stack_base: Cell<usize>,
    /// End of the kernel stack.
    pub stack_top: Cell<usize>,
    /// Where it is.
    pub state: Cell<State>,
    /// Priority now.
    pub priority: Cell<i8>,
    /// Priority without boosts.
    pub base_priority: Cell<i8>,
    /// Processors that it may use.
    pub affinity: Cell<u64>,
    /// Affinity to go back to after `KeRevertToUserAffinityThread`; 0 while it is not changed.
    pub user_affinity: Cell<u64>,
    /// Processor that runs it or ran it last.
    pub cpu: Cell<u32>,
    /// Process that it belongs to.
    pub process: &'static Process,
    /// Process whose address space it uses (`KeStackAttachProcess`).
    pub attached: Cell<Option<&'static Process>>,
    /// Thread id.
    pub id: u32,
    pub(crate) ready_link: List,
    pub(crate) process_link: List,
    /// Result of the last wait.
    pub wait_status: Cell<i32>,
    pub(crate) wait_blocks: [WaitBlock; MAXIMUM_WAIT_OBJECTS + 1],
    pub(crate) wait_count: Cell<usize>,
    pub(crate) wait_any: Cell<bool>,
    pub(crate) timer: Timer,
    /// Mutexes that it owns.
    pub(crate) mutants: List,
    /// Critical regions entered (the thread's own).
    pub critical_regions: Cell<u32>,
    /// Guarded regions entered (the thread's own).
    pub guarded_regions: Cell<u32>,
    /// Ring 3 is to end at the next return to it.
    pub terminate: AtomicBool,
    /// `PsTerminateSystemThread`'s argument.
    pub exit_status: Cell<i32>,
    references: AtomicUsize,
    /// Ring-3 register state to begin with (the thread's own).
    pub(crate) user: Cell<Option<(usize, usize, usize)>>,
    /// Where `PsCreateSystemThread` was called from.
    pub creator: Cell<usize>,
    reap_link: Cell<*const Thread>,
    /// Canary behind the structure.
    end: u32,
}

// SAFETY: the fields are guarded as the module's text says.
unsafe impl Sync for Thread {}
// SAFETY: as above.
unsafe impl Send for Thread {}

const END: u32 = 0x6461_6572;
const _: () = assert!(offset_of!(Thread, header) == 0);

static NEXT_ID: AtomicUsize = AtomicUsize::new(1);
static IDLE: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];
static REAP: SpinLock<ReapList> = SpinLock::new(ReapList(ptr::null()));
/// Ended threads whose objects drivers still hold.
static HELD: SpinLock<ReapList> = SpinLock::new(ReapList(ptr::null()));
static REAP_EVENT: Event = Event::new();

struct ReapList(*const Thread);

// SAFETY: the pointer is to a terminated thread that only the reaper uses.
unsafe impl Send for ReapList {}

/// Process and thread ids come from one row: multiples of 4, as on NT.
pub fn next_id() -> u32 {
    (NEXT_ID.fetch_add(1, Ordering::Relaxed) * 4) as u32
}

/// The running thread.
pub fn current() -> &'static Thread {
    // SAFETY: the KPCR names a live thread from `become_idle` on.
    unsafe { &*(cpu::current_thread() as *const Thread) }
}

/// The thread that runs on processor `number`; `None` before it has one.
pub(crate) fn running(number: u32) -> Option<&'static Thread> {
    let thread = cpu::kpcr(number as usize).thread();
    // SAFETY: threads that a processor runs are live while the dispatcher lock is held.
    (thread != 0).then(|| unsafe { &*(thread as *const Thread) })
}

/// The idle thread of processor `number`.
pub(crate) fn idle(number: u32) -> &'static Thread {
    let thread = IDLE[number as usize].load(Ordering::Acquire);
    // SAFETY: set once by `become_idle`, never freed.
    unsafe { &*(thread as *const Thread) }
}

/// A thread from an object pointer that a driver gave.
pub(crate) fn from_object<'a>(object: *const core::ffi::c_void, api: &str) -> &'a Thread {
    require!(!object.is_null(), api, "the thread is NULL");
    // SAFETY: the caller vouches for a thread object; type and canary are checked next.
    let thread = unsafe { &*object.cast::<Thread>() };
    require!(
        thread.header.kind.get() == object::THREAD && thread.end == END,
        api,
        "{object:p} is no thread"
    );
    thread
}

/// Maps a stack of `bytes` bytes between unmapped pages and returns its base.
pub(crate) fn map_stack(bytes: usize) -> Option<usize> {
    let pages = bytes / PAGE_SIZE;
    // The first page stays unmapped: `reserve` leaves one behind only.
    let base = region::SYSTEM.reserve(pages + 1)? + PAGE_SIZE;
    for page in 0..pages {
        let at = base + page * PAGE_SIZE;
        let Some(frame) = physical::allocate_zeroed() else {
            pool::unmap_pages(base, page);
            region::SYSTEM.release(base - PAGE_SIZE, pages + 1);
            return None;
        };
        physical::set_owner(frame, at as u64);
        paging::map_kernel(at, frame, paging::Rights::ReadWrite.kernel_bits());
    }
    Some(base)
}

fn unmap_stack(base: usize, bytes: usize) {
    let pages = bytes / PAGE_SIZE;
    pool::unmap_pages(base, pages);
    region::SYSTEM.release(base - PAGE_SIZE, pages + 1);
}

fn new_thread(
    process: &'static Process,
    stack_base: usize,
    stack_bytes: usize,
) -> Option<&'static Thread> {
    let extended = extended::allocate_area()?;
    let thread = Box::leak(Box::new(Thread {
        header: Header::new(),
        context: UnsafeCell::new(SwitchFrame { rsp: 0, extended }),
        stack_base: Cell::new(stack_base),
        stack_top: Cell::new(stack_base + stack_bytes),
        state: Cell::new(State::Initialized),
        priority: Cell::new(NORMAL_PRIORITY),
        base_priority: Cell::new(NORMAL_PRIORITY),
        affinity: Cell::new(u64::MAX),
        user_affinity: Cell::new(0),
        cpu: Cell::new(cpu::current_number()),
        process,
        attached: Cell::new(None),
        id: next_id(),
        ready_link: List::new(),
        process_link: List::new(),
        wait_status: Cell::new(0),
        wait_blocks: [const { WaitBlock::new() }; MAXIMUM_WAIT_OBJECTS + 1],
        wait_count: Cell::new(0),
        wait_any: Cell::new(true),
        timer: Timer::new(),
        mutants: List::new(),
        critical_regions: Cell::new(0),
        guarded_regions: Cell::new(0),
        terminate: AtomicBool::new(false),
        exit_status: Cell::new(0),
        references: AtomicUsize::new(1),
        user: Cell::new(None),
        creator: Cell::new(0),
        reap_link: Cell::new(ptr::null()),
        end: END,
    }));
    thread
        .header
        .initialize(object::THREAD, size_of::<Thread>().min(1020), 0);
    thread.mutants.initialize();
    thread.timer.initialize(object::NOTIFICATION_TIMER);
    for block in &thread.wait_blocks {
        block.bind(thread);
    }
    Some(thread)
}

/// Makes a thread that will call `routine(argument)` at PASSIVE_LEVEL; the caller
/// gets a reference and starts it with [`start`].
pub(crate) fn create(
    process: &'static Process,
    routine: extern "C" fn(usize),
    argument: usize,
) -> Option<&'static Thread> {
    let base = map_stack(STACK_BYTES)?;
    let Some(thread) = new_thread(process, base, STACK_BYTES) else {
        unmap_stack(base, STACK_BYTES);
        return None;
    };
    thread.affinity.set(all_cpus());
    // What KiSwapContext pops: R15 R14 R13 R12 RDI RSI RBX RBP, then the return address.
    let top = base + STACK_BYTES - 64;
    let frame = [
        0,
        0,
        0,
        argument,
        0,
        0,
        routine as usize,
        0,
        entry::KiThreadStartup as *const () as usize,
    ];
    let at = (top - frame.len() * 8) & !15;
    // SAFETY: the fresh stack; RSP is a multiple of 16 once the nine words are popped.
    unsafe { (at as *mut [usize; 9]).write(frame) };
    let context = thread.context.get();
    // SAFETY: nobody else knows the thread yet.
    unsafe { (*context).rsp = at };
    Some(thread)
}

/// Makes a new thread ready. It holds a reference to itself until it ends.
pub(crate) fn start(thread: &'static Thread) {
    reference(thread);
    process_add(thread);
    let locked = dispatcher::lock();
    dispatcher::ready(&locked, thread);
}

fn process_add(thread: &'static Thread) {
    thread.process.threads.fetch_add(1, Ordering::AcqRel);
}

/// First compiled code of a thread.
pub(crate) extern "C" fn KiThreadMain(routine: extern "C" fn(usize), argument: usize) -> ! {
    dispatcher::begin();
    routine(argument);
    exit(0)
}

/// Ends the running thread.
pub(crate) fn exit(status: i32) -> ! {
    let thread = current();
    let api = "PsTerminateSystemThread";
    irql::require_irql_exact(irql::PASSIVE_LEVEL, api);
    require!(
        thread.critical_regions.get() == 0,
        api,
        "the thread ends inside a critical region"
    );
    require!(
        thread.guarded_regions.get() == 0,
        api,
        "the thread ends inside a guarded region"
    );
    thread.exit_status.set(status);
    crate::mm::track::remove(
        crate::mm::track::Kind::Thread,
        ptr::from_ref(thread) as usize,
    );
    crate::ps::thread_ended(thread);
    let last = thread.process.threads.fetch_sub(1, Ordering::AcqRel) == 1;
    if last {
        crate::ps::process::ended(thread.process, status);
    }
    {
        let mut reap = REAP.lock();
        thread.reap_link.set(reap.0);
        reap.0 = thread;
    }
    let locked = dispatcher::lock();
    super::mutex::abandon_all(&locked, thread);
    thread.state.set(State::Terminated);
    thread.header.signal.set(1);
    super::wait::test(&locked, &thread.header, 0);
    REAP_EVENT.set_locked(&locked, 0);
    dispatcher::leave(locked)
}

/// One more reference.
pub fn reference(thread: &Thread) {
    thread.references.fetch_add(1, Ordering::AcqRel);
}

/// One reference less; the last one frees the structure. IRQL at most DISPATCH_LEVEL.
pub fn dereference(thread: &'static Thread) {
    if thread.references.fetch_sub(1, Ordering::AcqRel) != 1 {
        return;
    }
    #[cfg(not(feature = "core-only"))]
    if crate::ob::forget(ptr::from_ref(thread) as usize) {
        // A driver still holds the object: the reaper asks again later.
        thread.references.store(1, Ordering::Release);
        let mut held = HELD.lock();
        thread.reap_link.set(held.0);
        held.0 = thread;
        return;
    }
    let context = thread.context.get();
    // SAFETY: nobody holds the thread any more.
    let extended = unsafe { (*context).extended };
    extended::free_area(extended);
    // SAFETY: made by `Box::leak` in `new_thread`, and this was the last reference.
    drop(unsafe { Box::from_raw(ptr::from_ref(thread).cast_mut()) });
}

/// The reaper: frees the stacks of ended threads. Runs for good.
pub(crate) extern "C" fn reaper(_: usize) {
    loop {
        REAP_EVENT.wait();
        crate::ps::process::retry_held();
        let mut held = core::mem::replace(&mut HELD.lock().0, ptr::null());
        while !held.is_null() {
            // SAFETY: whoever put the thread there left it one reference.
            let thread: &'static Thread = unsafe { &*held };
            held = thread.reap_link.get();
            dereference(thread);
        }
        let mut list = core::mem::replace(&mut REAP.lock().0, ptr::null());
        while !list.is_null() {
            // SAFETY: an ended thread keeps the reference to itself until here.
            let thread: &'static Thread = unsafe { &*list };
            list = thread.reap_link.get();
            // It put itself on the list a moment before it left its processor.
            loop {
                let locked = dispatcher::lock();
                if thread.state.get() == State::Terminated {
                    break;
                }
                drop(locked);
                dispatcher::yield_now();
            }
            unmap_stack(thread.stack_base.get(), STACK_BYTES);
            let process = thread.process;
            dereference(thread);
            crate::ps::process::dereference(process);
        }
    }
}

/// Mask of all running processors.
pub fn all_cpus() -> u64 {
    u64::MAX >> (64 - super::cpu_count())
}

/// Makes stack, IST stacks and idle thread of processor `number`, which is not the
/// running one, and returns the end of the stack.
pub(crate) fn idle_stack(number: u32) -> usize {
    let base = map_stack(STACK_BYTES).expect("memory for a stack");
    prepare(number, base, STACK_BYTES);
    base + STACK_BYTES
}

/// End of the stack of processor `number`'s idle thread.
pub(crate) fn idle_stack_top(number: u32) -> usize {
    idle(number).stack_top.get()
}

/// Undoes [`idle_stack`] for a processor that did not answer.
pub(crate) fn drop_idle_stack(number: u32) {
    // The processor may still come up late on this stack, so the stack stays; only
    // the accounts forget it.
    IDLE[number as usize].store(0, Ordering::Release);
}

/// IST and DPC stacks and the idle thread of a processor.
pub(crate) fn prepare(number: u32, stack_base: usize, stack_bytes: usize) {
    for slot in [cpu::IST_DOUBLE_FAULT, cpu::IST_MACHINE_CHECK, cpu::IST_NMI] {
        let base = map_stack(cpu::IST_BYTES).expect("memory for a stack");
        cpu::set_ist(number as usize, slot, base + cpu::IST_BYTES);
    }
    let base = map_stack(DPC_STACK_BYTES).expect("memory for a stack");
    cpu::of(number as usize)
        .dpc_stack
        .store(base + DPC_STACK_BYTES, Ordering::Release);
    let process = crate::ps::process::system();
    let thread = new_thread(process, stack_base, stack_bytes).expect("memory for a thread");
    thread.priority.set(0);
    thread.base_priority.set(0);
    thread.affinity.set(1 << number);
    thread.cpu.set(number);
    thread.state.set(State::Running);
    IDLE[number as usize].store(ptr::from_ref(thread) as usize, Ordering::Release);
}

/// The code that runs here becomes the idle thread of processor `number`.
pub(crate) fn become_idle(number: u32) {
    let thread = idle(number);
    cpu::set_current_thread(number, ptr::from_ref(thread) as usize);
    cpu::kpcr(number as usize)
        .idle_thread
        .store(ptr::from_ref(thread) as usize, Ordering::Release);
    cpu::set_kernel_stack(number, thread.stack_top.get());
    let this = cpu::of(number as usize);
    this.root.store(paging::system_root(), Ordering::Relaxed);
    this.online.store(true, Ordering::Release);
    dispatcher::mark_idle(number);
}

/// What a processor does when it has nothing to do.
pub(crate) fn idle_loop() -> ! {
    crate::hal::clock::start();
    irql::lower(irql::PASSIVE_LEVEL);
    loop {
        // SAFETY: the IDT and this stack take interrupts from here on.
        unsafe { instr::sti_hlt() };
    }
}

impl Thread {
    /// Physical root of the address space that it uses.
    pub(crate) fn root(&self) -> u64 {
        self.attached.get().unwrap_or(self.process).root
    }

    /// Base of the kernel stack.
    pub fn stack_base(&self) -> usize {
        self.stack_base.get()
    }
}
