//! Services: driver objects from `DriverEntry` to `DriverUnload`.
//!
//! A service is a `.sys` file of the boot image; its name is the file's without
//! `.sys`. Starting and stopping are for one thread at a time per service; the
//! table's lock is held for its state only. A driver whose devices are open is
//! unloaded when the last file on them is closed, as `NtUnloadDriver` does.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ffi::c_void;

use wdk_standin::wdk_sys::{
    DRIVER_EXTENSION, DRIVER_OBJECT, NTSTATUS, PDEVICE_OBJECT, PDRIVER_OBJECT, PIRP,
    PUNICODE_STRING, PVOID, ULONG, UNICODE_STRING,
};

use super::{device, irp, stack};
use crate::hal::boot;
use crate::ke::irql::{PASSIVE_LEVEL, current, require_irql};
use crate::ke::spinlock::SpinLock;
use crate::ldr;
use crate::ob::argument::{borrow, own, put};
use crate::ob::namespace::Node;
use crate::ob::{self, ObType};
use crate::rtl::status::{
    STATUS_IMAGE_ALREADY_LOADED, STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_DEVICE_REQUEST,
    STATUS_INVALID_IMAGE_FORMAT, STATUS_OBJECT_NAME_COLLISION, STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_SUCCESS, name as status_name,
};
use crate::rtl::unicode::{Owned, text};

/// State of a service, the numbers of `SERVICE_STATUS.dwCurrentState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// No such service.
    Absent = 0,
    /// Not loaded.
    Stopped = 1,
    /// `DriverEntry` runs.
    Starting = 2,
    /// To be unloaded when its devices are closed, or `DriverUnload` runs.
    Stopping = 3,
    /// Loaded.
    Running = 4,
}

/// What a start or stop came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// NTSTATUS of the operation.
    pub(crate) status: NTSTATUS,
    /// State afterwards.
    pub(crate) state: State,
    /// A sentence for people, empty when all is well.
    pub(crate) text: String,
}

struct Service {
    name: String,
    state: State,
    driver: usize,
    base: usize,
    /// Somebody is finding out whether it can be unloaded, or unloads it.
    claimed: bool,
}

static SERVICES: SpinLock<Vec<Service>> = SpinLock::new(Vec::new());

/// The driver object with all that hangs on it; `object` is first.
#[repr(C)]
struct Driver {
    object: DRIVER_OBJECT,
    extension: DRIVER_EXTENSION,
    hardware: UNICODE_STRING,
    strings: [Owned; 4],
    client_extensions: SpinLock<Vec<(usize, usize)>>,
    module: u32,
}

/// The file of a service.
fn file_of(service: &str) -> String {
    let name = if service.eq_ignore_ascii_case("hvdetect") {
        "hvdetect_driver"
    } else {
        service
    };
    name.to_ascii_lowercase() + ".sys"
}

fn canonical(service: &str) -> String {
    let name = service.to_ascii_lowercase();
    if name == "hvdetect" {
        "hvdetect_driver".to_string()
    } else {
        name
    }
}

/// State of a service.
pub(crate) fn query(service: &str) -> State {
    let name = canonical(service);
    let known = SERVICES
        .lock()
        .iter()
        .find(|s| s.name == name)
        .map(|s| s.state);
    match known {
        Some(state) => state,
        None if boot::file(&file_of(service)).is_some() => State::Stopped,
        None => State::Absent,
    }
}

/// Services that have a driver object, with it.
pub(crate) fn running() -> Vec<(String, usize)> {
    SERVICES
        .lock()
        .iter()
        .map(|s| (s.name.clone(), s.driver))
        .collect()
}

/// Number of the module of a driver object.
pub(crate) fn module_of(driver: PDRIVER_OBJECT) -> u32 {
    if ob::kind_of(driver.cast()) == Some(ObType::Driver) {
        own!(driver.cast::<Driver>()).module
    } else {
        0
    }
}

/// Whether opens on a driver's devices are refused.
pub(super) fn is_unloading(driver: PDRIVER_OBJECT) -> bool {
    SERVICES
        .lock()
        .iter()
        .any(|s| s.driver == driver.addr() && s.state == State::Stopping)
}

