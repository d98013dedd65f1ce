//! Deferred procedure calls.
//!
//! Each processor has a queue under a lock taken with interrupts off. The dispatch
//! interrupt empties it on the processor's DPC stack at DISPATCH_LEVEL. A DPC is
//! off its queue before its routine runs, so the routine may queue it again.

use core::cell::Cell;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use super::event::Event;
use super::irql::{self, APC_LEVEL, DISPATCH_LEVEL, require_irql};
use super::list::{List, container};
use crate::hal::{apic, cpu, entry, instr};

const DPC_OBJECT: u8 = 19;
const THREADED_DPC_OBJECT: u8 = 24;
const HIGH_IMPORTANCE: u8 = 2;
/// `KDPC.Number` of a DPC with a target processor: its number plus this.
const TARGETED: u16 = 0x800;

/// `PKDEFERRED_ROUTINE`.
type Routine = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void, *mut c_void);

/// `KDPC`.
#[repr(C)]
#[derive(Debug)]
pub struct Dpc {
    kind: Cell<u8>,
    importance: Cell<u8>,
    number: Cell<u16>,
    link: List,
    routine: Cell<usize>,
    context: Cell<*mut c_void>,
    argument1: Cell<*mut c_void>,
    argument2: Cell<*mut c_void>,
    /// Queue on which it stands; null while it is on none.
    data: AtomicPtr<c_void>,
}

const _: () = assert!(size_of::<Dpc>() == size_of::<wdk_standin::wdk_sys::KDPC>());
const _: () =
    assert!(offset_of!(Dpc, routine) == offset_of!(wdk_standin::wdk_sys::KDPC, DeferredRoutine));
const _: () = assert!(offset_of!(Dpc, data) == offset_of!(wdk_standin::wdk_sys::KDPC, DpcData));

// SAFETY: a DPC's fields change under the lock of the queue that it stands on, or by
// its owner while it stands on none.
unsafe impl Sync for Dpc {}

/// The DPCs of one processor.
#[derive(Debug)]
pub struct DpcQueue {
    head: List,
}

// SAFETY: guarded by the processor's queue lock.
unsafe impl Send for DpcQueue {}

impl DpcQueue {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { head: List::new() }
    }

    fn first(&self) -> Option<&'static Dpc> {
        self.head.first().map(dpc_of)
    }
}

impl Default for DpcQueue {
    fn default() -> Self {
        Self::new()
    }
}

fn dpc_of(link: *const List) -> &'static Dpc {
    let dpc = container::<Dpc>(link, offset_of!(Dpc, link));
    // SAFETY: the queues hold DPCs by this link.
    unsafe { &*dpc }
}

