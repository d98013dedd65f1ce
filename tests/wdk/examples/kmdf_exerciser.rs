//! kmdf_exerciser.sys: asks the framework for everything that a software-only
//! driver may use and checks the answers against Microsoft's documentation.
//!
//! All checks run in DriverEntry, at PASSIVE_LEVEL, one after the other; IRPs
//! come from the driver itself. A failed check is printed and makes DriverEntry
//! fail. It may be loaded on Windows as well.
#![no_std]
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::doc_markdown,
    clippy::missing_safety_doc,
    clippy::cast_sign_loss
)]

use core::{
    ptr::{null, null_mut},
    sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering::SeqCst},
};

use wdk_standin::{
    wdk,
    wdk_alloc::WdkAllocator,
    wdk_sys::{
        _EVENT_TYPE, _KWAIT_REASON, _MODE, _POOL_TYPE, _WDF_DRIVER_INIT_FLAGS as DriverFlags,
        _WDF_EXECUTION_LEVEL as Level, _WDF_FILEOBJECT_CLASS as FileClass,
        _WDF_IO_QUEUE_DISPATCH_TYPE as Dispatch, _WDF_SYNCHRONIZATION_SCOPE as Scope,
        _WDF_TRI_STATE as Tri, CHAR, DRIVER_OBJECT, FILE_OBJECT, GENERIC_READ, GENERIC_WRITE,
        HANDLE, IO_STATUS_BLOCK, IRP, KEVENT, LARGE_INTEGER, NT_SUCCESS, NTSTATUS,
        OBJ_CASE_INSENSITIVE, OBJ_KERNEL_HANDLE, OBJECT_ATTRIBUTES, PCUNICODE_STRING,
        PDEVICE_OBJECT, PDRIVER_OBJECT, PVOID, PWDFDEVICE_INIT, STATUS_BUFFER_TOO_SMALL,
        STATUS_CANCELLED, STATUS_INVALID_DEVICE_REQUEST, STATUS_MORE_PROCESSING_REQUIRED,
        STATUS_NO_MORE_ENTRIES, STATUS_OBJECT_NAME_EXISTS, STATUS_PENDING, STATUS_SUCCESS,
        STATUS_UNSUCCESSFUL, UNICODE_STRING, WDF_DPC_CONFIG, WDF_DRIVER_CONFIG,
        WDF_FILEOBJECT_CONFIG, WDF_IO_QUEUE_CONFIG, WDF_NO_OBJECT_ATTRIBUTES,
        WDF_OBJECT_ATTRIBUTES, WDF_OBJECT_CONTEXT_TYPE_INFO, WDF_REQUEST_PARAMETERS,
        WDF_TIMER_CONFIG, WDF_WORKITEM_CONFIG, WDFDEVICE, WDFDPC, WDFDRIVER, WDFFILEOBJECT, WDFKEY,
        WDFMEMORY, WDFOBJECT, WDFQUEUE, WDFREQUEST, WDFSPINLOCK, WDFSTRING, WDFTIMER, WDFWAITLOCK,
        WDFWORKITEM, call_unsafe_wdf_function_binding,
        ntddk::{
            IoAllocateIrp, IoCancelIrp, IoFreeIrp, IoGetRelatedDeviceObject, IofCallDriver,
            KeBugCheckEx, KeDelayExecutionThread, KeGetCurrentIrql, KeInitializeEvent, KeSetEvent,
            KeWaitForSingleObject, ObReferenceObjectByHandle, ObfDereferenceObject,
            PsCreateSystemThread, PsTerminateSystemThread, ZwClose, ZwCreateFile,
            ZwDeviceIoControlFile,
        },
    },
};

#[global_allocator]
static ALLOCATOR: WdkAllocator = WdkAllocator;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    wdk::println!("kmdf_exerciser: {info}");
    // SAFETY: stops the machine.
    unsafe { KeBugCheckEx(0xE2, 0, 0, 0, 0) }
}

/// Calls a KMDF function: every argument is checked by the one who writes it.
macro_rules! wdf {
    ($($call:tt)*) => {{
        // SAFETY: live handles and local variables, as the function documents.
        #[allow(clippy::let_and_return)]
        let result = unsafe { call_unsafe_wdf_function_binding!($($call)*) };
        result
    }};
}

static CHECKS: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

macro_rules! check {
    ($holds:expr) => {
        CHECKS.fetch_add(1, SeqCst);
        if !$holds {
            FAILED.fetch_add(1, SeqCst);
            wdk::println!(
                "kmdf_exerciser: FAILED line {}: {}",
                line!(),
                stringify!($holds)
            );
        }
    };
}

const ECHO: u32 = code(0x800, 0);
const PARK: u32 = code(0x801, 0);
const PARK_TOLD: u32 = code(0x802, 0);
const MARK: u32 = code(0x803, 0);
const NEITHER: u32 = code(0x804, 3);
const IN_ORDER: u32 = code(0x805, 0);
const MARK_EX: u32 = code(0x806, 0);
const DIRECT: u32 = code(0x807, 2);

const fn code(function: u32, method: u32) -> u32 {
    (0x22 << 16) | (3 << 14) | (function << 2) | method
}

/// Counters and handles that callbacks leave for the checks.
struct Seen {
    created: AtomicU32,
    cleaned: AtomicU32,
    closed: AtomicU32,
    timers: AtomicU32,
    passive_timer_irql: AtomicI32,
    timer_irql: AtomicI32,
    dpcs: AtomicU32,
    work: AtomicU32,
    told: AtomicU32,
    cancelled: AtomicU32,
    in_order: AtomicU32,
    marked: AtomicPtr<core::ffi::c_void>,
    mark_ex: AtomicI32,
    order: [AtomicU32; 4],
    order_next: AtomicU32,
    destroyed: AtomicU32,
    unloads: AtomicU32,
}