unsafe extern "C" fn invalid_request(_device: PDEVICE_OBJECT, irp: PIRP) -> NTSTATUS {
    stack::set_status(irp, STATUS_INVALID_DEVICE_REQUEST, 0);
    irp::complete(irp);
    STATUS_INVALID_DEVICE_REQUEST
}

fn delete(object: *mut c_void) {
    // SAFETY: made by `make`, and its last reference is gone.
    let driver = unsafe { Box::from_raw(object.cast::<Driver>()) };
    for (_, block) in driver.client_extensions.lock().drain(..) {
        let block = core::ptr::with_exposed_provenance_mut::<c_void>(block);
        crate::ex::pool::free(block, EXTENSION_TAG);
    }
    drop(driver);
}

fn make(service: &str, module: &ldr::Module) -> PDRIVER_OBJECT {
    let strings = [
        Owned::new(&("\\Driver\\".to_string() + service)),
        Owned::new(service),
        Owned::new("\\REGISTRY\\MACHINE\\HARDWARE\\DESCRIPTION\\SYSTEM"),
        Owned::new(&crate::cm::service_key(service)),
    ];
    let driver = Box::into_raw(Box::new(Driver {
        object: DRIVER_OBJECT {
            Type: 4,
            Size: size_of::<DRIVER_OBJECT>() as i16,
            Flags: 0x12,
            DriverStart: core::ptr::with_exposed_provenance_mut(module.base),
            DriverSize: u32::try_from(module.size).unwrap_or(u32::MAX),
            DriverSection: module.list_entry(),
            DriverName: strings[0].descriptor(),
            MajorFunction: [Some(invalid_request); stack::MAXIMUM_FUNCTION + 1],
            ..DRIVER_OBJECT::default()
        },
        extension: DRIVER_EXTENSION {
            ServiceKeyName: strings[1].descriptor(),
            ..DRIVER_EXTENSION::default()
        },
        hardware: strings[2].descriptor(),
        strings,
        client_extensions: SpinLock::new(Vec::new()),
        module: module.number,
    }));
    let object: PDRIVER_OBJECT = driver.cast();
    let driver = own!(driver);
    driver.extension.DriverObject = object;
    driver.object.DriverExtension = &raw mut driver.extension;
    driver.object.HardwareDatabase = &raw mut driver.hardware;
    // SAFETY: the entry point of a bound image has this prototype.
    driver.object.DriverInit = unsafe {
        core::mem::transmute::<usize, wdk_standin::wdk_sys::PDRIVER_INITIALIZE>(module.entry)
    };
    ob::insert(object.cast(), ObType::Driver, Some(delete));
    let _ = ob::insert_name(
        &("\\Driver\\".to_string() + service),
        Node::Object(object.expose_provenance()),
    );
    object
}

fn set_state(name: &str, state: State) {
    if let Some(service) = SERVICES.lock().iter_mut().find(|s| s.name == name) {
        service.state = state;
    }
}

fn forget(name: &str) {
    SERVICES.lock().retain(|service| service.name != name);
}

fn outcome(status: NTSTATUS, state: State, text: String) -> Outcome {
    if !text.is_empty() {
        log!("service: {text}");
    }
    Outcome {
        status,
        state,
        text,
    }
}

