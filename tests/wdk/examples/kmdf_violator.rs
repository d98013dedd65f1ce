//! kmdf_violator.sys: breaks one rule of the framework, which must stop the
//! machine with WDF_VIOLATION and a line that names the rule.
//!
//! The service's name says which rule: load the file under the names of
//! [`RULES`], `double_completion.sys` and so on. All of it runs in DriverEntry at
//! PASSIVE_LEVEL, except what happens at unload. Never load it on Windows: there
//! some of these corrupt memory.
#![no_std]
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::doc_markdown,
    clippy::missing_safety_doc
)]

use core::{
    ptr::{null, null_mut},
    sync::atomic::{AtomicPtr, AtomicU32, Ordering::SeqCst},
};

use wdk_standin::{
    wdk,
    wdk_sys::{
        _WDF_DRIVER_INIT_FLAGS as DriverFlags, _WDF_EXECUTION_LEVEL as Level,
        _WDF_IO_QUEUE_DISPATCH_TYPE as Dispatch, _WDF_SYNCHRONIZATION_SCOPE as Scope,
        _WDF_TRI_STATE as Tri, DRIVER_OBJECT, GENERIC_READ, HANDLE, IO_STATUS_BLOCK, NT_SUCCESS,
        NTSTATUS, OBJ_CASE_INSENSITIVE, OBJ_KERNEL_HANDLE, OBJECT_ATTRIBUTES, PCUNICODE_STRING,
        PDRIVER_OBJECT, PVOID, PWDFDEVICE_INIT, STATUS_INVALID_PARAMETER, STATUS_PENDING,
        STATUS_SUCCESS, UNICODE_STRING, WDF_DRIVER_CONFIG, WDF_IO_QUEUE_CONFIG,
        WDF_NO_OBJECT_ATTRIBUTES, WDF_OBJECT_ATTRIBUTES, WDFDEVICE, WDFDRIVER, WDFOBJECT, WDFQUEUE,
        WDFQUEUE__, WDFREQUEST, WDFSPINLOCK, WDFWAITLOCK, call_unsafe_wdf_function_binding,
        ntddk::{
            KeBugCheckEx, KeRaiseIrqlToDpcLevel, ZwClose, ZwCreateFile, ZwDeviceIoControlFile,
        },
    },
};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: stops the machine.
    unsafe { KeBugCheckEx(0xE2, 0, 0, 0, 0) }
}

/// Calls a KMDF function, wrongly on purpose where the rule says so.
macro_rules! wdf {
    ($($call:tt)*) => {{
        // SAFETY: the framework of the lab checks and stops the machine.
        #[allow(clippy::let_and_return)]
        let result = unsafe { call_unsafe_wdf_function_binding!($($call)*) };
        result
    }};
}

type Rule = fn(&Setting);

/// What can be broken, by the service's name.
const RULES: [(&str, Rule); 15] = [
    ("attribute_size", attribute_size),
    ("double_completion", |setting| setting.request(1)),
    ("completion_while_queued", |setting| setting.request(2)),
    ("completion_while_cancelable", |setting| setting.request(3)),
    ("pending_completion", |setting| setting.request(4)),
    ("too_much_information", |setting| setting.request(5)),
    ("irql_after_callback", |setting| setting.request(6)),
    ("irql_too_high", irql_too_high),
    ("stale_handle", stale_handle),
    ("wrong_kind", wrong_kind),
    ("double_delete", double_delete),
    ("unsupported_function", unsupported_function),
    ("spin_lock_not_held", spin_lock_not_held),
    ("wait_lock_twice", wait_lock_twice),
    ("leak_at_unbind", leak_at_unbind),
];

struct Setting {
    device: WDFDEVICE,
}

static WHAT: AtomicU32 = AtomicU32::new(0);
static MANUAL: AtomicPtr<WDFQUEUE__> = AtomicPtr::new(null_mut());

const fn wide<const N: usize>(text: &[u8; N]) -> [u16; N] {
    let mut units = [0; N];
    let mut index = 0;
    while index < N {
        units[index] = text[index] as u16;
        index += 1;
    }
    units
}

macro_rules! unicode {
    ($text:literal) => {{
        static UNITS: [u16; $text.len()] = wide($text);
        UNICODE_STRING {
            Length: (UNITS.len() * 2) as u16,
            MaximumLength: (UNITS.len() * 2) as u16,
            Buffer: UNITS.as_ptr().cast_mut(),
        }
    }};
}

fn object() -> WDFOBJECT {
    let mut object: WDFOBJECT = null_mut();
    let _ = wdf!(WdfObjectCreate, WDF_NO_OBJECT_ATTRIBUTES, &raw mut object);
    object
}