static SEEN: Seen = Seen {
    created: AtomicU32::new(0),
    cleaned: AtomicU32::new(0),
    closed: AtomicU32::new(0),
    timers: AtomicU32::new(0),
    passive_timer_irql: AtomicI32::new(-1),
    timer_irql: AtomicI32::new(-1),
    dpcs: AtomicU32::new(0),
    work: AtomicU32::new(0),
    told: AtomicU32::new(0),
    cancelled: AtomicU32::new(0),
    in_order: AtomicU32::new(0),
    marked: AtomicPtr::new(null_mut()),
    mark_ex: AtomicI32::new(0),
    order: [const { AtomicU32::new(0) }; 4],
    order_next: AtomicU32::new(0),
    destroyed: AtomicU32::new(0),
    unloads: AtomicU32::new(0),
};

static MANUAL: AtomicPtr<wdk_standin::wdk_sys::WDFQUEUE__> = AtomicPtr::new(null_mut());
static MANUAL_TOLD: AtomicPtr<wdk_standin::wdk_sys::WDFQUEUE__> = AtomicPtr::new(null_mut());
static SEQUENTIAL: AtomicPtr<wdk_standin::wdk_sys::WDFQUEUE__> = AtomicPtr::new(null_mut());

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

fn attributes(parent: WDFOBJECT) -> WDF_OBJECT_ATTRIBUTES {
    WDF_OBJECT_ATTRIBUTES {
        Size: size_of::<WDF_OBJECT_ATTRIBUTES>() as u32,
        ExecutionLevel: Level::WdfExecutionLevelInheritFromParent,
        SynchronizationScope: Scope::WdfSynchronizationScopeInheritFromParent,
        ParentObject: parent,
        ..WDF_OBJECT_ATTRIBUTES::default()
    }
}

struct Type(WDF_OBJECT_CONTEXT_TYPE_INFO);

// SAFETY: constant.
unsafe impl Sync for Type {}

const fn context_type(name: *const CHAR, bytes: usize) -> Type {
    Type(WDF_OBJECT_CONTEXT_TYPE_INFO {
        Size: size_of::<WDF_OBJECT_CONTEXT_TYPE_INFO>() as u32,
        ContextName: name,
        ContextSize: bytes,
        UniqueType: null(),
        EvtDriverGetUniqueContextType: None,
    })
}

static NUMBER: Type = context_type(c"Number".as_ptr().cast(), 8);
static OTHER: Type = context_type(c"Other".as_ptr().cast(), 40);

fn sleep(milliseconds: i64) {
    let mut due = LARGE_INTEGER::default();
    due.QuadPart = -10_000 * milliseconds;
    // SAFETY: PASSIVE_LEVEL; the interval is local.
    let _ = unsafe { KeDelayExecutionThread(_MODE::KernelMode as i8, 0, &raw mut due) };
}

fn irql() -> i32 {
    // SAFETY: reads the processor's own level.
    i32::from(unsafe { KeGetCurrentIrql() })
}

/// Until the condition holds, at most two seconds.
fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    for _ in 0..200 {
        if holds() {
            return true;
        }
        sleep(10);
    }
    false
}

// ---- objects

unsafe extern "C" fn on_cleanup(object: WDFOBJECT) {
    let block: PVOID = wdf!(WdfObjectGetTypedContextWorker, object, &raw const NUMBER.0);
    // SAFETY: the context has eight bytes.
    let number = unsafe { block.cast::<u64>().read() };
    let next = SEEN.order_next.fetch_add(1, SeqCst) as usize;
    if let Some(slot) = SEEN.order.get(next) {
        slot.store(number as u32, SeqCst);
    }
}

unsafe extern "C" fn on_destroy(_object: WDFOBJECT) {
    SEEN.destroyed.fetch_add(1, SeqCst);
}

fn numbered(parent: WDFOBJECT, number: u64) -> WDFOBJECT {
    let mut with = WDF_OBJECT_ATTRIBUTES {
        EvtCleanupCallback: Some(on_cleanup),
        EvtDestroyCallback: Some(on_destroy),
        ContextTypeInfo: &raw const NUMBER.0,
        ..attributes(parent)
    };
    let mut object: WDFOBJECT = null_mut();
    check!(NT_SUCCESS(wdf!(
        WdfObjectCreate,
        &raw mut with,
        &raw mut object
    )));
    let block: PVOID = wdf!(WdfObjectGetTypedContextWorker, object, &raw const NUMBER.0);
    check!(!block.is_null());
    check!(wdf!(WdfObjectContextGetObject, block) == object);
    // SAFETY: the context has eight bytes.
    unsafe { block.cast::<u64>().write(number) };
    object
}

