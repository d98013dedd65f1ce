//! I/O request packets: allocation, the way down and up the stack, cancellation.
//!
//! The table knows each IRP that the I/O manager made: what to do when it is
//! completed, how often it was, who pins it. An IRP that a driver built in its
//! own memory is not in it and is that driver's business. IRQL at most
//! DISPATCH_LEVEL.

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::sync::atomic::{AtomicPtr, Ordering};

use wdk_standin::wdk_sys::{
    BOOLEAN, CCHAR, DEVICE_OBJECT, IO_STACK_LOCATION, IRP, KIRQL, NTSTATUS, PDEVICE_OBJECT,
    PDRIVER_CANCEL, PIRP, USHORT,
};

use super::stack;
use crate::ex::entry::caller_aware;
use crate::ex::nt;
use crate::ke::bugcheck;
use crate::ke::irql::{DISPATCH_LEVEL, current, require_irql, require_irql_exact};
use crate::ke::spinlock::SpinLock;
use crate::ob::argument::{borrow, own, put};
use crate::rtl::status::{STATUS_MORE_PROCESSING_REQUIRED, STATUS_PENDING, success};

const NO_MORE_IRP_STACK_LOCATIONS: u32 = 0x35;
const MULTIPLE_IRP_COMPLETE_REQUESTS: u32 = 0x44;

/// `IO_TYPE_IRP`.
const TYPE: i16 = 6;

/// What the I/O manager does with an IRP that reached the top of its stack;
/// called at IRQL up to DISPATCH_LEVEL.
pub(crate) type Done = Box<dyn FnOnce(PIRP, NTSTATUS, u64) + Send>;

enum Kind {
    /// The I/O manager's own request.
    Manager(Option<Done>),
    /// `IoAllocateIrp`: its maker stops it in a completion routine and frees it.
    Driver,
}

struct Track {
    kind: Kind,
    serial: u64,
    /// Address inside the module that allocated it.
    owner: usize,
    /// Driver object that it was last passed to.
    holder: usize,
    completions: u32,
    pins: u32,
    freed: bool,
}

struct Table {
    irps: BTreeMap<usize, Track>,
    next_serial: u64,
}

static IRPS: SpinLock<Table> = SpinLock::new(Table {
    irps: BTreeMap::new(),
    next_serial: 1,
});

/// `KSPIN_LOCK` of cancellation.
static mut CANCEL_LOCK: wdk_standin::wdk_sys::KSPIN_LOCK = 0;

/// An IRP that may have gone meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    irp: usize,
    serial: u64,
}

/// One IRP that is still there, for the unload check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alive {
    /// Its address.
    pub(crate) irp: usize,
    /// Address inside the module that allocated it, 0 for the I/O manager's.
    pub(crate) owner: usize,
    /// Driver object that it was last passed to.
    pub(crate) holder: usize,
}

const fn size_of_irp(locations: i8) -> usize {
    size_of::<IRP>() + locations as usize * size_of::<IO_STACK_LOCATION>()
}

fn layout(locations: i8) -> Layout {
    // SAFETY: 16 is a power of two, and the size is small.
    unsafe { Layout::from_size_align_unchecked(size_of_irp(locations), 16) }
}

fn initialize(irp: PIRP, size: usize, locations: i8) {
    let header = own!(irp);
    header.Type = TYPE;
    header.Size = u16::try_from(size).unwrap_or(u16::MAX);
    header.StackCount = locations;
    let list = &raw mut header.ThreadListEntry;
    header.ThreadListEntry.Flink = list;
    header.ThreadListEntry.Blink = list;
    let first = irp.wrapping_add(1).cast::<IO_STACK_LOCATION>();
    stack::set_current(irp, first.wrapping_add(locations as usize), locations + 1);
}