impl Dpc {
    /// A DPC that is not in use.
    pub const fn new() -> Self {
        Self {
            kind: Cell::new(0),
            importance: Cell::new(1),
            number: Cell::new(0),
            link: List::new(),
            routine: Cell::new(0),
            context: Cell::new(ptr::null_mut()),
            argument1: Cell::new(ptr::null_mut()),
            argument2: Cell::new(ptr::null_mut()),
            data: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Address of its routine.
    pub fn routine(&self) -> usize {
        self.routine.get()
    }

    fn initialize(&self, kind: u8, routine: usize, context: *mut c_void) {
        self.kind.set(kind);
        self.importance.set(1);
        self.number.set(0);
        self.routine.set(routine);
        self.context.set(context);
        self.data.store(ptr::null_mut(), Ordering::Release);
    }
}

impl Default for Dpc {
    fn default() -> Self {
        Self::new()
    }
}

/// Bugchecks unless this is an initialised DPC.
pub(crate) fn check<'a>(dpc: *const Dpc, api: &str) -> &'a Dpc {
    require!(!dpc.is_null(), api, "the DPC is NULL");
    // SAFETY: the caller of the export vouches for the DPC; its type is checked next.
    let dpc = unsafe { &*dpc };
    require!(
        matches!(dpc.kind.get(), DPC_OBJECT | THREADED_DPC_OBJECT) && dpc.routine.get() != 0,
        api,
        "{:p} is no initialised DPC",
        ptr::from_ref(dpc)
    );
    dpc
}

/// Queues the DPC; false if it stands on a queue already. Any IRQL.
pub(crate) fn insert(dpc: &Dpc, argument1: usize, argument2: usize) -> bool {
    let old = irql::raise(irql::HIGH_LEVEL);
    let this = cpu::current_number();
    let target = match dpc.number.get() {
        number if number >= TARGETED => u32::from(number - TARGETED),
        _ => this,
    };
    let data = cpu::of(target as usize);
    let mark = ptr::from_ref(&data.dpcs).cast_mut().cast::<c_void>();
    let queue = data.dpcs.lock();
    let free = dpc
        .data
        .compare_exchange(ptr::null_mut(), mark, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok();
    if free {
        dpc.argument1.set(argument1 as *mut c_void);
        dpc.argument2.set(argument2 as *mut c_void);
        if !queue.head.is_linked() {
            queue.head.initialize();
        }
        if dpc.importance.get() == HIGH_IMPORTANCE {
            queue.head.push_front(&dpc.link);
        } else {
            queue.head.push_back(&dpc.link);
        }
    }
    drop(queue);
    if free {
        if target == this {
            apic::send_self(apic::DISPATCH_VECTOR);
        } else {
            apic::send_fixed(data.apic_id.load(Ordering::Acquire), apic::DISPATCH_VECTOR);
        }
    }
    irql::lower(old);
    free
}

fn remove(dpc: &Dpc) -> bool {
    loop {
        let data = dpc.data.load(Ordering::Acquire);
        if data.is_null() {
            return false;
        }
        // SAFETY: `data` is one of the queues, which live for good.
        let lock = unsafe { &*data.cast::<super::spinlock::IrqLock<DpcQueue>>() };
        let _queue = lock.lock();
        if dpc.data.load(Ordering::Acquire) == data {
            dpc.link.remove();
            dpc.data.store(ptr::null_mut(), Ordering::Release);
            return true;
        }
    }
}

/// Runs what is queued on this processor; in the dispatch interrupt, at DISPATCH_LEVEL.
pub(crate) fn retire() {
    let this = cpu::current();
    if this.dpc_active.load(Ordering::Relaxed) {
        return;
    }
    while this.dpcs.lock().first().is_some() {
        this.dpc_active.store(true, Ordering::Relaxed);
        let stack = this.dpc_stack.load(Ordering::Relaxed);
        // SAFETY: the DPC stack is free: DPCs do not nest on a processor.
        unsafe { entry::KiCallOnStack(retire_here, 0, stack) };
        this.dpc_active.store(false, Ordering::Relaxed);
    }
}

extern "C" fn retire_here(_: usize) {
    let this = cpu::current();
    loop {
        let queue = this.dpcs.lock();
        let Some(dpc) = queue.first() else { return };
        dpc.link.remove();
        let routine = dpc.routine.get();
        let (context, argument1, argument2) =
            (dpc.context.get(), dpc.argument1.get(), dpc.argument2.get());
        let object = ptr::from_ref(dpc).cast_mut().cast::<c_void>();
        dpc.data.store(ptr::null_mut(), Ordering::Release);
        drop(queue);
        // SAFETY: the routine that `KeInitializeDpc` was given.
        let call: Routine = unsafe { core::mem::transmute::<usize, Routine>(routine) };
        // SAFETY: its documented arguments, at DISPATCH_LEVEL.
        unsafe { call(object, context, argument1, argument2) };
        let level = irql::current();
        require!(
            level == DISPATCH_LEVEL,
            "DPC",
            "the routine at {routine:#x} returns at IRQL {level}"
        );
        require!(
            crate::hal::instr::read_flags() & 0x200 != 0,
            "DPC",
            "the routine at {routine:#x} returns with interrupts off"
        );
    }
}

/// Each queued DPC with its routine, for the unload check.
pub(crate) fn each(f: &mut dyn FnMut(usize, usize)) {
    for number in 0..super::cpu_count() {
        let queue = cpu::of(number as usize).dpcs.lock();
        let mut entry = queue.head.first();
        while let Some(link) = entry {
            let dpc = dpc_of(link);
            f(ptr::from_ref(dpc) as usize, dpc.routine.get());
            entry = queue.head.after(link);
        }
    }
}

/// `KeInitializeDpc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInitializeDpc(
    dpc: *mut c_void,
    routine: *mut c_void,
    context: *mut c_void,
) {
    require!(!routine.is_null(), "KeInitializeDpc", "the routine is NULL");
    // SAFETY: the caller gives memory for a KDPC.
    let dpc = unsafe { &*dpc.cast::<Dpc>() };
    dpc.initialize(DPC_OBJECT, routine as usize, context);
}

/// `KeInitializeThreadedDpc`: threaded DPCs run as ordinary ones, as they may.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInitializeThreadedDpc(
    dpc: *mut c_void,
    routine: *mut c_void,
    context: *mut c_void,
) {
    // SAFETY: the caller gives memory for a KDPC.
    let dpc = unsafe { &*dpc.cast::<Dpc>() };
    dpc.initialize(THREADED_DPC_OBJECT, routine as usize, context);
}

/// `KeInsertQueueDpc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInsertQueueDpc(
    dpc: *mut c_void,
    argument1: *mut c_void,
    argument2: *mut c_void,
) -> u8 {
    let dpc = check(dpc.cast(), "KeInsertQueueDpc");
    u8::from(insert(dpc, argument1 as usize, argument2 as usize))
}

