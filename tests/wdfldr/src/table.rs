//! The function table: 458 entries, in the order of KMDF 1.31.
//!
//! Constant data; drivers read it without a lock. The compiler checks every
//! function against the pointer type of its entry.

#[allow(
    clippy::wildcard_imports,
    reason = "one pointer type for each function"
)]
use wdk_standin::wdk_sys::*;

use crate::{
    device, driver, file, lock, memory,
    nt::violation::{self, Code},
    object, queue, registry, request, string, timing,
};

/// The number of functions in KMDF 1.31.
pub(crate) const COUNT: usize = _WDFFUNCENUM::WdfFunctionTableNumEntries as usize;

struct Table([WDFFUNC; COUNT]);

// SAFETY: constant.
unsafe impl Sync for Table {}

static TABLE: Table = Table(build());

/// What the framework writes into a driver's `WdfFunctions`.
pub(crate) fn address() -> *const WDFFUNC {
    TABLE.0.as_ptr()
}

/// An entry that a software-only driver has no use for.
unsafe extern "C" fn unsupported<const INDEX: usize>() {
    violation::raise(
        Code::Function,
        INDEX as u64,
        0,
        format_args!("the KMDF function with index {INDEX} is not for software-only drivers"),
    )
}

macro_rules! ten {
    ($($tens:literal)*) => {
        [$([
            unsupported::<{ $tens * 10 }> as unsafe extern "C" fn(),
            unsupported::<{ $tens * 10 + 1 }>,
            unsupported::<{ $tens * 10 + 2 }>,
            unsupported::<{ $tens * 10 + 3 }>,
            unsupported::<{ $tens * 10 + 4 }>,
            unsupported::<{ $tens * 10 + 5 }>,
            unsupported::<{ $tens * 10 + 6 }>,
            unsupported::<{ $tens * 10 + 7 }>,
            unsupported::<{ $tens * 10 + 8 }>,
            unsupported::<{ $tens * 10 + 9 }>,
        ]),*]
    };
}

macro_rules! entries {
    ($table:ident: $($index:ident, $type:ident, $function:path;)*) => {
        $({
            let function: $type = Some($function);
            // SAFETY: both are pointers to a function or null; callers convert back.
            let entry = unsafe { core::mem::transmute::<$type, WDFFUNC>(function) };
            $table[_WDFFUNCENUM::$index as usize] = entry;
        })*
    };
}