fn make(locations: i8, kind: Kind, owner: usize) -> (PIRP, u64) {
    if locations <= 0 {
        return (core::ptr::null_mut(), 0);
    }
    // SAFETY: the layout is not empty.
    let irp: PIRP = unsafe { alloc_zeroed(layout(locations)) }.cast();
    if irp.is_null() {
        return (irp, 0);
    }
    initialize(irp, size_of_irp(locations), locations);
    let mut table = IRPS.lock();
    let serial = table.next_serial;
    table.next_serial += 1;
    let track = Track {
        kind,
        serial,
        owner,
        holder: 0,
        completions: 0,
        pins: 0,
        freed: false,
    };
    table.irps.insert(irp.expose_provenance(), track);
    (irp, serial)
}

/// An IRP of the I/O manager; [`on_completion`] says what becomes of it.
pub(crate) fn allocate(locations: i8) -> Option<(PIRP, Token)> {
    let (irp, serial) = make(locations, Kind::Manager(None), 0);
    let token = Token {
        irp: irp.addr(),
        serial,
    };
    (!irp.is_null()).then_some((irp, token))
}

/// Sets what gets an IRP of [`allocate`] when it is complete, and frees it.
pub(crate) fn on_completion(irp: PIRP, done: Done) {
    if let Some(track) = IRPS.lock().irps.get_mut(&irp.addr()) {
        track.kind = Kind::Manager(Some(done));
    }
}

fn release_memory(irp: PIRP) {
    let locations = own!(irp).StackCount;
    // SAFETY: made by `make` with this layout.
    unsafe { dealloc(irp.cast(), layout(locations)) };
}

/// Frees an IRP of the table, now or when its last pin is gone.
pub(crate) fn free(irp: PIRP, api: &str) {
    let mut table = IRPS.lock();
    let Some(track) = table.irps.get_mut(&irp.addr()) else {
        drop(table);
        bugcheck::violation(api, format_args!("{irp:p} is not an allocated IRP"));
    };
    if track.pins > 0 {
        track.freed = true;
        return;
    }
    table.irps.remove(&irp.addr());
    drop(table);
    release_memory(irp);
}

fn pin(token: Token) -> Option<PIRP> {
    let mut table = IRPS.lock();
    let track = table.irps.get_mut(&token.irp)?;
    if track.serial != token.serial || track.freed {
        return None;
    }
    track.pins += 1;
    Some(core::ptr::with_exposed_provenance_mut(token.irp))
}

fn unpin(irp: PIRP) {
    let mut table = IRPS.lock();
    let Some(track) = table.irps.get_mut(&irp.addr()) else {
        return;
    };
    track.pins -= 1;
    if track.pins == 0 && track.freed {
        table.irps.remove(&irp.addr());
        drop(table);
        release_memory(irp);
    }
}

/// Cancels a request if it still exists; says whether a cancel routine ran.
pub(crate) fn cancel(token: Token) -> bool {
    let Some(irp) = pin(token) else { return false };
    // SAFETY: pinned.
    let called = unsafe { IoCancelIrp(irp) } != 0;
    unpin(irp);
    called
}

/// Calls `visit` with every IRP of the table that has not been freed.
pub(crate) fn alive(visit: &mut dyn FnMut(Alive)) {
    let all: Vec<Alive> = {
        let table = IRPS.lock();
        let live = table.irps.iter().filter(|(_, track)| !track.freed);
        live.map(|(&irp, track)| Alive {
            irp,
            owner: track.owner,
            holder: track.holder,
        })
        .collect()
    };
    all.into_iter().for_each(visit);
}

unsafe extern "C" fn allocate_for_driver(
    locations: CCHAR,
    _charge: BOOLEAN,
    caller: usize,
) -> PIRP {
    require_irql(DISPATCH_LEVEL, "IoAllocateIrp");
    make(locations, Kind::Driver, caller).0
}

caller_aware!(IoAllocateIrp, 2, allocate_for_driver);