fn objects() {
    let parent = numbered(null_mut(), 1);
    let child = numbered(parent, 2);
    let _grandchild = numbered(child, 3);
    let mut other = WDF_OBJECT_ATTRIBUTES {
        ContextTypeInfo: &raw const OTHER.0,
        ..attributes(null_mut())
    };
    let mut block: PVOID = null_mut();
    check!(wdf!(WdfObjectGetTypedContextWorker, child, &raw const OTHER.0).is_null());
    check!(NT_SUCCESS(wdf!(
        WdfObjectAllocateContext,
        child,
        &raw mut other,
        &raw mut block
    )));
    check!(wdf!(WdfObjectGetTypedContextWorker, child, &raw const OTHER.0) == block);
    check!(
        wdf!(
            WdfObjectAllocateContext,
            child,
            &raw mut other,
            &raw mut block
        ) == STATUS_OBJECT_NAME_EXISTS
    );
    wdf!(WdfObjectReferenceActual, child, null_mut(), 0, null());
    wdf!(WdfObjectDelete, parent);
    let order: [u32; 3] = core::array::from_fn(|index| SEEN.order[index].load(SeqCst));
    check!(order == [3, 2, 1]);
    // Deleted, but our reference keeps it and its context.
    check!(SEEN.destroyed.load(SeqCst) == 2);
    check!(wdf!(WdfObjectGetTypedContextWorker, child, &raw const OTHER.0) == block);
    wdf!(WdfObjectDereferenceActual, child, null_mut(), 0, null());
    check!(SEEN.destroyed.load(SeqCst) == 3);

    // Attributes that are all zeros but the size are refused.
    let mut zeros = WDF_OBJECT_ATTRIBUTES {
        Size: size_of::<WDF_OBJECT_ATTRIBUTES>() as u32,
        ..WDF_OBJECT_ATTRIBUTES::default()
    };
    let mut object: WDFOBJECT = null_mut();
    check!(!NT_SUCCESS(wdf!(
        WdfObjectCreate,
        &raw mut zeros,
        &raw mut object
    )));
}

fn plain_objects(driver: WDFDRIVER) {
    let mut memory: WDFMEMORY = null_mut();
    let mut buffer: PVOID = null_mut();
    check!(NT_SUCCESS(wdf!(
        WdfMemoryCreate,
        WDF_NO_OBJECT_ATTRIBUTES,
        _POOL_TYPE::NonPagedPoolNx,
        0x7473_6574,
        100,
        &raw mut memory,
        &raw mut buffer
    )));
    let mut size = 0;
    check!(wdf!(WdfMemoryGetBuffer, memory, &raw mut size) == buffer);
    check!(size == 100);
    wdf!(WdfObjectDelete, memory.cast());

    let text = unicode!(b"abc");
    let mut string: WDFSTRING = null_mut();
    check!(NT_SUCCESS(wdf!(
        WdfStringCreate,
        &raw const text,
        WDF_NO_OBJECT_ATTRIBUTES,
        &raw mut string
    )));
    let mut read = UNICODE_STRING::default();
    wdf!(WdfStringGetUnicodeString, string, &raw mut read);
    check!(read.Length == 6);
    check!(read.Buffer != text.Buffer);

    let mut key: WDFKEY = null_mut();
    let opened = wdf!(
        WdfDriverOpenParametersRegistryKey,
        driver,
        wdk_standin::wdk_sys::KEY_READ,
        WDF_NO_OBJECT_ATTRIBUTES,
        &raw mut key
    );
    if NT_SUCCESS(opened) {
        let name = unicode!(b"NoSuchValue");
        let mut value = 0;
        check!(!NT_SUCCESS(wdf!(
            WdfRegistryQueryULong,
            key,
            &raw const name,
            &raw mut value
        )));
        wdf!(WdfRegistryClose, key);
    }
    check!(!wdf!(WdfDriverGetRegistryPath, driver).is_null());
    check!(!wdf!(WdfDriverWdmGetDriverObject, driver).is_null());
}

fn locks() {
    let mut wait: WDFWAITLOCK = null_mut();
    check!(NT_SUCCESS(wdf!(
        WdfWaitLockCreate,
        WDF_NO_OBJECT_ATTRIBUTES,
        &raw mut wait
    )));
    check!(wdf!(WdfWaitLockAcquire, wait, null_mut()) == STATUS_SUCCESS);
    wdf!(WdfWaitLockRelease, wait);
    let mut now = 0_i64;
    check!(wdf!(WdfWaitLockAcquire, wait, &raw mut now) == STATUS_SUCCESS);
    wdf!(WdfWaitLockRelease, wait);

    let mut spin: WDFSPINLOCK = null_mut();
    check!(NT_SUCCESS(wdf!(
        WdfSpinLockCreate,
        WDF_NO_OBJECT_ATTRIBUTES,
        &raw mut spin
    )));
    wdf!(WdfSpinLockAcquire, spin);
    check!(irql() == 2);
    wdf!(WdfSpinLockRelease, spin);
    check!(irql() == 0);
}

// ---- timers, DPCs, work items

unsafe extern "C" fn on_timer(_timer: WDFTIMER) {
    SEEN.timer_irql.store(irql(), SeqCst);
    SEEN.timers.fetch_add(1, SeqCst);
}

unsafe extern "C" fn on_passive_timer(_timer: WDFTIMER) {
    SEEN.passive_timer_irql.store(irql(), SeqCst);
}

unsafe extern "C" fn on_dpc(_dpc: WDFDPC) {
    SEEN.dpcs.fetch_add(1, SeqCst);
}

unsafe extern "C" fn on_work(item: WDFWORKITEM) {
    check!(irql() == 0);
    if SEEN.work.fetch_add(1, SeqCst) == 1 {
        // A driver may delete the work item in its own callback.
        wdf!(WdfObjectDelete, item.cast());
    }
}