#[allow(clippy::too_many_lines, reason = "one line for each function")]
const fn build() -> [WDFFUNC; COUNT] {
    let unsupported = ten!(
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29
        30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45
    );
    let mut table: [WDFFUNC; COUNT] = [None; COUNT];
    let mut index = 0;
    while index < COUNT {
        table[index] = Some(unsupported[index / 10][index % 10]);
        index += 1;
    }
    entries! { table:
        WdfControlDeviceInitAllocateTableIndex, PFN_WDFCONTROLDEVICEINITALLOCATE, device::wdf_control_device_init_allocate;
        WdfControlDeviceInitSetShutdownNotificationTableIndex, PFN_WDFCONTROLDEVICEINITSETSHUTDOWNNOTIFICATION, device::wdf_control_device_init_set_shutdown_notification;
        WdfControlFinishInitializingTableIndex, PFN_WDFCONTROLFINISHINITIALIZING, device::wdf_control_finish_initializing;
        WdfDeviceWdmGetDeviceObjectTableIndex, PFN_WDFDEVICEWDMGETDEVICEOBJECT, device::wdf_device_wdm_get_device_object;
        WdfDeviceInitFreeTableIndex, PFN_WDFDEVICEINITFREE, device::wdf_device_init_free;
        WdfDeviceInitSetIoTypeTableIndex, PFN_WDFDEVICEINITSETIOTYPE, device::wdf_device_init_set_io_type;
        WdfDeviceInitSetExclusiveTableIndex, PFN_WDFDEVICEINITSETEXCLUSIVE, device::wdf_device_init_set_exclusive;
        WdfDeviceInitSetDeviceTypeTableIndex, PFN_WDFDEVICEINITSETDEVICETYPE, device::wdf_device_init_set_device_type;
        WdfDeviceInitAssignNameTableIndex, PFN_WDFDEVICEINITASSIGNNAME, device::wdf_device_init_assign_name;
        WdfDeviceInitAssignSDDLStringTableIndex, PFN_WDFDEVICEINITASSIGNSDDLSTRING, device::wdf_device_init_assign_sddl_string;
        WdfDeviceInitSetDeviceClassTableIndex, PFN_WDFDEVICEINITSETDEVICECLASS, device::wdf_device_init_set_device_class;
        WdfDeviceInitSetCharacteristicsTableIndex, PFN_WDFDEVICEINITSETCHARACTERISTICS, device::wdf_device_init_set_characteristics;
        WdfDeviceInitSetFileObjectConfigTableIndex, PFN_WDFDEVICEINITSETFILEOBJECTCONFIG, device::wdf_device_init_set_file_object_config;
        WdfDeviceInitSetRequestAttributesTableIndex, PFN_WDFDEVICEINITSETREQUESTATTRIBUTES, device::wdf_device_init_set_request_attributes;
        WdfDeviceInitSetIoInCallerContextCallbackTableIndex, PFN_WDFDEVICEINITSETIOINCALLERCONTEXTCALLBACK, device::wdf_device_init_set_io_in_caller_context_callback;
        WdfDeviceCreateTableIndex, PFN_WDFDEVICECREATE, device::wdf_device_create;
        WdfDeviceCreateSymbolicLinkTableIndex, PFN_WDFDEVICECREATESYMBOLICLINK, device::wdf_device_create_symbolic_link;
        WdfDeviceGetFileObjectTableIndex, PFN_WDFDEVICEGETFILEOBJECT, device::wdf_device_get_file_object;
        WdfDeviceGetDefaultQueueTableIndex, PFN_WDFDEVICEGETDEFAULTQUEUE, device::wdf_device_get_default_queue;
        WdfDpcCreateTableIndex, PFN_WDFDPCCREATE, timing::wdf_dpc_create;
        WdfDpcEnqueueTableIndex, PFN_WDFDPCENQUEUE, timing::wdf_dpc_enqueue;
        WdfDpcCancelTableIndex, PFN_WDFDPCCANCEL, timing::wdf_dpc_cancel;
        WdfDriverCreateTableIndex, PFN_WDFDRIVERCREATE, driver::wdf_driver_create;
        WdfDriverGetRegistryPathTableIndex, PFN_WDFDRIVERGETREGISTRYPATH, driver::wdf_driver_get_registry_path;
        WdfDriverWdmGetDriverObjectTableIndex, PFN_WDFDRIVERWDMGETDRIVEROBJECT, driver::wdf_driver_wdm_get_driver_object;
        WdfDriverOpenParametersRegistryKeyTableIndex, PFN_WDFDRIVEROPENPARAMETERSREGISTRYKEY, registry::wdf_driver_open_parameters_registry_key;
        WdfFileObjectGetFileNameTableIndex, PFN_WDFFILEOBJECTGETFILENAME, file::wdf_file_object_get_file_name;
        WdfFileObjectGetDeviceTableIndex, PFN_WDFFILEOBJECTGETDEVICE, file::wdf_file_object_get_device;
        WdfFileObjectWdmGetFileObjectTableIndex, PFN_WDFFILEOBJECTWDMGETFILEOBJECT, file::wdf_file_object_wdm_get_file_object;
        WdfIoQueueCreateTableIndex, PFN_WDFIOQUEUECREATE, queue::wdf_io_queue_create;
        WdfIoQueueGetStateTableIndex, PFN_WDFIOQUEUEGETSTATE, queue::wdf_io_queue_get_state;
        WdfIoQueueStartTableIndex, PFN_WDFIOQUEUESTART, queue::wdf_io_queue_start;
        WdfIoQueueStopTableIndex, PFN_WDFIOQUEUESTOP, queue::wdf_io_queue_stop;
        WdfIoQueueStopSynchronouslyTableIndex, PFN_WDFIOQUEUESTOPSYNCHRONOUSLY, queue::wdf_io_queue_stop_synchronously;
        WdfIoQueueGetDeviceTableIndex, PFN_WDFIOQUEUEGETDEVICE, queue::wdf_io_queue_get_device;
        WdfIoQueueRetrieveNextRequestTableIndex, PFN_WDFIOQUEUERETRIEVENEXTREQUEST, queue::wdf_io_queue_retrieve_next_request;
        WdfIoQueueRetrieveRequestByFileObjectTableIndex, PFN_WDFIOQUEUERETRIEVEREQUESTBYFILEOBJECT, queue::wdf_io_queue_retrieve_request_by_file_object;
        WdfIoQueueFindRequestTableIndex, PFN_WDFIOQUEUEFINDREQUEST, queue::wdf_io_queue_find_request;
        WdfIoQueueDrainSynchronouslyTableIndex, PFN_WDFIOQUEUEDRAINSYNCHRONOUSLY, queue::wdf_io_queue_drain_synchronously;
        WdfIoQueuePurgeSynchronouslyTableIndex, PFN_WDFIOQUEUEPURGESYNCHRONOUSLY, queue::wdf_io_queue_purge_synchronously;
        WdfIoQueuePurgeTableIndex, PFN_WDFIOQUEUEPURGE, queue::wdf_io_queue_purge;
        WdfIoQueueReadyNotifyTableIndex, PFN_WDFIOQUEUEREADYNOTIFY, queue::wdf_io_queue_ready_notify;
        WdfMemoryCreateTableIndex, PFN_WDFMEMORYCREATE, memory::wdf_memory_create;
        WdfMemoryGetBufferTableIndex, PFN_WDFMEMORYGETBUFFER, memory::wdf_memory_get_buffer;
        WdfObjectGetTypedContextWorkerTableIndex, PFN_WDFOBJECTGETTYPEDCONTEXTWORKER, object::wdf_object_get_typed_context_worker;
        WdfObjectAllocateContextTableIndex, PFN_WDFOBJECTALLOCATECONTEXT, object::wdf_object_allocate_context;
        WdfObjectContextGetObjectTableIndex, PFN_WDFOBJECTCONTEXTGETOBJECT, object::wdf_object_context_get_object;
        WdfObjectReferenceActualTableIndex, PFN_WDFOBJECTREFERENCEACTUAL, object::wdf_object_reference_actual;
        WdfObjectDereferenceActualTableIndex, PFN_WDFOBJECTDEREFERENCEACTUAL, object::wdf_object_dereference_actual;
        WdfObjectCreateTableIndex, PFN_WDFOBJECTCREATE, object::wdf_object_create;
        WdfObjectDeleteTableIndex, PFN_WDFOBJECTDELETE, object::wdf_object_delete;
        WdfObjectQueryTableIndex, PFN_WDFOBJECTQUERY, object::wdf_object_query;
        WdfRegistryOpenKeyTableIndex, PFN_WDFREGISTRYOPENKEY, registry::wdf_registry_open_key;
        WdfRegistryCloseTableIndex, PFN_WDFREGISTRYCLOSE, registry::wdf_registry_close;
        WdfRegistryQueryValueTableIndex, PFN_WDFREGISTRYQUERYVALUE, registry::wdf_registry_query_value;
        WdfRegistryQueryULongTableIndex, PFN_WDFREGISTRYQUERYULONG, registry::wdf_registry_query_ulong;
        WdfRequestGetStatusTableIndex, PFN_WDFREQUESTGETSTATUS, request::wdf_request_get_status;
        WdfRequestMarkCancelableTableIndex, PFN_WDFREQUESTMARKCANCELABLE, request::wdf_request_mark_cancelable;
        WdfRequestUnmarkCancelableTableIndex, PFN_WDFREQUESTUNMARKCANCELABLE, request::wdf_request_unmark_cancelable;
        WdfRequestIsCanceledTableIndex, PFN_WDFREQUESTISCANCELED, request::wdf_request_is_canceled;
        WdfRequestIsFrom32BitProcessTableIndex, PFN_WDFREQUESTISFROM32BITPROCESS, request::wdf_request_is_from32_bit_process;
        WdfRequestCompleteTableIndex, PFN_WDFREQUESTCOMPLETE, request::wdf_request_complete;
        WdfRequestCompleteWithPriorityBoostTableIndex, PFN_WDFREQUESTCOMPLETEWITHPRIORITYBOOST, request::wdf_request_complete_with_priority_boost;
        WdfRequestCompleteWithInformationTableIndex, PFN_WDFREQUESTCOMPLETEWITHINFORMATION, request::wdf_request_complete_with_information;
        WdfRequestGetParametersTableIndex, PFN_WDFREQUESTGETPARAMETERS, request::wdf_request_get_parameters;
        WdfRequestRetrieveInputMemoryTableIndex, PFN_WDFREQUESTRETRIEVEINPUTMEMORY, request::wdf_request_retrieve_input_memory;
        WdfRequestRetrieveOutputMemoryTableIndex, PFN_WDFREQUESTRETRIEVEOUTPUTMEMORY, request::wdf_request_retrieve_output_memory;
        WdfRequestRetrieveInputBufferTableIndex, PFN_WDFREQUESTRETRIEVEINPUTBUFFER, request::wdf_request_retrieve_input_buffer;
        WdfRequestRetrieveOutputBufferTableIndex, PFN_WDFREQUESTRETRIEVEOUTPUTBUFFER, request::wdf_request_retrieve_output_buffer;
        WdfRequestSetInformationTableIndex, PFN_WDFREQUESTSETINFORMATION, request::wdf_request_set_information;
        WdfRequestGetInformationTableIndex, PFN_WDFREQUESTGETINFORMATION, request::wdf_request_get_information;
        WdfRequestGetFileObjectTableIndex, PFN_WDFREQUESTGETFILEOBJECT, request::wdf_request_get_file_object;
        WdfRequestGetRequestorModeTableIndex, PFN_WDFREQUESTGETREQUESTORMODE, request::wdf_request_get_requestor_mode;
        WdfRequestForwardToIoQueueTableIndex, PFN_WDFREQUESTFORWARDTOIOQUEUE, request::wdf_request_forward_to_io_queue;
        WdfRequestGetIoQueueTableIndex, PFN_WDFREQUESTGETIOQUEUE, request::wdf_request_get_io_queue;
        WdfRequestWdmGetIrpTableIndex, PFN_WDFREQUESTWDMGETIRP, request::wdf_request_wdm_get_irp;
        WdfStringCreateTableIndex, PFN_WDFSTRINGCREATE, string::wdf_string_create;
        WdfStringGetUnicodeStringTableIndex, PFN_WDFSTRINGGETUNICODESTRING, string::wdf_string_get_unicode_string;
        WdfWaitLockCreateTableIndex, PFN_WDFWAITLOCKCREATE, lock::wdf_wait_lock_create;
        WdfWaitLockAcquireTableIndex, PFN_WDFWAITLOCKACQUIRE, lock::wdf_wait_lock_acquire;
        WdfWaitLockReleaseTableIndex, PFN_WDFWAITLOCKRELEASE, lock::wdf_wait_lock_release;
        WdfSpinLockCreateTableIndex, PFN_WDFSPINLOCKCREATE, lock::wdf_spin_lock_create;
        WdfSpinLockAcquireTableIndex, PFN_WDFSPINLOCKACQUIRE, lock::wdf_spin_lock_acquire;
        WdfSpinLockReleaseTableIndex, PFN_WDFSPINLOCKRELEASE, lock::wdf_spin_lock_release;
        WdfTimerCreateTableIndex, PFN_WDFTIMERCREATE, timing::wdf_timer_create;
        WdfTimerStartTableIndex, PFN_WDFTIMERSTART, timing::wdf_timer_start;
        WdfTimerStopTableIndex, PFN_WDFTIMERSTOP, timing::wdf_timer_stop;
        WdfTimerGetParentObjectTableIndex, PFN_WDFTIMERGETPARENTOBJECT, timing::wdf_timer_get_parent_object;
        WdfVerifierDbgBreakPointTableIndex, PFN_WDFVERIFIERDBGBREAKPOINT, driver::wdf_verifier_dbg_break_point;
        WdfWorkItemCreateTableIndex, PFN_WDFWORKITEMCREATE, timing::wdf_work_item_create;
        WdfWorkItemEnqueueTableIndex, PFN_WDFWORKITEMENQUEUE, timing::wdf_work_item_enqueue;
        WdfWorkItemGetParentObjectTableIndex, PFN_WDFWORKITEMGETPARENTOBJECT, timing::wdf_work_item_get_parent_object;
        WdfWorkItemFlushTableIndex, PFN_WDFWORKITEMFLUSH, timing::wdf_work_item_flush;
        WdfRequestMarkCancelableExTableIndex, PFN_WDFREQUESTMARKCANCELABLEEX, request::wdf_request_mark_cancelable_ex;
    }
    table
}
