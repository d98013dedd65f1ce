//! `wdk::wdf`: the genuine crate's two covers of framework objects.
//!
//! Each owns a handle that the framework deletes with its parent.

use crate::wdk_sys::{
    NT_SUCCESS, NTSTATUS, WDF_OBJECT_ATTRIBUTES, WDF_TIMER_CONFIG, WDFSPINLOCK, WDFTIMER,
    call_unsafe_wdf_function_binding,
};

/// A framework spin lock.
pub struct SpinLock {
    wdf_spin_lock: WDFSPINLOCK,
}

impl SpinLock {
    /// Creates the lock.
    ///
    /// # Errors
    /// What `WdfSpinLockCreate` gives.
    pub fn try_new(attributes: &mut WDF_OBJECT_ATTRIBUTES) -> Result<Self, NTSTATUS> {
        let mut wdf_spin_lock: WDFSPINLOCK = core::ptr::null_mut();
        // SAFETY: attributes and result live across the call.
        let status = unsafe {
            call_unsafe_wdf_function_binding!(WdfSpinLockCreate, attributes, &raw mut wdf_spin_lock)
        };
        NT_SUCCESS(status)
            .then_some(Self { wdf_spin_lock })
            .ok_or(status)
    }

    /// The same.
    ///
    /// # Errors
    /// As [`SpinLock::try_new`].
    pub fn create(attributes: &mut WDF_OBJECT_ATTRIBUTES) -> Result<Self, NTSTATUS> {
        Self::try_new(attributes)
    }

    /// Takes the lock and raises to `DISPATCH_LEVEL`.
    pub fn acquire(&self) {
        // SAFETY: made by `try_new`, deleted by nobody but the framework.
        unsafe { call_unsafe_wdf_function_binding!(WdfSpinLockAcquire, self.wdf_spin_lock) };
    }

    /// Lets go of it.
    pub fn release(&self) {
        // SAFETY: as above.
        unsafe { call_unsafe_wdf_function_binding!(WdfSpinLockRelease, self.wdf_spin_lock) };
    }
}

/// A framework timer.
pub struct Timer {
    wdf_timer: WDFTIMER,
}

impl Timer {
    /// Creates the timer.
    ///
    /// # Errors
    /// What `WdfTimerCreate` gives.
    pub fn try_new(
        timer_config: &mut WDF_TIMER_CONFIG,
        attributes: &mut WDF_OBJECT_ATTRIBUTES,
    ) -> Result<Self, NTSTATUS> {
        let mut wdf_timer: WDFTIMER = core::ptr::null_mut();
        // SAFETY: all three live across the call.
        let status = unsafe {
            call_unsafe_wdf_function_binding!(
                WdfTimerCreate,
                timer_config,
                attributes,
                &raw mut wdf_timer
            )
        };
        NT_SUCCESS(status)
            .then_some(Self { wdf_timer })
            .ok_or(status)
    }

    /// The same.
    ///
    /// # Errors
    /// As [`Timer::try_new`].
    pub fn create(
        timer_config: &mut WDF_TIMER_CONFIG,
        attributes: &mut WDF_OBJECT_ATTRIBUTES,
    ) -> Result<Self, NTSTATUS> {
        Self::try_new(timer_config, attributes)
    }

    /// Starts it: 100 ns units, negative is relative. Whether it was running.
    #[must_use]
    pub fn start(&self, due_time: i64) -> bool {
        // SAFETY: made by `try_new`, deleted by nobody but the framework.
        let running =
            unsafe { call_unsafe_wdf_function_binding!(WdfTimerStart, self.wdf_timer, due_time) };
        running != 0
    }

    /// Stops it. Whether it was running.
    #[must_use]
    pub fn stop(&self, wait: bool) -> bool {
        // SAFETY: as above.
        let running = unsafe {
            call_unsafe_wdf_function_binding!(WdfTimerStop, self.wdf_timer, u8::from(wait))
        };
        running != 0
    }
}
