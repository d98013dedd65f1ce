//! Power: the callbacks of a system that goes to sleep and comes back, and power
//! setting callbacks.
//!
//! `\Callback\PowerState` gets `PO_CB_SYSTEM_STATE_LOCK` with 0 before the system
//! leaves S0 and 1 when it is back ("ExRegisterCallback"). PASSIVE_LEVEL.

use alloc::boxed::Box;
use alloc::vec::Vec;

use wdk_standin::wdk_sys::{LPCGUID, NTSTATUS, PDEVICE_OBJECT, PIRP, PVOID};

use crate::ex::callback::notify_by_name;
use crate::ke::irql::{DISPATCH_LEVEL, PASSIVE_LEVEL, require_irql};
use crate::ke::spinlock::SpinLock;
use crate::ob::argument::{borrow, put};
use crate::rtl::status::{STATUS_INVALID_PARAMETER, STATUS_SUCCESS};

/// `PO_CB_SYSTEM_STATE_LOCK`.
const PO_CB_SYSTEM_STATE_LOCK: usize = 3;

type SettingRoutine = unsafe extern "C" fn(LPCGUID, PVOID, u32, PVOID) -> NTSTATUS;

struct Setting {
    routine: usize,
}

static SETTINGS: SpinLock<Vec<(usize, usize)>> = SpinLock::new(Vec::new());

/// Tells the system's callback that S0 is about to be left, or is back.
pub(crate) fn state_change(resumed: bool) -> bool {
    notify_by_name(
        "\\Callback\\PowerState",
        PO_CB_SYSTEM_STATE_LOCK,
        usize::from(resumed),
    )
}

/// Calls `visit` with the routine of each power setting registration.
pub(crate) fn registered(visit: &mut dyn FnMut(usize)) {
    let all = SETTINGS.lock().clone();
    for (_, routine) in all {
        visit(routine);
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn PoRegisterPowerSettingCallback(
    _device: PDEVICE_OBJECT,
    setting: LPCGUID,
    routine: Option<SettingRoutine>,
    context: PVOID,
    handle: *mut PVOID,
) -> NTSTATUS {
    const API: &str = "PoRegisterPowerSettingCallback";
    require_irql(PASSIVE_LEVEL, API);
    let Some(routine) = routine else {
        return STATUS_INVALID_PARAMETER;
    };
    let _ = borrow!(setting.cast_mut(), API);
    let registration = Box::into_raw(Box::new(Setting {
        routine: routine as usize,
    }));
    SETTINGS
        .lock()
        .push((registration.expose_provenance(), routine as usize));
    put!(handle, registration.cast(), API);
    // "The power manager calls the routine immediately" with the current value,
    // 1: on AC power, screen on, and so on.
    let mut value = 1u32;
    // SAFETY: the driver's routine with a value that outlives the call.
    let _ = unsafe { routine(setting, (&raw mut value).cast(), 4, context) };
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn PoUnregisterPowerSettingCallback(handle: PVOID) -> NTSTATUS {
    const API: &str = "PoUnregisterPowerSettingCallback";
    require_irql(PASSIVE_LEVEL, API);
    let known = {
        let mut settings = SETTINGS.lock();
        let at = settings
            .iter()
            .position(|(address, _)| *address == handle.addr());
        at.map(|at| settings.swap_remove(at))
    };
    let Some((_, routine)) = known else {
        return STATUS_INVALID_PARAMETER;
    };
    // SAFETY: made by the registration, out of the table now.
    let setting = unsafe { Box::from_raw(handle.cast::<Setting>()) };
    debug_assert_eq!(setting.routine, routine);
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn PoStartNextPowerIrp(_irp: PIRP) {
    // Nothing to do since Windows Vista.
    require_irql(DISPATCH_LEVEL, "PoStartNextPowerIrp");
}