/// `KeRemoveQueueDpc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRemoveQueueDpc(dpc: *mut c_void) -> u8 {
    u8::from(remove(check(dpc.cast(), "KeRemoveQueueDpc")))
}

/// `KeSetImportanceDpc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSetImportanceDpc(dpc: *mut c_void, importance: i32) {
    let dpc = check(dpc.cast(), "KeSetImportanceDpc");
    require!(
        (0..4).contains(&importance),
        "KeSetImportanceDpc",
        "importance {importance}"
    );
    dpc.importance.set(importance as u8);
}

/// `KeSetTargetProcessorDpc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSetTargetProcessorDpc(dpc: *mut c_void, number: i8) {
    let dpc = check(dpc.cast(), "KeSetTargetProcessorDpc");
    let exists = (number as u32) < super::cpu_count();
    require!(
        exists,
        "KeSetTargetProcessorDpc",
        "there is no processor {number}"
    );
    dpc.number.set(TARGETED + u16::from(number as u8));
}

/// `KeSetTargetProcessorDpcEx`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSetTargetProcessorDpcEx(
    dpc: *mut c_void,
    number: *const super::affinity::ProcessorNumber,
) -> i32 {
    const STATUS_INVALID_PARAMETER: i32 = 0xC000_000D_u32 as i32;
    let dpc = check(dpc.cast(), "KeSetTargetProcessorDpcEx");
    // SAFETY: forwarded to the caller.
    let number = unsafe { number.read() };
    if number.group != 0 || u32::from(number.number) >= super::cpu_count() || number.reserved != 0 {
        return STATUS_INVALID_PARAMETER;
    }
    dpc.number.set(TARGETED + u16::from(number.number));
    0
}

/// What the routines of one `KeGenericCallDpc` share.
#[derive(Debug)]
struct GenericCall {
    /// Processors that have not said `KeSignalCallDpcDone`.
    left: AtomicU32,
    /// Processors at the barrier, and how often it has opened.
    waiting: AtomicU32,
    opened: AtomicU32,
    processors: u32,
}

/// One generic call is under way at a time.
static GENERIC_CALL: AtomicBool = AtomicBool::new(false);

fn generic<'a>(argument: *mut c_void, api: &str) -> &'a GenericCall {
    require!(!argument.is_null(), api, "the argument is NULL");
    // SAFETY: the caller passes what its routine was given, which lives until all are done.
    unsafe { &*argument.cast::<GenericCall>() }
}

