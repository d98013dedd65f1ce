//! Shutdown notification: `IRP_MJ_SHUTDOWN` to the devices that asked for it.

use alloc::vec::Vec;

use wdk_standin::wdk_sys::{NTSTATUS, PDEVICE_OBJECT};

use super::device::DO_SHUTDOWN_REGISTERED;
use super::{file, stack};
use crate::ex::nt;
use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ke::spinlock::SpinLock;
use crate::ob::argument::{borrow, own};
use crate::rtl::status::STATUS_SUCCESS;

static REGISTERED: SpinLock<Vec<usize>> = SpinLock::new(Vec::new());

/// Tells every registered device, last one first. PASSIVE_LEVEL.
pub(crate) fn notify_all() {
    let all = core::mem::take(&mut *REGISTERED.lock());
    for address in all.into_iter().rev() {
        let device: PDEVICE_OBJECT = core::ptr::with_exposed_provenance_mut(address);
        own!(device).Flags &= !DO_SHUTDOWN_REGISTERED;
        let _ = file::send(
            super::device::top(device),
            core::ptr::null_mut(),
            nt::KERNEL_MODE,
            |location| {
                location.MajorFunction = stack::SHUTDOWN;
            },
        );
    }
}

/// Takes a device that is being deleted off the list.
pub(super) fn forget(device: PDEVICE_OBJECT) {
    REGISTERED.lock().retain(|&other| other != device.addr());
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoRegisterShutdownNotification(device: PDEVICE_OBJECT) -> NTSTATUS {
    const API: &str = "IoRegisterShutdownNotification";
    require_irql(PASSIVE_LEVEL, API);
    borrow!(device, API).Flags |= DO_SHUTDOWN_REGISTERED;
    let mut all = REGISTERED.lock();
    if !all.contains(&device.addr()) {
        all.push(device.expose_provenance());
    }
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoRegisterLastChanceShutdownNotification(
    device: PDEVICE_OBJECT,
) -> NTSTATUS {
    // SAFETY: the same contract; there is no file system to go in between.
    unsafe { IoRegisterShutdownNotification(device) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoUnregisterShutdownNotification(device: PDEVICE_OBJECT) {
    const API: &str = "IoUnregisterShutdownNotification";
    require_irql(PASSIVE_LEVEL, API);
    borrow!(device, API).Flags &= !DO_SHUTDOWN_REGISTERED;
    forget(device);
}
