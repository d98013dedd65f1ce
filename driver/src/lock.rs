//! A mutex around data, on the framework's wait lock.
//!
//! PASSIVE_LEVEL only; a holder may wait and may call any NT routine of that
//! level. Not recursive. The framework frees the lock object with the driver.
//!
//! Order, outermost first: `control` (held through a whole start or stop; only
//! tried by callers of START and STOP), `images` (the module
//! list), `machine` (the hypervisor), `findings` (assembler and parked waits).
//! A thread that holds one takes only later ones, and completes or forwards no
//! request ([`crate::waiters`] tells why).

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

use crate::status::Status;
use crate::wdk_crates::wdk_sys::{
    NT_SUCCESS, STATUS_SUCCESS, WDF_NO_OBJECT_ATTRIBUTES, WDFWAITLOCK,
    call_unsafe_wdf_function_binding,
};

/// Data that one thread at a time may touch.
pub(crate) struct WaitLock<T> {
    handle: WDFWAITLOCK,
    value: UnsafeCell<T>,
}

// SAFETY: the handle is good in any thread, and the lock gives the value to one
// thread at a time.
unsafe impl<T: Send> Sync for WaitLock<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for WaitLock<T> {}

impl<T> WaitLock<T> {
    /// A free lock around `value`; the driver object is its parent.
    pub(crate) fn new(value: T) -> Result<Self, Status> {
        let mut handle: WDFWAITLOCK = core::ptr::null_mut();
        // SAFETY: PASSIVE_LEVEL, the framework is bound, `handle` is ours.
        let status = unsafe {
            call_unsafe_wdf_function_binding!(
                WdfWaitLockCreate,
                WDF_NO_OBJECT_ATTRIBUTES,
                &raw mut handle
            )
        };
        if NT_SUCCESS(status) {
            Ok(Self {
                handle,
                value: UnsafeCell::new(value),
            })
        } else {
            Err(Status::from_nt(status))
        }
    }

    /// Waits for the lock.
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        // SAFETY: the handle is a live wait lock; without a time limit the call
        // cannot fail.
        let _ = unsafe {
            call_unsafe_wdf_function_binding!(
                WdfWaitLockAcquire,
                self.handle,
                core::ptr::null_mut()
            )
        };
        Guard { lock: self }
    }

    /// Takes the lock if it is free.
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, T>> {
        let mut at_once = 0;
        // SAFETY: the handle is a live wait lock; the time is ours.
        let status = unsafe {
            call_unsafe_wdf_function_binding!(WdfWaitLockAcquire, self.handle, &raw mut at_once)
        };
        // STATUS_TIMEOUT is a success code too.
        (status == STATUS_SUCCESS).then(|| Guard { lock: self })
    }
}

/// The right to the data, until dropped.
pub(crate) struct Guard<'a, T> {
    lock: &'a WaitLock<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard holds the lock, and is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: this guard's creation acquired it.
        unsafe { call_unsafe_wdf_function_binding!(WdfWaitLockRelease, self.lock.handle) };
    }
}