fn attribute_size(_: &Setting) {
    let mut attributes = WDF_OBJECT_ATTRIBUTES {
        Size: 7,
        ExecutionLevel: Level::WdfExecutionLevelInheritFromParent,
        SynchronizationScope: Scope::WdfSynchronizationScopeInheritFromParent,
        ..WDF_OBJECT_ATTRIBUTES::default()
    };
    let mut object: WDFOBJECT = null_mut();
    let _ = wdf!(WdfObjectCreate, &raw mut attributes, &raw mut object);
}

fn irql_too_high(setting: &Setting) {
    // SAFETY: never lowered again, which is the point.
    unsafe { KeRaiseIrqlToDpcLevel() };
    wdf!(WdfIoQueueStopSynchronously, setting.default_queue());
}

fn stale_handle(_: &Setting) {
    let object = object();
    wdf!(WdfObjectDelete, object);
    wdf!(WdfObjectReferenceActual, object, null_mut(), 0, null());
}

fn wrong_kind(setting: &Setting) {
    wdf!(WdfRequestComplete, setting.device.cast(), STATUS_SUCCESS);
}

fn double_delete(_: &Setting) {
    let object = object();
    wdf!(WdfObjectReferenceActual, object, null_mut(), 0, null());
    wdf!(WdfObjectDelete, object);
    wdf!(WdfObjectDelete, object);
}

fn unsupported_function(_: &Setting) {
    // SAFETY: the framework's table.
    let table = unsafe { wdk_standin::wdk_sys::WdfFunctions };
    // SAFETY: the table has 458 entries; 0 is WdfChildListCreate.
    let entry = unsafe { table.read() };
    if let Some(function) = entry {
        // SAFETY: as everywhere here.
        unsafe { function() };
    }
}

fn spin_lock_not_held(_: &Setting) {
    let mut lock: WDFSPINLOCK = null_mut();
    let _ = wdf!(WdfSpinLockCreate, WDF_NO_OBJECT_ATTRIBUTES, &raw mut lock);
    wdf!(WdfSpinLockRelease, lock);
}

fn wait_lock_twice(_: &Setting) {
    let mut lock: WDFWAITLOCK = null_mut();
    let _ = wdf!(WdfWaitLockCreate, WDF_NO_OBJECT_ATTRIBUTES, &raw mut lock);
    let _ = wdf!(WdfWaitLockAcquire, lock, null_mut());
    let _ = wdf!(WdfWaitLockAcquire, lock, null_mut());
}

/// Shows at unload.
fn leak_at_unbind(_: &Setting) {
    wdf!(WdfObjectReferenceActual, object(), null_mut(), 0, null());
}

unsafe extern "C" fn on_cancel(_request: WDFREQUEST) {}

unsafe extern "C" fn on_device_control(
    _queue: WDFQUEUE,
    request: WDFREQUEST,
    _output: usize,
    _input: usize,
    _code: u32,
) {
    match WHAT.load(SeqCst) {
        1 => {
            // A reference keeps the handle alive over the first completion.
            wdf!(
                WdfObjectReferenceActual,
                request.cast(),
                null_mut(),
                0,
                null()
            );
            wdf!(WdfRequestComplete, request, STATUS_SUCCESS);
            wdf!(WdfRequestComplete, request, STATUS_SUCCESS);
        }
        2 => {
            let _ = wdf!(WdfRequestForwardToIoQueue, request, MANUAL.load(SeqCst));
            wdf!(WdfRequestComplete, request, STATUS_SUCCESS);
        }
        3 => {
            wdf!(WdfRequestMarkCancelable, request, Some(on_cancel));
            wdf!(WdfRequestComplete, request, STATUS_SUCCESS);
        }
        4 => wdf!(WdfRequestComplete, request, STATUS_PENDING),
        5 => wdf!(
            WdfRequestCompleteWithInformation,
            request,
            STATUS_SUCCESS,
            100
        ),
        _ => {
            wdf!(WdfRequestComplete, request, STATUS_SUCCESS);
            // SAFETY: never lowered again, which is the point.
            unsafe { KeRaiseIrqlToDpcLevel() };
        }
    }
}

impl Setting {
    fn default_queue(&self) -> WDFQUEUE {
        wdf!(WdfDeviceGetDefaultQueue, self.device)
    }

    /// Sends a request whose handler breaks that rule.
    fn request(&self, what: u32) {
        let _ = self.device;
        WHAT.store(what, SeqCst);
        let mut name = unicode!(b"\\Device\\kmdf_violator");
        let mut attributes = OBJECT_ATTRIBUTES {
            Length: size_of::<OBJECT_ATTRIBUTES>() as u32,
            ObjectName: &raw mut name,
            Attributes: OBJ_CASE_INSENSITIVE | OBJ_KERNEL_HANDLE,
            ..OBJECT_ATTRIBUTES::default()
        };
        let mut handle: HANDLE = null_mut();
        let mut block = IO_STATUS_BLOCK::default();
        // SAFETY: all results are local.
        let status = unsafe {
            ZwCreateFile(
                &raw mut handle,
                GENERIC_READ as _,
                &raw mut attributes,
                &raw mut block,
                null_mut(),
                0,
                0,
                1,
                0,
                null_mut(),
                0,
            )
        };
        if !NT_SUCCESS(status) {
            return;
        }
        let none: PVOID = null_mut();
        // SAFETY: no buffers.
        let _ = unsafe {
            ZwDeviceIoControlFile(
                handle,
                null_mut(),
                None,
                null_mut(),
                &raw mut block,
                0x0022_E000,
                none,
                0,
                none,
                0,
            )
        };
        // SAFETY: opened above.
        let _ = unsafe { ZwClose(handle) };
    }
}