fn timing(device: WDFDEVICE) {
    let mut with = attributes(device.cast());
    let mut config = WDF_TIMER_CONFIG {
        Size: size_of::<WDF_TIMER_CONFIG>() as u32,
        EvtTimerFunc: Some(on_timer),
        Period: 5,
        ..WDF_TIMER_CONFIG::default()
    };
    let mut timer: WDFTIMER = null_mut();
    check!(!NT_SUCCESS(wdf!(
        WdfTimerCreate,
        &raw mut config,
        WDF_NO_OBJECT_ATTRIBUTES,
        &raw mut timer
    )));
    check!(NT_SUCCESS(wdf!(
        WdfTimerCreate,
        &raw mut config,
        &raw mut with,
        &raw mut timer
    )));
    check!(wdf!(WdfTimerGetParentObject, timer) == device.cast());
    check!(wdf!(WdfTimerStart, timer, -10_000) == 0);
    check!(eventually(|| SEEN.timers.load(SeqCst) >= 3));
    check!(SEEN.timer_irql.load(SeqCst) == 2);
    check!(wdf!(WdfTimerStop, timer, 1) == 1);
    let count = SEEN.timers.load(SeqCst);
    sleep(30);
    check!(SEEN.timers.load(SeqCst) == count);

    let mut passive = WDF_OBJECT_ATTRIBUTES {
        ExecutionLevel: Level::WdfExecutionLevelPassive,
        ..attributes(device.cast())
    };
    config.EvtTimerFunc = Some(on_passive_timer);
    config.Period = 0;
    let mut passive_timer: WDFTIMER = null_mut();
    check!(NT_SUCCESS(wdf!(
        WdfTimerCreate,
        &raw mut config,
        &raw mut passive,
        &raw mut passive_timer
    )));
    wdf!(WdfTimerStart, passive_timer, -10_000);
    check!(eventually(|| SEEN.passive_timer_irql.load(SeqCst) == 0));

    let mut config = WDF_DPC_CONFIG {
        Size: size_of::<WDF_DPC_CONFIG>() as u32,
        EvtDpcFunc: Some(on_dpc),
        AutomaticSerialization: 0,
    };
    let mut dpc: WDFDPC = null_mut();
    check!(NT_SUCCESS(wdf!(
        WdfDpcCreate,
        &raw mut config,
        &raw mut with,
        &raw mut dpc
    )));
    check!(wdf!(WdfDpcEnqueue, dpc) == 1);
    check!(eventually(|| SEEN.dpcs.load(SeqCst) == 1));
    wdf!(WdfDpcCancel, dpc, 1);

    let mut config = WDF_WORKITEM_CONFIG {
        Size: size_of::<WDF_WORKITEM_CONFIG>() as u32,
        EvtWorkItemFunc: Some(on_work),
        AutomaticSerialization: 0,
    };
    let mut item: WDFWORKITEM = null_mut();
    check!(NT_SUCCESS(wdf!(
        WdfWorkItemCreate,
        &raw mut config,
        &raw mut with,
        &raw mut item
    )));
    check!(wdf!(WdfWorkItemGetParentObject, item) == device.cast());
    wdf!(WdfWorkItemEnqueue, item);
    wdf!(WdfWorkItemFlush, item);
    check!(SEEN.work.load(SeqCst) == 1);
    wdf!(WdfWorkItemEnqueue, item);
    check!(eventually(|| SEEN.work.load(SeqCst) == 2));
}

// ---- the device

unsafe extern "C" fn on_create(_device: WDFDEVICE, request: WDFREQUEST, file: WDFFILEOBJECT) {
    check!(!file.is_null());
    check!(wdf!(WdfRequestGetFileObject, request) == file);
    SEEN.created.fetch_add(1, SeqCst);
    wdf!(WdfRequestComplete, request, STATUS_SUCCESS);
}

unsafe extern "C" fn on_file_cleanup(_file: WDFFILEOBJECT) {
    SEEN.cleaned.fetch_add(1, SeqCst);
}

unsafe extern "C" fn on_file_close(_file: WDFFILEOBJECT) {
    SEEN.closed.fetch_add(1, SeqCst);
}

fn echo(request: WDFREQUEST, output: usize, input: usize) {
    let (mut from, mut to): (PVOID, PVOID) = (null_mut(), null_mut());
    let (mut from_length, mut to_length) = (0, 0);
    if input == 0 {
        check!(
            wdf!(
                WdfRequestRetrieveInputBuffer,
                request,
                0,
                &raw mut from,
                &raw mut from_length
            ) == STATUS_BUFFER_TOO_SMALL
        );
        wdf!(WdfRequestComplete, request, STATUS_BUFFER_TOO_SMALL);
        return;
    }
    check!(
        wdf!(
            WdfRequestRetrieveInputBuffer,
            request,
            input + 1,
            &raw mut from,
            null_mut()
        ) == STATUS_BUFFER_TOO_SMALL
    );
    check!(NT_SUCCESS(wdf!(
        WdfRequestRetrieveInputBuffer,
        request,
        input,
        &raw mut from,
        &raw mut from_length
    )));
    check!(NT_SUCCESS(wdf!(
        WdfRequestRetrieveOutputBuffer,
        request,
        1,
        &raw mut to,
        &raw mut to_length
    )));
    check!(from_length == input);
    check!(to_length == output);
    let mut memory: WDFMEMORY = null_mut();
    check!(NT_SUCCESS(wdf!(
        WdfRequestRetrieveInputMemory,
        request,
        &raw mut memory
    )));
    let mut size = 0;
    check!(wdf!(WdfMemoryGetBuffer, memory, &raw mut size) == from);
    check!(size == input);
    let mut parameters = WDF_REQUEST_PARAMETERS {
        Size: size_of::<WDF_REQUEST_PARAMETERS>() as u16,
        ..WDF_REQUEST_PARAMETERS::default()
    };
    wdf!(WdfRequestGetParameters, request, &raw mut parameters);
    // SAFETY: the request is a device control.
    let control = unsafe { parameters.Parameters.DeviceIoControl };
    check!(control.InputBufferLength == input);
    let bytes = from_length.min(to_length);
    // SAFETY: both buffers have that many bytes; METHOD_BUFFERED: may overlap.
    unsafe { core::ptr::copy(from.cast::<u8>(), to.cast::<u8>(), bytes) };
    wdf!(
        WdfRequestCompleteWithInformation,
        request,
        STATUS_SUCCESS,
        bytes as u64
    );
}