/// Starts a service: loads its driver and calls `DriverEntry`. PASSIVE_LEVEL.
pub(crate) fn start(service: &str) -> Outcome {
    let name = canonical(service);
    let known = {
        let mut services = SERVICES.lock();
        let known = services.iter().find(|s| s.name == name).map(|s| s.state);
        if known.is_none() {
            let state = State::Starting;
            services.push(Service {
                name: name.clone(),
                state,
                driver: 0,
                base: 0,
                claimed: false,
            });
        }
        known
    };
    if let Some(state) = known {
        return outcome(
            STATUS_IMAGE_ALREADY_LOADED,
            state,
            alloc::format!("{service} is running already"),
        );
    }
    let module = match ldr::load(&file_of(service)) {
        Ok(module) => module,
        Err(error) => {
            forget(&name);
            let state = query(service);
            return outcome(error.status(), state, error.to_string());
        }
    };
    if module.entry == 0 {
        ldr::release(module.base);
        forget(&name);
        let text = alloc::format!("{} has no entry point", module.name);
        return outcome(STATUS_INVALID_IMAGE_FORMAT, State::Stopped, text);
    }
    crate::cm::create_service(&name, &module.path);
    let driver = make(&name, &module);
    if let Some(service) = SERVICES.lock().iter_mut().find(|s| s.name == name) {
        service.driver = driver.expose_provenance();
        service.base = module.base;
    }
    let status = call_entry(driver);
    if status < 0 {
        let text = alloc::format!(
            "{}: DriverEntry returned {status:#010x} ({})",
            module.name,
            status_name(status)
        );
        remove(&name, driver, module.base);
        return outcome(status, State::Stopped, text);
    }
    for device in device::of_driver(driver) {
        own!(device).Flags &= !device::DO_DEVICE_INITIALIZING;
    }
    ldr::discard_init(module.base);
    super::thread::reinitialize(driver);
    set_state(&name, State::Running);
    log!("service: {name} started");
    outcome(status, State::Running, String::new())
}

fn call_entry(driver: PDRIVER_OBJECT) -> NTSTATUS {
    const API: &str = "DriverEntry";
    let object = own!(driver.cast::<Driver>());
    let mut path = object.strings[3].descriptor();
    let Some(entry) = object.object.DriverInit else {
        return STATUS_INVALID_IMAGE_FORMAT;
    };
    // SAFETY: the entry point of a bound image, with what it expects.
    let status = unsafe { entry(driver, &raw mut path) };
    crate::require!(
        current() == PASSIVE_LEVEL,
        API,
        "returned at IRQL {}",
        current()
    );
    crate::require!(
        crate::hal::instr::read_flags() & 0x200 != 0,
        API,
        "returned with interrupts off"
    );
    status
}

/// Takes a driver that does not run any more out of the system.
fn remove(name: &str, driver: PDRIVER_OBJECT, base: usize) {
    crate::verifier::driver_gone(driver);
    ob::remove_object_names(driver.addr());
    let left = ob::dereference(driver.cast(), "IopDeleteDriver");
    crate::require!(
        left == 0,
        "DriverUnload",
        "{} references to the driver object of {} are left",
        left,
        name
    );
    ldr::release(base);
    forget(name);
}

/// Stops a service: calls `DriverUnload` and removes the image. PASSIVE_LEVEL.
pub(crate) fn stop(service: &str) -> Outcome {
    let name = canonical(service);
    let found = {
        let mut services = SERVICES.lock();
        match services.iter_mut().find(|s| s.name == name) {
            Some(s) if s.state == State::Running => {
                let driver = core::ptr::with_exposed_provenance_mut::<DRIVER_OBJECT>(s.driver);
                if own!(driver).DriverUnload.is_some() {
                    s.state = State::Stopping;
                }
                Some(driver)
            }
            _ => None,
        }
    };
    let Some(driver) = found else {
        let state = query(service);
        let status = if state == State::Absent {
            STATUS_OBJECT_NAME_NOT_FOUND
        } else {
            STATUS_INVALID_DEVICE_REQUEST
        };
        return outcome(status, state, alloc::format!("{service} is not running"));
    };
    if own!(driver).DriverUnload.is_none() {
        let text = alloc::format!("{service} has no DriverUnload routine: it cannot be stopped");
        return outcome(STATUS_INVALID_DEVICE_REQUEST, State::Running, text);
    }
    device_closed(driver);
    if query(service) == State::Stopping {
        log!("service: {name} stops when its last file is closed");
        return outcome(STATUS_SUCCESS, State::Stopping, String::new());
    }
    outcome(STATUS_SUCCESS, State::Stopped, String::new())
}

/// Claims the unload of a service that is to stop; one caller at a time has it.
fn claim(driver: PDRIVER_OBJECT) -> Option<(String, usize)> {
    let mut services = SERVICES.lock();
    let service = services
        .iter_mut()
        .find(|s| s.driver == driver.addr() && s.state == State::Stopping && !s.claimed)?;
    service.claimed = true;
    Some((service.name.clone(), service.base))
}