/// `KeGenericCallDpc`: the routine runs on all processors at DISPATCH_LEVEL, each of
/// which must call `KeSignalCallDpcDone`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeGenericCallDpc(routine: *mut c_void, context: *mut c_void) {
    require_irql(APC_LEVEL, "KeGenericCallDpc");
    require!(
        !routine.is_null(),
        "KeGenericCallDpc",
        "the routine is NULL"
    );
    while GENERIC_CALL.swap(true, Ordering::AcqRel) {
        super::dispatcher::yield_now();
    }
    let count = super::cpu_count();
    let shared = GenericCall {
        left: AtomicU32::new(count),
        waiting: AtomicU32::new(0),
        opened: AtomicU32::new(0),
        processors: count,
    };
    let argument = ptr::from_ref(&shared) as usize;
    let dpcs = [const { Dpc::new() }; cpu::MAX_CPUS];
    for (number, dpc) in dpcs.iter().enumerate().take(count as usize) {
        dpc.initialize(DPC_OBJECT, routine as usize, context);
        dpc.importance.set(HIGH_IMPORTANCE);
        dpc.number.set(TARGETED + number as u16);
    }
    // Queued at once: the routines may wait for each other at the barrier.
    let old = irql::raise(DISPATCH_LEVEL);
    for dpc in dpcs.iter().take(count as usize) {
        insert(dpc, argument, argument);
    }
    irql::lower(old);
    while shared.left.load(Ordering::Acquire) != 0 {
        super::dispatcher::yield_now();
    }
    // The routines have said that they are done; their DPCs end right after.
    // SAFETY: APC_LEVEL or below was checked.
    unsafe { KeFlushQueuedDpcs() };
    GENERIC_CALL.store(false, Ordering::Release);
}

/// `KeSignalCallDpcDone`, with the routine's `SystemArgument1`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSignalCallDpcDone(argument: *mut c_void) {
    let left = generic(argument, "KeSignalCallDpcDone")
        .left
        .fetch_sub(1, Ordering::AcqRel);
    require!(
        left != 0,
        "KeSignalCallDpcDone",
        "called more often than there are processors"
    );
}

/// `KeSignalCallDpcSynchronize`, with the routine's `SystemArgument2`: a barrier; true
/// on one processor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSignalCallDpcSynchronize(argument: *mut c_void) -> u8 {
    let shared = generic(argument, "KeSignalCallDpcSynchronize");
    let opened = shared.opened.load(Ordering::Acquire);
    if shared.waiting.fetch_add(1, Ordering::AcqRel) + 1 == shared.processors {
        shared.waiting.store(0, Ordering::Release);
        shared.opened.fetch_add(1, Ordering::AcqRel);
        return 1;
    }
    while shared.opened.load(Ordering::Acquire) == opened {
        instr::pause();
    }
    0
}

/// `KeFlushQueuedDpcs`: returns when all DPCs that were queued at the call have run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeFlushQueuedDpcs() {
    unsafe extern "C" fn reached(
        _: *mut c_void,
        event: *mut c_void,
        _: *mut c_void,
        _: *mut c_void,
    ) {
        // SAFETY: the event of the waiting caller below.
        let event = unsafe { &*event.cast::<Event>() };
        event.set(0);
    }
    require_irql(APC_LEVEL, "KeFlushQueuedDpcs");
    for number in 0..super::cpu_count() {
        let event = Event::new();
        event.initialize(super::dispatcher::object::NOTIFICATION_EVENT, false);
        let dpc = Dpc::new();
        dpc.initialize(
            DPC_OBJECT,
            reached as *const () as usize,
            ptr::from_ref(&event).cast_mut().cast(),
        );
        dpc.number.set(TARGETED + number as u16);
        insert(&dpc, 0, 0);
        event.wait();
        // The routine has set the event as its last act; its own lock use is over
        // once the dispatcher lock can be taken.
        drop(super::dispatcher::lock());
    }
}