unsafe extern "C" fn on_cancel(request: WDFREQUEST) {
    SEEN.cancelled.fetch_add(1, SeqCst);
    SEEN.marked.store(null_mut(), SeqCst);
    wdf!(WdfRequestComplete, request, STATUS_CANCELLED);
}

unsafe extern "C" fn on_device_control(
    _queue: WDFQUEUE,
    request: WDFREQUEST,
    output: usize,
    input: usize,
    code: u32,
) {
    let forward = |queue: &AtomicPtr<wdk_standin::wdk_sys::WDFQUEUE__>| {
        check!(NT_SUCCESS(wdf!(
            WdfRequestForwardToIoQueue,
            request,
            queue.load(SeqCst)
        )));
    };
    match code {
        ECHO => echo(request, output, input),
        PARK => forward(&MANUAL),
        PARK_TOLD => forward(&MANUAL_TOLD),
        IN_ORDER => forward(&SEQUENTIAL),
        MARK => {
            SEEN.marked.store(request.cast(), SeqCst);
            wdf!(WdfRequestMarkCancelable, request, Some(on_cancel));
        }
        MARK_EX => {
            // The driver cancels its own IRP before it marks it.
            let irp = wdf!(WdfRequestWdmGetIrp, request);
            // SAFETY: a live IRP of ours.
            let _ = unsafe { IoCancelIrp(irp) };
            check!(wdf!(WdfRequestIsCanceled, request) == 1);
            let status = wdf!(WdfRequestMarkCancelableEx, request, Some(on_cancel));
            SEEN.mark_ex.store(status, SeqCst);
            wdf!(WdfRequestComplete, request, STATUS_CANCELLED);
        }
        NEITHER => {
            let mut buffer: PVOID = null_mut();
            let status = wdf!(
                WdfRequestRetrieveInputBuffer,
                request,
                0,
                &raw mut buffer,
                null_mut()
            );
            check!(status == STATUS_INVALID_DEVICE_REQUEST);
            wdf!(WdfRequestComplete, request, status);
        }
        DIRECT => {
            let mut buffer: PVOID = null_mut();
            let mut length = 0;
            check!(NT_SUCCESS(wdf!(
                WdfRequestRetrieveOutputBuffer,
                request,
                output,
                &raw mut buffer,
                &raw mut length
            )));
            // SAFETY: the buffer has that many bytes.
            unsafe { buffer.cast::<u8>().write_bytes(0x5A, length) };
            wdf!(
                WdfRequestCompleteWithInformation,
                request,
                STATUS_SUCCESS,
                length as u64
            );
        }
        _ => wdf!(WdfRequestComplete, request, STATUS_INVALID_DEVICE_REQUEST),
    }
}

unsafe extern "C" fn on_in_order(
    _queue: WDFQUEUE,
    request: WDFREQUEST,
    _output: usize,
    _input: usize,
    _code: u32,
) {
    SEEN.in_order.fetch_add(1, SeqCst);
    SEEN.marked.store(request.cast(), SeqCst);
}

unsafe extern "C" fn on_told(_queue: WDFQUEUE, request: WDFREQUEST) {
    SEEN.told.fetch_add(1, SeqCst);
    wdf!(WdfRequestComplete, request, STATUS_CANCELLED);
}

fn create_queue(device: WDFDEVICE, mut config: WDF_IO_QUEUE_CONFIG) -> WDFQUEUE {
    config.Size = size_of::<WDF_IO_QUEUE_CONFIG>() as u32;
    config.PowerManaged = Tri::WdfUseDefault;
    let mut queue: WDFQUEUE = null_mut();
    check!(NT_SUCCESS(wdf!(
        WdfIoQueueCreate,
        device,
        &raw mut config,
        WDF_NO_OBJECT_ATTRIBUTES,
        &raw mut queue
    )));
    queue
}

