//! WDFWAITLOCK and WDFSPINLOCK.

use core::sync::atomic::{AtomicUsize, Ordering};

use wdk_standin::wdk_sys::{
    KIRQL, KSPIN_LOCK, NTSTATUS, PLONGLONG, PWDF_DRIVER_GLOBALS, PWDF_OBJECT_ATTRIBUTES,
    STATUS_SUCCESS, STATUS_TIMEOUT, WDFSPINLOCK, WDFWAITLOCK,
    ntddk::{
        KeAcquireSpinLockRaiseToDpc, KeEnterCriticalRegion, KeGetCurrentThread,
        KeLeaveCriticalRegion, KeReleaseSpinLock,
    },
};

use crate::{
    call::Call,
    nt::{
        event::Event,
        irql,
        pinned::Pinned,
        violation::{self, Code},
    },
    object::{self, Attributes, Kind, Parent},
};

fn this_thread() -> usize {
    // SAFETY: reads the processor's own record.
    unsafe { KeGetCurrentThread() }.addr()
}

/// A lock whose waiters sleep; not recursive.
pub(crate) struct WaitLock {
    event: Event,
    owner: AtomicUsize,
}

pub(crate) unsafe extern "C" fn wdf_wait_lock_create(
    globals: PWDF_DRIVER_GLOBALS,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    lock: *mut WDFWAITLOCK,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfWaitLockCreate", irql::DISPATCH, globals) };
    let made = Attributes::read(&call, attributes).and_then(|attributes| {
        let kind = Kind::WaitLock(WaitLock {
            event: Event::new(),
            owner: AtomicUsize::new(0),
        });
        object::create(&call, &attributes, Parent::Default(call.driver()), kind)
    });
    if let Ok(made) = &made
        && let Kind::WaitLock(inner) = &made.kind
    {
        inner.event.initialize(true, true);
    }
    call.finish(made, lock)
}

pub(crate) unsafe extern "C" fn wdf_wait_lock_acquire(
    globals: PWDF_DRIVER_GLOBALS,
    lock: WDFWAITLOCK,
    timeout: PLONGLONG,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfWaitLockAcquire", irql::DISPATCH, globals) };
    let lock = call.wait_lock(lock);
    let timeout = (!timeout.is_null()).then(|| call.read(timeout, "Timeout"));
    call.require(
        timeout == Some(0) || irql::current() <= irql::APC,
        format_args!("waits at IRQL {}", irql::current()),
    );
    if lock.owner.load(Ordering::Acquire) == this_thread() {
        violation::raise(
            Code::Lock,
            lock.object.handle().0,
            0,
            format_args!("WdfWaitLockAcquire: this thread holds the lock already"),
        );
    }
    // SAFETY: left by the release, or below.
    unsafe { KeEnterCriticalRegion() };
    let status = lock.event.wait(timeout);
    if status == STATUS_TIMEOUT {
        // SAFETY: entered above.
        unsafe { KeLeaveCriticalRegion() };
        return status;
    }
    lock.owner.store(this_thread(), Ordering::Release);
    STATUS_SUCCESS
}

pub(crate) unsafe extern "C" fn wdf_wait_lock_release(
    globals: PWDF_DRIVER_GLOBALS,
    lock: WDFWAITLOCK,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfWaitLockRelease", irql::DISPATCH, globals) };
    let lock = call.wait_lock(lock);
    if lock.owner.swap(0, Ordering::AcqRel) != this_thread() {
        violation::raise(
            Code::Lock,
            lock.object.handle().0,
            0,
            format_args!("WdfWaitLockRelease: this thread does not hold the lock"),
        );
    }
    lock.event.set();
    // SAFETY: entered by the acquisition.
    unsafe { KeLeaveCriticalRegion() };
}

/// A lock whose waiters spin; held at DISPATCH_LEVEL.
pub(crate) struct SpinLockObject {
    lock: Pinned<KSPIN_LOCK>,
    owner: AtomicUsize,
    irql: AtomicUsize,
}

pub(crate) unsafe extern "C" fn wdf_spin_lock_create(
    globals: PWDF_DRIVER_GLOBALS,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    lock: *mut WDFSPINLOCK,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfSpinLockCreate", irql::DISPATCH, globals) };
    let made = Attributes::read(&call, attributes).and_then(|attributes| {
        let kind = Kind::SpinLock(SpinLockObject {
            lock: Pinned::new(),
            owner: AtomicUsize::new(0),
            irql: AtomicUsize::new(0),
        });
        object::create(&call, &attributes, Parent::Default(call.driver()), kind)
    });
    call.finish(made, lock)
}

pub(crate) unsafe extern "C" fn wdf_spin_lock_acquire(
    globals: PWDF_DRIVER_GLOBALS,
    lock: WDFSPINLOCK,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfSpinLockAcquire", irql::DISPATCH, globals) };
    let lock = call.spin_lock(lock);
    if lock.owner.load(Ordering::Acquire) == this_thread() {
        violation::raise(
            Code::Lock,
            lock.object.handle().0,
            0,
            format_args!("WdfSpinLockAcquire: this thread holds the lock already"),
        );
    }
    // SAFETY: initialised, and it does not move.
    let irql: KIRQL = unsafe { KeAcquireSpinLockRaiseToDpc(lock.lock.get()) };
    lock.irql.store(usize::from(irql), Ordering::Relaxed);
    lock.owner.store(this_thread(), Ordering::Release);
}

pub(crate) unsafe extern "C" fn wdf_spin_lock_release(
    globals: PWDF_DRIVER_GLOBALS,
    lock: WDFSPINLOCK,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfSpinLockRelease", irql::DISPATCH, globals) };
    let lock = call.spin_lock(lock);
    let irql = lock.irql.load(Ordering::Relaxed) as KIRQL;
    if lock.owner.swap(0, Ordering::AcqRel) != this_thread() {
        violation::raise(
            Code::Lock,
            lock.object.handle().0,
            0,
            format_args!("WdfSpinLockRelease: this thread does not hold the lock"),
        );
    }
    // SAFETY: taken by this thread at that IRQL.
    unsafe { KeReleaseSpinLock(lock.lock.get(), irql) };
}