/// An IRP on behalf of a driver, for `IoBuild*`.
pub(super) fn allocate_built(locations: i8, done: Option<Done>, caller: usize) -> PIRP {
    let kind = done.map_or(Kind::Driver, |done| Kind::Manager(Some(done)));
    make(locations, kind, caller).0
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoFreeIrp(irp: PIRP) {
    const API: &str = "IoFreeIrp";
    require_irql(DISPATCH_LEVEL, API);
    crate::require!(
        borrow!(irp, API).Type == TYPE,
        API,
        "{:p} is not an IRP",
        irp
    );
    crate::require!(
        own!(irp).CancelRoutine.is_none(),
        API,
        "the IRP still has a cancel routine"
    );
    free(irp, API);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoInitializeIrp(irp: PIRP, size: USHORT, locations: CCHAR) {
    const API: &str = "IoInitializeIrp";
    require_irql(DISPATCH_LEVEL, API);
    crate::ob::argument::check(irp.cast_const(), API);
    crate::require!(
        !IRPS.lock().irps.contains_key(&irp.addr()),
        API,
        "the IRP came from IoAllocateIrp: IoReuseIrp is the routine for it"
    );
    crate::require!(
        usize::from(size) >= size_of_irp(locations),
        API,
        "{} bytes are too few for {} stack locations",
        size,
        locations
    );
    // SAFETY: `size` bytes of the caller's, by its contract.
    unsafe { core::ptr::write_bytes(irp.cast::<u8>(), 0, usize::from(size)) };
    initialize(irp, usize::from(size), locations);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoReuseIrp(irp: PIRP, status: NTSTATUS) {
    const API: &str = "IoReuseIrp";
    require_irql(DISPATCH_LEVEL, API);
    let header = borrow!(irp, API);
    let (size, locations) = (usize::from(header.Size), header.StackCount);
    let flags = header.AllocationFlags;
    // SAFETY: the size that it was made with.
    unsafe { core::ptr::write_bytes(irp.cast::<u8>(), 0, size.max(size_of_irp(locations))) };
    initialize(irp, size, locations);
    own!(irp).AllocationFlags = flags;
    stack::set_status(irp, status, 0);
}

fn completions(irp: PIRP) -> Option<(u64, u32)> {
    IRPS.lock()
        .irps
        .get(&irp.addr())
        .map(|track| (track.serial, track.completions))
}

/// Checks what a dispatch routine did with the IRP: complete it, or mark it
/// pending and say so ("IoMarkIrpPending", "Returning Status From Dispatch
/// Routines").
fn check_dispatch(
    irp: PIRP,
    location: *mut IO_STACK_LOCATION,
    before: Option<(u64, u32)>,
    status: NTSTATUS,
    major: u8,
) {
    let Some((serial, count)) = before else {
        return;
    };
    let table = IRPS.lock();
    let Some(track) = table.irps.get(&irp.addr()) else {
        return;
    };
    if track.serial != serial || track.completions != count {
        return;
    }
    // Nobody completed it: it is still there, because it is freed after that.
    let pending = own!(location).Control & stack::PENDING_RETURNED != 0;
    drop(table);
    crate::require!(
        status == STATUS_PENDING,
        "IofCallDriver",
        "the dispatch routine for major {} returned {:#010x} for an IRP that it neither completed nor marked pending",
        major,
        status
    );
    crate::require!(
        pending,
        "IofCallDriver",
        "the dispatch routine for major {} returned STATUS_PENDING without IoMarkIrpPending",
        major
    );
}

/// Passes an IRP to a device's driver.
pub(crate) fn call(device: PDEVICE_OBJECT, irp: PIRP) -> NTSTATUS {
    const API: &str = "IofCallDriver";
    require_irql(DISPATCH_LEVEL, API);
    let target: &DEVICE_OBJECT = borrow!(device, API);
    let header = borrow!(irp, API);
    crate::require!(header.Type == TYPE, API, "{:p} is not an IRP", irp);
    let number = header.CurrentLocation - 1;
    if number <= 0 {
        bugcheck::raise(NO_MORE_IRP_STACK_LOCATIONS, [irp.addr() as u64, 0, 0, 0]);
    }
    let location = stack::next(irp);
    stack::set_current(irp, location, number);
    own!(location).DeviceObject = device;
    let major = own!(location).MajorFunction;
    crate::require!(
        usize::from(major) <= stack::MAXIMUM_FUNCTION,
        API,
        "there is no major function {}",
        major
    );
    let driver = borrow!(target.DriverObject, API);
    let routine = driver.MajorFunction[usize::from(major)];
    let before = completions(irp);
    if let Some(track) = IRPS.lock().irps.get_mut(&irp.addr()) {
        track.holder = target.DriverObject.addr();
    }
    let irql = current();
    let Some(routine) = routine else {
        bugcheck::violation(
            API,
            format_args!("the driver's dispatch entry {major} is NULL"),
        );
    };
    // SAFETY: a loaded driver's dispatch routine with its own device.
    let status = unsafe { routine(device, irp) };
    let after = current();
    crate::require!(
        after == irql,
        API,
        "the dispatch routine for major {} was called at IRQL {} and returned at {}",
        major,
        irql,
        after
    );
    check_dispatch(irp, location, before, status, major);
    status
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IofCallDriver(device: PDEVICE_OBJECT, irp: PIRP) -> NTSTATUS {
    call(device, irp)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn PoCallDriver(device: PDEVICE_OBJECT, irp: PIRP) -> NTSTATUS {
    call(device, irp)
}

/// Completes an IRP: walks up its stack, then ends it.
pub(crate) fn complete(irp: PIRP) {
    const API: &str = "IofCompleteRequest";
    require_irql(DISPATCH_LEVEL, API);
    let header = borrow!(irp, API);
    crate::require!(header.Type == TYPE, API, "{:p} is not an IRP", irp);
    if header.CurrentLocation > header.StackCount + 1 {
        bugcheck::raise(MULTIPLE_IRP_COMPLETE_REQUESTS, [irp.addr() as u64, 0, 0, 0]);
    }
    let status = stack::status(irp);
    crate::require!(
        status != STATUS_PENDING && status != -1,
        API,
        "the IRP is completed with status {:#x}",
        status
    );
    crate::require!(
        header.CancelRoutine.is_none(),
        API,
        "the IRP is completed while its cancel routine is set"
    );
    if let Some(track) = IRPS.lock().irps.get_mut(&irp.addr()) {
        track.completions += 1;
        track.holder = 0;
    }
    if walk_up(irp) {
        finish(irp);
    }
}

/// Calls completion routines; `false` when one of them keeps the IRP.
fn walk_up(irp: PIRP) -> bool {
    loop {
        let header = own!(irp);
        if header.CurrentLocation > header.StackCount {
            return true;
        }
        let location = stack::current(irp);
        let done = *own!(location);
        header.PendingReturned = done.Control & stack::PENDING_RETURNED;
        let above = location.wrapping_add(1);
        let number = header.CurrentLocation + 1;
        let (count, cancelled) = (header.StackCount, header.Cancel != 0);
        stack::set_current(irp, above, number);
        let status = stack::status(irp);
        let wanted = success(status) && done.Control & stack::INVOKE_ON_SUCCESS != 0
            || !success(status) && done.Control & stack::INVOKE_ON_ERROR != 0
            || cancelled && done.Control & stack::INVOKE_ON_CANCEL != 0;
        *own!(location) = IO_STACK_LOCATION {
            MajorFunction: done.MajorFunction,
            ..IO_STACK_LOCATION::default()
        };
        if let (true, Some(routine)) = (wanted, done.CompletionRoutine) {
            let device = if number > count {
                core::ptr::null_mut()
            } else {
                own!(above).DeviceObject
            };
            let irql = current();
            // SAFETY: set by the driver above with its own context.
            let answer = unsafe { routine(device, irp, done.Context) };
            crate::require!(
                current() == irql,
                "IofCompleteRequest",
                "a completion routine returned at IRQL {}",
                current()
            );
            if answer == STATUS_MORE_PROCESSING_REQUIRED {
                return false;
            }
        } else if done.Control & stack::PENDING_RETURNED != 0 && number <= count {
            own!(above).Control |= stack::PENDING_RETURNED;
        }
    }
}

fn finish(irp: PIRP) {
    let mut table = IRPS.lock();
    let done = match table.irps.get_mut(&irp.addr()).map(|track| &mut track.kind) {
        Some(Kind::Manager(done)) => done.take(),
        Some(Kind::Driver) | None => {
            drop(table);
            bugcheck::violation(
                "IofCompleteRequest",
                format_args!(
                    "an IRP of a driver's own reached the top of its stack: its completion routine must return STATUS_MORE_PROCESSING_REQUIRED"
                ),
            );
        }
    };
    drop(table);
    let Some(done) = done else {
        bugcheck::raise(MULTIPLE_IRP_COMPLETE_REQUESTS, [irp.addr() as u64, 0, 0, 0]);
    };
    let (status, information) = (stack::status(irp), own!(irp).IoStatus.Information);
    done(irp, status, information);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IofCompleteRequest(irp: PIRP, _boost: CCHAR) {
    complete(irp);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoCompleteRequest(irp: PIRP, _boost: CCHAR) {
    complete(irp);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoAcquireCancelSpinLock(irql: *mut KIRQL) {
    require_irql(DISPATCH_LEVEL, "IoAcquireCancelSpinLock");
    let lock = &raw mut CANCEL_LOCK;
    // SAFETY: the one cancel lock.
    let old = unsafe { nt::KeAcquireSpinLockRaiseToDpc(lock) };
    put!(irql, old, "IoAcquireCancelSpinLock");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoReleaseCancelSpinLock(irql: KIRQL) {
    require_irql_exact(DISPATCH_LEVEL, "IoReleaseCancelSpinLock");
    let lock = &raw mut CANCEL_LOCK;
    // SAFETY: held, by the routine's contract; the core checks that.
    unsafe { nt::KeReleaseSpinLock(lock, irql) };
}

/// Takes the cancel routine out of an IRP, as `IoSetCancelRoutine` does.
pub(crate) fn exchange_cancel_routine(irp: PIRP, routine: PDRIVER_CANCEL) -> PDRIVER_CANCEL {
    let field = &raw mut own!(irp).CancelRoutine;
    // SAFETY: an aligned pointer-sized field that everybody exchanges atomically;
    // `Option<fn>` has the layout of a nullable pointer.
    let field = unsafe { AtomicPtr::<()>::from_ptr(field.cast()) };
    let new = routine.map_or(core::ptr::null_mut(), |routine| routine as *mut ());
    let old = field.swap(new, Ordering::SeqCst);
    // SAFETY: what the field holds is NULL or a cancel routine.
    unsafe { core::mem::transmute::<*mut (), PDRIVER_CANCEL>(old) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoCancelIrp(irp: PIRP) -> BOOLEAN {
    const API: &str = "IoCancelIrp";
    require_irql(DISPATCH_LEVEL, API);
    crate::require!(
        borrow!(irp, API).Type == TYPE,
        API,
        "{:p} is not an IRP",
        irp
    );
    let mut irql = 0;
    // SAFETY: the lock is not held by this thread: it is taken for a few lines.
    unsafe { IoAcquireCancelSpinLock(&raw mut irql) };
    let header = own!(irp);
    header.Cancel = 1;
    let Some(routine) = exchange_cancel_routine(irp, None) else {
        // SAFETY: taken above.
        unsafe { IoReleaseCancelSpinLock(irql) };
        return 0;
    };
    if header.CurrentLocation > header.StackCount + 1 {
        const CANCEL_STATE_IN_COMPLETED_IRP: u32 = 0x48;
        bugcheck::raise(CANCEL_STATE_IN_COMPLETED_IRP, [irp.addr() as u64, 0, 0, 0]);
    }
    header.CancelIrql = irql;
    let device = own!(stack::current(irp)).DeviceObject;
    // SAFETY: the driver's routine, called with the lock held, which it releases.
    unsafe { routine(device, irp) };
    let after = current();
    crate::require!(
        after == irql,
        API,
        "the cancel routine did not release the cancel spin lock to IRQL {}: IRQL is {}",
        irql,
        after
    );
    1
}