fn create_device(driver: WDFDRIVER) -> Option<WDFDEVICE> {
    let sddl = unicode!(b"D:P(A;;GA;;;SY)(A;;GA;;;BA)");
    let mut init: PWDFDEVICE_INIT = wdf!(WdfControlDeviceInitAllocate, driver, &raw const sddl);
    let name = unicode!(b"\\Device\\kmdf_violator");
    let _ = wdf!(WdfDeviceInitAssignName, init, &raw const name);
    let mut device: WDFDEVICE = null_mut();
    let status = wdf!(
        WdfDeviceCreate,
        &raw mut init,
        WDF_NO_OBJECT_ATTRIBUTES,
        &raw mut device
    );
    if !NT_SUCCESS(status) {
        return None;
    }
    let mut config = WDF_IO_QUEUE_CONFIG {
        Size: size_of::<WDF_IO_QUEUE_CONFIG>() as u32,
        PowerManaged: Tri::WdfUseDefault,
        DispatchType: Dispatch::WdfIoQueueDispatchParallel,
        DefaultQueue: 1,
        EvtIoDeviceControl: Some(on_device_control),
        ..WDF_IO_QUEUE_CONFIG::default()
    };
    config.Settings.Parallel.NumberOfPresentedRequests = u32::MAX;
    let mut queue: WDFQUEUE = null_mut();
    let _ = wdf!(
        WdfIoQueueCreate,
        device,
        &raw mut config,
        WDF_NO_OBJECT_ATTRIBUTES,
        &raw mut queue
    );
    let mut manual = WDF_IO_QUEUE_CONFIG {
        Size: size_of::<WDF_IO_QUEUE_CONFIG>() as u32,
        PowerManaged: Tri::WdfUseDefault,
        DispatchType: Dispatch::WdfIoQueueDispatchManual,
        ..WDF_IO_QUEUE_CONFIG::default()
    };
    let _ = wdf!(
        WdfIoQueueCreate,
        device,
        &raw mut manual,
        WDF_NO_OBJECT_ATTRIBUTES,
        &raw mut queue
    );
    MANUAL.store(queue, SeqCst);
    wdf!(WdfControlFinishInitializing, device);
    Some(device)
}

unsafe extern "C" fn on_unload(_driver: WDFDRIVER) {}

/// The last component of the registry path names the rule.
fn rule(path: &UNICODE_STRING) -> Option<Rule> {
    let length = usize::from(path.Length) / 2;
    // SAFETY: the loader's string.
    let units = unsafe { core::slice::from_raw_parts(path.Buffer, length) };
    let name = units.rsplit(|unit| *unit == u16::from(b'\\')).next()?;
    RULES
        .iter()
        .find(|(rule, _)| rule.encode_utf16().eq(name.iter().copied()))
        .map(|(_, function)| *function)
}

// SAFETY: the entry glue looks for this name; nothing else defines it.
#[unsafe(export_name = "DriverEntry")]
pub unsafe extern "system" fn driver_entry(
    driver: &mut DRIVER_OBJECT,
    registry_path: PCUNICODE_STRING,
) -> NTSTATUS {
    // SAFETY: the loader's string.
    let Some(breaks) = rule(unsafe { &*registry_path }) else {
        wdk::println!("kmdf_violator: no rule has this service's name");
        return STATUS_INVALID_PARAMETER;
    };
    let mut config = WDF_DRIVER_CONFIG {
        Size: size_of::<WDF_DRIVER_CONFIG>() as u32,
        EvtDriverUnload: Some(on_unload),
        DriverInitFlags: DriverFlags::WdfDriverInitNonPnpDriver as u32,
        ..WDF_DRIVER_CONFIG::default()
    };
    let mut handle: WDFDRIVER = null_mut();
    let status = wdf!(
        WdfDriverCreate,
        driver as PDRIVER_OBJECT,
        registry_path,
        WDF_NO_OBJECT_ATTRIBUTES,
        &raw mut config,
        &raw mut handle
    );
    if !NT_SUCCESS(status) {
        return status;
    }
    if let Some(device) = create_device(handle) {
        breaks(&Setting { device });
        wdk::println!("kmdf_violator: still alive");
    }
    STATUS_SUCCESS
}