fn create_device(driver: WDFDRIVER) -> Option<WDFDEVICE> {
    let sddl = unicode!(b"D:P(A;;GA;;;SY)(A;;GA;;;BA)");
    let mut init: PWDFDEVICE_INIT = wdf!(WdfControlDeviceInitAllocate, driver, &raw const sddl);
    check!(!init.is_null());
    let name = unicode!(b"\\Device\\kmdf_exerciser");
    check!(NT_SUCCESS(wdf!(
        WdfDeviceInitAssignName,
        init,
        &raw const name
    )));
    wdf!(WdfDeviceInitSetExclusive, init, 0);
    let mut files = WDF_FILEOBJECT_CONFIG {
        Size: size_of::<WDF_FILEOBJECT_CONFIG>() as u32,
        EvtDeviceFileCreate: Some(on_create),
        EvtFileClose: Some(on_file_close),
        EvtFileCleanup: Some(on_file_cleanup),
        AutoForwardCleanupClose: Tri::WdfUseDefault,
        FileObjectClass: FileClass::WdfFileObjectWdfCannotUseFsContexts,
    };
    wdf!(
        WdfDeviceInitSetFileObjectConfig,
        init,
        &raw mut files,
        WDF_NO_OBJECT_ATTRIBUTES
    );
    let mut device: WDFDEVICE = null_mut();
    let status = wdf!(
        WdfDeviceCreate,
        &raw mut init,
        WDF_NO_OBJECT_ATTRIBUTES,
        &raw mut device
    );
    check!(NT_SUCCESS(status));
    if !NT_SUCCESS(status) {
        wdf!(WdfDeviceInitFree, init);
        return None;
    }
    check!(init.is_null());
    let link = unicode!(b"\\DosDevices\\kmdf_exerciser");
    check!(NT_SUCCESS(wdf!(
        WdfDeviceCreateSymbolicLink,
        device,
        &raw const link
    )));

    let mut config = WDF_IO_QUEUE_CONFIG {
        DispatchType: Dispatch::WdfIoQueueDispatchParallel,
        DefaultQueue: 1,
        EvtIoDeviceControl: Some(on_device_control),
        ..WDF_IO_QUEUE_CONFIG::default()
    };
    config.Settings.Parallel.NumberOfPresentedRequests = u32::MAX;
    let default = create_queue(device, config);
    check!(wdf!(WdfDeviceGetDefaultQueue, device) == default);
    check!(wdf!(WdfIoQueueGetDevice, default) == device);
    let manual = WDF_IO_QUEUE_CONFIG {
        DispatchType: Dispatch::WdfIoQueueDispatchManual,
        ..WDF_IO_QUEUE_CONFIG::default()
    };
    MANUAL.store(create_queue(device, manual), SeqCst);
    let told = WDF_IO_QUEUE_CONFIG {
        EvtIoCanceledOnQueue: Some(on_told),
        ..manual
    };
    MANUAL_TOLD.store(create_queue(device, told), SeqCst);
    let sequential = WDF_IO_QUEUE_CONFIG {
        DispatchType: Dispatch::WdfIoQueueDispatchSequential,
        EvtIoDeviceControl: Some(on_in_order),
        ..WDF_IO_QUEUE_CONFIG::default()
    };
    SEQUENTIAL.store(create_queue(device, sequential), SeqCst);
    // Nobody gets in before the device is complete.
    check!(!NT_SUCCESS(try_open().0));
    wdf!(WdfControlFinishInitializing, device);
    Some(device)
}

// ---- requests, from outside