fn disclaim(name: &str) {
    if let Some(service) = SERVICES.lock().iter_mut().find(|s| s.name == name) {
        service.claimed = false;
    }
}

fn in_use(driver: PDRIVER_OBJECT) -> bool {
    device::of_driver(driver).into_iter().any(|device| {
        let device = own!(device);
        device.ReferenceCount != 0 || !device.AttachedDevice.is_null()
    })
}

fn unload(name: &str, driver: PDRIVER_OBJECT, base: usize) {
    const API: &str = "DriverUnload";
    if let Some(routine) = own!(driver).DriverUnload {
        // SAFETY: the driver's own routine, at PASSIVE_LEVEL as documented.
        unsafe { routine(driver) };
        crate::require!(
            current() == PASSIVE_LEVEL,
            API,
            "returned at IRQL {}",
            current()
        );
    }
    remove(name, driver, base);
    log!("service: {name} stopped");
}

/// A file on one of the driver's devices was closed: a stop that waited for it
/// goes on.
pub(super) fn device_closed(driver: PDRIVER_OBJECT) {
    while let Some((name, base)) = claim(driver) {
        // The claim keeps the driver object: only its holder unloads.
        if !in_use(driver) {
            unload(&name, driver, base);
            return;
        }
        disclaim(&name);
        // Whoever closed the last file meanwhile found the claim taken.
        if in_use_by_name(&name, driver) {
            return;
        }
    }
}

/// As [`in_use`], for a driver that another processor may be unloading.
fn in_use_by_name(name: &str, driver: PDRIVER_OBJECT) -> bool {
    let known = SERVICES
        .lock()
        .iter()
        .any(|s| s.name == name && s.driver == driver.addr() && !s.claimed);
    known && in_use(driver)
}

fn service_of_key(key: PUNICODE_STRING, api: &str) -> String {
    let path = text(key, api);
    path.rsplit('\\').next().unwrap_or("").to_string()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwLoadDriver(key: PUNICODE_STRING) -> NTSTATUS {
    const API: &str = "ZwLoadDriver";
    require_irql(PASSIVE_LEVEL, API);
    start(&service_of_key(key, API)).status
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwUnloadDriver(key: PUNICODE_STRING) -> NTSTATUS {
    const API: &str = "ZwUnloadDriver";
    require_irql(PASSIVE_LEVEL, API);
    stop(&service_of_key(key, API)).status
}

/// Tag of driver object extensions (`Driv`).
const EXTENSION_TAG: u32 = u32::from_le_bytes(*b"Driv");

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoAllocateDriverObjectExtension(
    driver: PDRIVER_OBJECT,
    identity: PVOID,
    size: ULONG,
    extension: *mut PVOID,
) -> NTSTATUS {
    const API: &str = "IoAllocateDriverObjectExtension";
    require_irql(PASSIVE_LEVEL, API);
    let object = borrow!(driver.cast::<Driver>(), API);
    if object
        .client_extensions
        .lock()
        .iter()
        .any(|(id, _)| *id == identity.addr())
    {
        return STATUS_OBJECT_NAME_COLLISION;
    }
    let block = crate::ex::pool::allocate(size as usize, EXTENSION_TAG);
    if block.is_null() {
        return STATUS_INSUFFICIENT_RESOURCES;
    }
    object
        .client_extensions
        .lock()
        .push((identity.addr(), block.expose_provenance()));
    put!(extension, block, API);
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoGetDriverObjectExtension(
    driver: PDRIVER_OBJECT,
    identity: PVOID,
) -> PVOID {
    let object = borrow!(driver.cast::<Driver>(), "IoGetDriverObjectExtension");
    let extensions = object.client_extensions.lock();
    let found = extensions.iter().find(|(id, _)| *id == identity.addr());
    found.map_or(core::ptr::null_mut(), |&(_, block)| {
        core::ptr::with_exposed_provenance_mut(block)
    })
}
