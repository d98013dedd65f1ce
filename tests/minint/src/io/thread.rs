//! Threads and process notifications as the I/O manager sees them, and parts of
//! plug and play that a driver without hardware meets.

use wdk_standin::wdk_sys::{
    HANDLE, NTSTATUS, PCLIENT_ID, PDEVICE_OBJECT, PDRIVER_OBJECT, PHANDLE, PIO_COMPLETION_ROUTINE,
    PIRP, PKSTART_ROUTINE, POBJECT_ATTRIBUTES, PVOID, ULONG,
};

use super::stack;
use crate::ex::nt;
use crate::ke::irql::{DISPATCH_LEVEL, PASSIVE_LEVEL, require_irql};
use crate::ke::spinlock::SpinLock;
use crate::ob::argument::{borrow, own};
use crate::rtl::status::{STATUS_NOT_SUPPORTED, STATUS_SUCCESS};

type Reinitialize = unsafe extern "C" fn(PDRIVER_OBJECT, PVOID, ULONG);

/// Routines to call once the driver's `DriverEntry` has returned.
static REINITIALIZE: SpinLock<alloc::vec::Vec<(usize, usize, usize, u32)>> =
    SpinLock::new(alloc::vec::Vec::new());

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoCreateSystemThread(
    object: PVOID,
    handle: PHANDLE,
    access: ULONG,
    attributes: POBJECT_ATTRIBUTES,
    process: HANDLE,
    client: PCLIENT_ID,
    routine: PKSTART_ROUTINE,
    context: PVOID,
) -> NTSTATUS {
    const API: &str = "IoCreateSystemThread";
    require_irql(PASSIVE_LEVEL, API);
    crate::require!(
        crate::ob::kind_of(object).is_some(),
        API,
        "{:p} is not an I/O object",
        object
    );
    // SAFETY: the same contract.
    unsafe {
        nt::PsCreateSystemThread(
            handle, access, attributes, process, client, routine, context,
        )
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoSetCompletionRoutineEx(
    _device: PDEVICE_OBJECT,
    irp: PIRP,
    routine: PIO_COMPLETION_ROUTINE,
    context: PVOID,
    on_success: u8,
    on_error: u8,
    on_cancel: u8,
) -> NTSTATUS {
    const API: &str = "IoSetCompletionRoutineEx";
    require_irql(DISPATCH_LEVEL, API);
    let _ = borrow!(irp, API);
    // The driver stays loaded while its IRP is out: nothing more to hold.
    let location = own!(stack::next(irp));
    location.CompletionRoutine = routine;
    location.Context = context;
    location.Control = 0;
    for (wanted, bit) in [
        (on_success, stack::INVOKE_ON_SUCCESS),
        (on_error, stack::INVOKE_ON_ERROR),
        (on_cancel, stack::INVOKE_ON_CANCEL),
    ] {
        if wanted != 0 {
            location.Control |= bit;
        }
    }
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoRegisterDriverReinitialization(
    driver: PDRIVER_OBJECT,
    routine: Option<Reinitialize>,
    context: PVOID,
) {
    const API: &str = "IoRegisterDriverReinitialization";
    require_irql(PASSIVE_LEVEL, API);
    let count = {
        let extension = borrow!(borrow!(driver, API).DriverExtension, API);
        extension.Count += 1;
        extension.Count
    };
    if let Some(routine) = routine {
        let entry = (
            driver.addr(),
            routine as usize,
            context.expose_provenance(),
            count,
        );
        REINITIALIZE.lock().push(entry);
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoRegisterBootDriverReinitialization(
    driver: PDRIVER_OBJECT,
    routine: Option<Reinitialize>,
    context: PVOID,
) {
    // SAFETY: the same contract; there are no boot drivers.
    unsafe { IoRegisterDriverReinitialization(driver, routine, context) };
}

/// Calls a driver's reinitialization routines, those that they register included.
pub(super) fn reinitialize(driver: PDRIVER_OBJECT) {
    loop {
        let next = {
            let mut all = REINITIALIZE.lock();
            let at = all.iter().position(|entry| entry.0 == driver.addr());
            at.map(|at| all.remove(at))
        };
        let Some((_, routine, context, count)) = next else {
            return;
        };
        // SAFETY: a `DRIVER_REINITIALIZE`, by the registration's contract.
        let routine: Reinitialize = unsafe { core::mem::transmute(routine) };
        // SAFETY: the driver is loaded.
        unsafe {
            routine(
                driver,
                core::ptr::with_exposed_provenance_mut(context),
                count,
            );
        };
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoWMIRegistrationControl(
    _device: PDEVICE_OBJECT,
    _action: ULONG,
) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, "IoWMIRegistrationControl");
    STATUS_NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoGetTopLevelIrp() -> PIRP {
    // No file system sets one.
    core::ptr::null_mut()
}