fn try_open() -> (NTSTATUS, HANDLE) {
    let mut name = unicode!(b"\\DosDevices\\kmdf_exerciser");
    let mut object = OBJECT_ATTRIBUTES {
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
            (GENERIC_READ | GENERIC_WRITE) as _,
            &raw mut object,
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
    (status, handle)
}

fn open() -> HANDLE {
    let (status, handle) = try_open();
    check!(NT_SUCCESS(status));
    handle
}

fn close(handle: HANDLE) {
    // SAFETY: opened by us, closed once.
    let status = unsafe { ZwClose(handle) };
    check!(NT_SUCCESS(status));
}

fn control(handle: HANDLE, code: u32, input: &[u8], output: &mut [u8]) -> (NTSTATUS, usize) {
    let mut block = IO_STATUS_BLOCK::default();
    // SAFETY: the buffers live until the call returns: nothing here parks.
    let status = unsafe {
        ZwDeviceIoControlFile(
            handle,
            null_mut(),
            None,
            null_mut(),
            &raw mut block,
            code,
            input.as_ptr().cast_mut().cast(),
            input.len() as u32,
            output.as_mut_ptr().cast(),
            output.len() as u32,
        )
    };
    (status, block.Information as usize)
}

fn synchronous(handle: HANDLE) {
    let mut output = [0; 16];
    check!(control(handle, ECHO, b"hello", &mut output) == (STATUS_SUCCESS, 5));
    check!(output.starts_with(b"hello\0"));
    check!(control(handle, ECHO, &[], &mut output).0 == STATUS_BUFFER_TOO_SMALL);
    check!(control(handle, NEITHER, b"x", &mut output).0 == STATUS_INVALID_DEVICE_REQUEST);
    check!(control(handle, DIRECT, &[], &mut output) == (STATUS_SUCCESS, 16));
    check!(output == [0x5A; 16]);
    check!(control(handle, 0x22_FFFC, &[], &mut []).0 == STATUS_INVALID_DEVICE_REQUEST);
    check!(control(handle, MARK_EX, &[], &mut []).0 == STATUS_CANCELLED);
    check!(SEEN.mark_ex.load(SeqCst) == STATUS_CANCELLED);
}

/// An IRP of our own that nobody waits for. Stays in place until it is done.
struct Pending {
    irp: *mut IRP,
    done: KEVENT,
}

unsafe extern "C" fn completed(
    _device: PDEVICE_OBJECT,
    _irp: *mut IRP,
    context: PVOID,
) -> NTSTATUS {
    // SAFETY: the context is the event of a Pending.
    unsafe { KeSetEvent(context.cast(), 0, 0) };
    STATUS_MORE_PROCESSING_REQUIRED
}

impl Pending {
    const fn new() -> Self {
        // SAFETY: zeros are what KeInitializeEvent takes.
        let done = unsafe { core::mem::zeroed() };
        Self {
            irp: null_mut(),
            done,
        }
    }

    fn send(&mut self, file: *mut FILE_OBJECT, code: u32) {
        // SAFETY: a referenced file object.
        let device = unsafe { IoGetRelatedDeviceObject(file) };
        // SAFETY: a live device object.
        let stack_size = unsafe { (*device).StackSize };
        // SAFETY: PASSIVE_LEVEL.
        self.irp = unsafe { IoAllocateIrp(stack_size, 0) };
        check!(!self.irp.is_null());
        // SAFETY: nonpaged kernel stack, in place until `finish`.
        unsafe { KeInitializeEvent(&raw mut self.done, _EVENT_TYPE::NotificationEvent, 0) };
        // SAFETY: a fresh IRP.
        let irp = unsafe { &*self.irp };
        // SAFETY: the member in use.
        let overlay = unsafe { irp.Tail.Overlay };
        // SAFETY: the member in use.
        let current = unsafe {
            overlay
                .__bindgen_anon_2
                .__bindgen_anon_1
                .CurrentStackLocation
        };
        let next = current.wrapping_sub(1);
        // SAFETY: the IRP has a location for the driver below.
        let next = unsafe { &mut *next };
        next.MajorFunction = 14;
        next.FileObject = file;
        next.Control = 0xE0;
        next.CompletionRoutine = Some(completed);
        next.Context = (&raw mut self.done).cast();
        next.Parameters.DeviceIoControl.IoControlCode = code;
        // SAFETY: a complete IRP for that device.
        let status = unsafe { IofCallDriver(device, self.irp) };
        check!(status == STATUS_PENDING);
    }

    fn cancel(&self) {
        // SAFETY: the completion routine keeps the IRP alive until `finish`.
        let _ = unsafe { IoCancelIrp(self.irp) };
    }

    fn finish(&mut self) -> NTSTATUS {
        let mut limit = LARGE_INTEGER::default();
        limit.QuadPart = -20_000_000;
        // SAFETY: initialised by `send`.
        let waited = unsafe {
            KeWaitForSingleObject(
                (&raw mut self.done).cast(),
                _KWAIT_REASON::Executive,
                _MODE::KernelMode as i8,
                0,
                &raw mut limit,
            )
        };
        check!(waited == STATUS_SUCCESS);
        if waited != STATUS_SUCCESS {
            return waited;
        }
        // SAFETY: complete, so ours alone.
        let block = unsafe { (*self.irp).IoStatus };
        // SAFETY: allocated by `send`, freed once.
        unsafe { IoFreeIrp(self.irp) };
        // SAFETY: the member in use.
        unsafe { block.__bindgen_anon_1.Status }
    }
}

fn parked(file: *mut FILE_OBJECT) {
    let queue = MANUAL.load(SeqCst);
    let mut request: WDFREQUEST = null_mut();
    check!(wdf!(WdfIoQueueRetrieveNextRequest, queue, &raw mut request) == STATUS_NO_MORE_ENTRIES);

    // The inverted call: parked, taken out, completed.
    let mut one = Pending::new();
    one.send(file, PARK);
    let (mut waiting, mut held) = (0, 0);
    wdf!(WdfIoQueueGetState, queue, &raw mut waiting, &raw mut held);
    check!((waiting, held) == (1, 0));
    let mut found: WDFREQUEST = null_mut();
    check!(NT_SUCCESS(wdf!(
        WdfIoQueueFindRequest,
        queue,
        null_mut(),
        null_mut(),
        null_mut(),
        &raw mut found
    )));
    wdf!(
        WdfObjectDereferenceActual,
        found.cast(),
        null_mut(),
        0,
        null()
    );
    check!(NT_SUCCESS(wdf!(
        WdfIoQueueRetrieveNextRequest,
        queue,
        &raw mut request
    )));
    check!(request == found);
    check!(wdf!(WdfRequestGetIoQueue, request) == queue);
    check!(wdf!(WdfRequestForwardToIoQueue, request, queue) == STATUS_INVALID_DEVICE_REQUEST);
    wdf!(WdfRequestComplete, request, STATUS_SUCCESS);
    check!(one.finish() == STATUS_SUCCESS);

    // Cancelled in the queue: by the framework, or by the driver that is told.
    one.send(file, PARK);
    one.cancel();
    check!(one.finish() == STATUS_CANCELLED);
    check!(SEEN.told.load(SeqCst) == 0);
    one.send(file, PARK_TOLD);
    one.cancel();
    check!(one.finish() == STATUS_CANCELLED);
    check!(SEEN.told.load(SeqCst) == 1);

    // A stopped queue gives nothing; a purged one cancels and refuses.
    one.send(file, PARK);
    wdf!(WdfIoQueueStop, queue, None, null_mut());
    check!(!NT_SUCCESS(wdf!(
        WdfIoQueueRetrieveNextRequest,
        queue,
        &raw mut request
    )));
    wdf!(WdfIoQueuePurgeSynchronously, queue);
    check!(one.finish() == STATUS_CANCELLED);
    wdf!(WdfIoQueueStart, queue);

    // Several wait; each comes once, in order.
    let mut two = Pending::new();
    one.send(file, PARK);
    two.send(file, PARK);
    for _ in 0..2 {
        check!(NT_SUCCESS(wdf!(
            WdfIoQueueRetrieveNextRequest,
            queue,
            &raw mut request
        )));
        wdf!(WdfRequestComplete, request, STATUS_SUCCESS);
    }
    check!(one.finish() == STATUS_SUCCESS);
    check!(two.finish() == STATUS_SUCCESS);
}

fn held_by_driver(file: *mut FILE_OBJECT) {
    let mut one = Pending::new();
    // Marked, then taken back and completed.
    one.send(file, MARK);
    let request: WDFREQUEST = SEEN.marked.load(SeqCst).cast();
    check!(wdf!(WdfRequestUnmarkCancelable, request) == STATUS_SUCCESS);
    check!(wdf!(WdfRequestUnmarkCancelable, request) == STATUS_INVALID_DEVICE_REQUEST);
    wdf!(
        WdfRequestCompleteWithInformation,
        request,
        STATUS_SUCCESS,
        0
    );
    check!(one.finish() == STATUS_SUCCESS);
    // Marked and cancelled.
    one.send(file, MARK);
    one.cancel();
    check!(one.finish() == STATUS_CANCELLED);
    check!(SEEN.cancelled.load(SeqCst) == 1);

    // A sequential queue presents the second when the first is complete.
    let mut two = Pending::new();
    one.send(file, IN_ORDER);
    two.send(file, IN_ORDER);
    check!(SEEN.in_order.load(SeqCst) == 1);
    for count in 1..=2 {
        let request: WDFREQUEST = SEEN.marked.load(SeqCst).cast();
        wdf!(WdfRequestComplete, request, STATUS_SUCCESS);
        check!(SEEN.in_order.load(SeqCst) == 2 || count == 2);
    }
    check!(one.finish() == STATUS_SUCCESS);
    check!(two.finish() == STATUS_SUCCESS);
}

/// Rounds of the race between retrieval and cancellation.
const ROUNDS: u32 = 2000;

static STOP: AtomicU32 = AtomicU32::new(0);
static RETRIEVED: AtomicU32 = AtomicU32::new(0);

/// Takes requests out of the manual queue as fast as it can.
unsafe extern "C" fn retrieve_all(_context: PVOID) {
    let queue = MANUAL.load(SeqCst);
    let mut pause = 1_u32;
    while STOP.load(SeqCst) == 0 {
        let mut request: WDFREQUEST = null_mut();
        if NT_SUCCESS(wdf!(WdfIoQueueRetrieveNextRequest, queue, &raw mut request)) {
            RETRIEVED.fetch_add(1, SeqCst);
            wdf!(WdfRequestComplete, request, STATUS_SUCCESS);
        }
        // Meets the other thread at ever different places.
        pause = pause.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        for _ in 0..pause >> 19 {
            core::hint::spin_loop();
        }
    }
    STOP.store(2, SeqCst);
    // SAFETY: a system thread's own end.
    let _ = unsafe { PsTerminateSystemThread(STATUS_SUCCESS) };
}

/// Every request is completed once, by whoever got it.
fn races(file: *mut FILE_OBJECT) {
    let mut thread: HANDLE = null_mut();
    // SAFETY: the routine is static and ends before the driver does.
    let status = unsafe {
        PsCreateSystemThread(
            &raw mut thread,
            0,
            null_mut(),
            null_mut(),
            null_mut(),
            Some(retrieve_all),
            null_mut(),
        )
    };
    check!(NT_SUCCESS(status));
    if !NT_SUCCESS(status) {
        return;
    }
    let (mut one, mut two) = (Pending::new(), Pending::new());
    let (mut completed, mut cancelled) = (0, 0);
    for _ in 0..ROUNDS / 2 {
        one.send(file, PARK);
        two.send(file, PARK);
        two.cancel();
        one.cancel();
        for status in [one.finish(), two.finish()] {
            completed += u32::from(status == STATUS_SUCCESS);
            cancelled += u32::from(status == STATUS_CANCELLED);
        }
    }
    STOP.store(1, SeqCst);
    check!(eventually(|| STOP.load(SeqCst) == 2));
    close(thread);
    check!(completed + cancelled == ROUNDS);
    check!(RETRIEVED.load(SeqCst) == completed);
    wdk::println!("kmdf_exerciser: {completed} retrieved, {cancelled} cancelled");
}

fn requests() {
    let handle = open();
    check!(SEEN.created.load(SeqCst) == 1);
    synchronous(handle);
    let mut object: PVOID = null_mut();
    // SAFETY: the result is local.
    let status = unsafe {
        ObReferenceObjectByHandle(
            handle,
            0,
            null_mut(),
            _MODE::KernelMode as i8,
            &raw mut object,
            null_mut(),
        )
    };
    check!(NT_SUCCESS(status));
    if NT_SUCCESS(status) {
        let file: *mut FILE_OBJECT = object.cast();
        parked(file);
        held_by_driver(file);
        races(file);
        // Cleanup cancels what waits for this file object.
        let mut last = Pending::new();
        last.send(file, PARK);
        close(handle);
        check!(SEEN.cleaned.load(SeqCst) == 1);
        check!(last.finish() == STATUS_CANCELLED);
        check!(SEEN.closed.load(SeqCst) == 0);
        // SAFETY: referenced above.
        unsafe { ObfDereferenceObject(object) };
        check!(eventually(|| SEEN.closed.load(SeqCst) == 1));
    } else {
        close(handle);
    }
}

unsafe extern "C" fn on_unload(_driver: WDFDRIVER) {
    SEEN.unloads.fetch_add(1, SeqCst);
    wdk::println!("kmdf_exerciser: unloading");
}

#[unsafe(export_name = "DriverEntry")]
// SAFETY: the entry glue looks for this name; nothing else defines it.
pub unsafe extern "system" fn driver_entry(
    driver: &mut DRIVER_OBJECT,
    registry_path: PCUNICODE_STRING,
) -> NTSTATUS {
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
    objects();
    plain_objects(handle);
    locks();
    if let Some(device) = create_device(handle) {
        timing(device);
        requests();
    }
    let (checks, failed) = (CHECKS.load(SeqCst), FAILED.load(SeqCst));
    wdk::println!("kmdf_exerciser: {checks} checks, {failed} failed");
    if failed == 0 {
        STATUS_SUCCESS
    } else {
        STATUS_UNSUCCESSFUL
    }
}
