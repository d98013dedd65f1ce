//! Callback objects: `\Callback\PowerState`, `\Callback\ProcessorAdd`,
//! `\Callback\SetSystemTime`, and those of drivers.
//!
//! A registration is counted while its routine runs; unregistering waits for
//! that. The list's lock is not held while a routine runs.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use wdk_standin::wdk_sys::{BOOLEAN, NTSTATUS, POBJECT_ATTRIBUTES, PVOID};

use super::event::name_of;
use crate::ke::irql::{APC_LEVEL, DISPATCH_LEVEL, PASSIVE_LEVEL, require_irql};
use crate::ke::spinlock::SpinLock;
use crate::ob::argument::{own, put};
use crate::ob::namespace::Node;
use crate::ob::{self, ObType};
use crate::rtl::status::{
    STATUS_OBJECT_NAME_NOT_FOUND, STATUS_OBJECT_TYPE_MISMATCH, STATUS_SUCCESS,
};

type Routine = unsafe extern "C" fn(PVOID, PVOID, PVOID);

struct Registration {
    callback: usize,
    routine: usize,
    context: usize,
    running: AtomicU32,
    removed: AtomicBool,
}

struct Callback {
    registrations: SpinLock<Vec<Arc<Registration>>>,
    multiple: bool,
}

/// Every registration by the address that the driver holds.
static REGISTRATIONS: SpinLock<Vec<(usize, Arc<Registration>)>> = SpinLock::new(Vec::new());

fn delete(object: *mut c_void) {
    ob::remove_object_names(object.addr());
    // SAFETY: made by `make`, and its last reference is gone.
    drop(unsafe { Box::from_raw(object.cast::<Callback>()) });
}

fn make(name: Option<&str>, multiple: bool) -> *mut c_void {
    let callback = Callback {
        registrations: SpinLock::new(Vec::new()),
        multiple,
    };
    let object = Box::into_raw(Box::new(callback)).cast::<c_void>();
    ob::insert(object, ObType::Callback, Some(delete));
    if let Some(name) = name {
        let _ = ob::insert_name(name, Node::Object(object.expose_provenance()));
    }
    object
}

/// Makes the system's callback objects.
pub(super) fn start() {
    for name in [
        "\\Callback\\PowerState",
        "\\Callback\\ProcessorAdd",
        "\\Callback\\SetSystemTime",
    ] {
        let _ = make(Some(name), true);
    }
}

fn of<'a>(object: *mut c_void, api: &str) -> &'a Callback {
    crate::require!(
        ob::kind_of(object) == Some(ObType::Callback),
        api,
        "{:p} is not a callback object",
        object
    );
    own!(object.cast::<Callback>())
}

/// Calls the routines of a callback object in the order of their registration.
pub(crate) fn notify(object: *mut c_void, first: PVOID, second: PVOID, api: &str) {
    let routines = of(object, api).registrations.lock().clone();
    for registration in routines {
        let _ = registration.running.fetch_add(1, Ordering::SeqCst);
        if !registration.removed.load(Ordering::SeqCst) {
            // SAFETY: only `PCALLBACK_FUNCTION` values are stored.
            let routine: Routine = unsafe { core::mem::transmute(registration.routine) };
            let context = core::ptr::with_exposed_provenance_mut(registration.context);
            let irql = crate::ke::irql::current();
            // SAFETY: a routine of a loaded driver: unregistering waits for the
            // count taken above.
            unsafe { routine(context, first, second) };
            let after = crate::ke::irql::current();
            crate::require!(
                after == irql,
                api,
                "a routine changed the IRQL to {}",
                after
            );
        }
        let _ = registration.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Fires a callback object by name; `false` if there is none.
pub(crate) fn notify_by_name(name: &str, first: usize, second: usize) -> bool {
    let Ok((object, _)) = ob::resolve(name) else {
        return false;
    };
    notify(
        core::ptr::with_exposed_provenance_mut(object),
        core::ptr::without_provenance_mut(first),
        core::ptr::without_provenance_mut(second),
        "ExNotifyCallback",
    );
    true
}

/// Calls `visit` with the routine of each registration.
pub(crate) fn registered(visit: &mut dyn FnMut(usize)) {
    let all: Vec<usize> = REGISTRATIONS
        .lock()
        .iter()
        .map(|(_, r)| r.routine)
        .collect();
    all.into_iter().for_each(visit);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExCreateCallback(
    callback: *mut PVOID,
    attributes: POBJECT_ATTRIBUTES,
    create: BOOLEAN,
    multiple: BOOLEAN,
) -> NTSTATUS {
    const API: &str = "ExCreateCallback";
    require_irql(PASSIVE_LEVEL, API);
    let name = name_of(attributes, API);
    if let Some(name) = &name
        && let Ok((object, _)) = ob::resolve(name)
    {
        let object = core::ptr::with_exposed_provenance_mut::<c_void>(object);
        if ob::kind_of(object) != Some(ObType::Callback) {
            return STATUS_OBJECT_TYPE_MISMATCH;
        }
        let _ = ob::reference(object, API);
        put!(callback, object, API);
        return STATUS_SUCCESS;
    }
    if create == 0 {
        return STATUS_OBJECT_NAME_NOT_FOUND;
    }
    put!(callback, make(name.as_deref(), multiple != 0), API);
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExRegisterCallback(
    callback: PVOID,
    routine: Option<Routine>,
    context: PVOID,
) -> PVOID {
    const API: &str = "ExRegisterCallback";
    require_irql(APC_LEVEL, API);
    let object = of(callback, API);
    let Some(routine) = routine else {
        crate::ke::bugcheck::violation(API, format_args!("the routine is NULL"));
    };
    let mut registrations = object.registrations.lock();
    if !object.multiple && !registrations.is_empty() {
        return core::ptr::null_mut();
    }
    let registration = Arc::new(Registration {
        callback: callback.expose_provenance(),
        routine: routine as usize,
        context: context.expose_provenance(),
        running: AtomicU32::new(0),
        removed: AtomicBool::new(false),
    });
    registrations.push(Arc::clone(&registration));
    drop(registrations);
    let _ = ob::reference(callback, API);
    let handle = Arc::as_ptr(&registration).addr();
    REGISTRATIONS.lock().push((handle, registration));
    core::ptr::without_provenance_mut(handle)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExUnregisterCallback(handle: PVOID) {
    const API: &str = "ExUnregisterCallback";
    require_irql(APC_LEVEL, API);
    let registration = {
        let mut all = REGISTRATIONS.lock();
        let at = all
            .iter()
            .position(|(address, _)| *address == handle.addr());
        at.map(|at| all.swap_remove(at).1)
    };
    let Some(registration) = registration else {
        crate::ke::bugcheck::violation(API, format_args!("{handle:p} is not a registration"));
    };
    registration.removed.store(true, Ordering::SeqCst);
    let object = core::ptr::with_exposed_provenance_mut::<c_void>(registration.callback);
    of(object, API)
        .registrations
        .lock()
        .retain(|other| !Arc::ptr_eq(other, &registration));
    while registration.running.load(Ordering::SeqCst) != 0 {
        super::event::sleep_ms(1);
    }
    let _ = ob::dereference(object, API);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExNotifyCallback(callback: PVOID, first: PVOID, second: PVOID) {
    require_irql(DISPATCH_LEVEL, "ExNotifyCallback");
    notify(callback, first, second, "ExNotifyCallback");
}
