//! The figures of KMDF 1.31 on x64, from Microsoft's published WDF headers.

use core::mem::offset_of;

use wdk_standin::wdk_sys::{
    _WDF_DRIVER_INIT_FLAGS, _WDF_EXECUTION_LEVEL, _WDF_IO_QUEUE_DISPATCH_TYPE,
    _WDF_SYNCHRONIZATION_SCOPE, _WDF_TRI_STATE, _WDFFUNCENUM, WDF_BIND_INFO, WDF_DPC_CONFIG,
    WDF_DRIVER_CONFIG, WDF_DRIVER_GLOBALS, WDF_FILEOBJECT_CONFIG, WDF_IO_QUEUE_CONFIG,
    WDF_OBJECT_ATTRIBUTES, WDF_OBJECT_CONTEXT_TYPE_INFO, WDF_REQUEST_PARAMETERS, WDF_TIMER_CONFIG,
    WDF_WORKITEM_CONFIG,
};

macro_rules! layout {
    ($type:ty, $size:literal $(, $field:ident $(. $more:ident)* @ $offset:literal)*) => {
        assert_eq!(size_of::<$type>(), $size, "size of {}", stringify!($type));
        $(assert_eq!(
            offset_of!($type, $field $(. $more)*), $offset,
            "offset of {}.{}", stringify!($type), stringify!($field)
        );)*
    };
}

macro_rules! indices {
    ($($name:ident = $index:literal,)*) => {
        $(assert_eq!(_WDFFUNCENUM::$name, $index, stringify!($name));)*
    };
}

#[test]
fn functions_stand_where_the_framework_puts_them() {
    assert_eq!(_WDFFUNCENUM::WdfFunctionTableNumEntries, 458);
    indices! {
        WdfControlDeviceInitAllocateTableIndex = 25,
        WdfControlDeviceInitSetShutdownNotificationTableIndex = 26,
        WdfControlFinishInitializingTableIndex = 27,
        WdfDeviceWdmGetDeviceObjectTableIndex = 31,
        WdfDeviceInitFreeTableIndex = 54,
        WdfDeviceInitSetIoTypeTableIndex = 61,
        WdfDeviceInitSetExclusiveTableIndex = 62,
        WdfDeviceInitSetDeviceTypeTableIndex = 66,
        WdfDeviceInitAssignNameTableIndex = 67,
        WdfDeviceInitAssignSDDLStringTableIndex = 68,
        WdfDeviceInitSetDeviceClassTableIndex = 69,
        WdfDeviceInitSetCharacteristicsTableIndex = 70,
        WdfDeviceInitSetFileObjectConfigTableIndex = 71,
        WdfDeviceInitSetRequestAttributesTableIndex = 72,
        WdfDeviceInitSetIoInCallerContextCallbackTableIndex = 74,
        WdfDeviceCreateTableIndex = 75,
        WdfDeviceCreateSymbolicLinkTableIndex = 80,
        WdfDeviceGetFileObjectTableIndex = 90,
        WdfDeviceGetDefaultQueueTableIndex = 92,
        WdfDpcCreateTableIndex = 111,
        WdfDpcEnqueueTableIndex = 112,
        WdfDpcCancelTableIndex = 113,
        WdfDriverCreateTableIndex = 116,
        WdfDriverGetRegistryPathTableIndex = 117,
        WdfDriverWdmGetDriverObjectTableIndex = 118,
        WdfDriverOpenParametersRegistryKeyTableIndex = 119,
        WdfFileObjectGetFileNameTableIndex = 137,
        WdfFileObjectGetDeviceTableIndex = 139,
        WdfFileObjectWdmGetFileObjectTableIndex = 140,
        WdfIoQueueCreateTableIndex = 152,
        WdfIoQueueGetStateTableIndex = 153,
        WdfIoQueueStartTableIndex = 154,
        WdfIoQueueStopTableIndex = 155,
        WdfIoQueueStopSynchronouslyTableIndex = 156,
        WdfIoQueueGetDeviceTableIndex = 157,
        WdfIoQueueRetrieveNextRequestTableIndex = 158,
        WdfIoQueueRetrieveRequestByFileObjectTableIndex = 159,
        WdfIoQueueFindRequestTableIndex = 160,
        WdfIoQueueDrainSynchronouslyTableIndex = 162,
        WdfIoQueuePurgeSynchronouslyTableIndex = 164,
        WdfIoQueuePurgeTableIndex = 165,
        WdfIoQueueReadyNotifyTableIndex = 166,
        WdfMemoryCreateTableIndex = 192,
        WdfMemoryGetBufferTableIndex = 194,
        WdfObjectGetTypedContextWorkerTableIndex = 202,
        WdfObjectAllocateContextTableIndex = 203,
        WdfObjectContextGetObjectTableIndex = 204,
        WdfObjectReferenceActualTableIndex = 205,
        WdfObjectDereferenceActualTableIndex = 206,
        WdfObjectCreateTableIndex = 207,
        WdfObjectDeleteTableIndex = 208,
        WdfObjectQueryTableIndex = 209,
        WdfRegistryOpenKeyTableIndex = 229,
        WdfRegistryCloseTableIndex = 231,
        WdfRegistryQueryValueTableIndex = 235,
        WdfRegistryQueryULongTableIndex = 240,
        WdfRequestGetStatusTableIndex = 254,
        WdfRequestMarkCancelableTableIndex = 255,
        WdfRequestUnmarkCancelableTableIndex = 256,
        WdfRequestIsCanceledTableIndex = 257,
        WdfRequestIsFrom32BitProcessTableIndex = 259,
        WdfRequestCompleteTableIndex = 263,
        WdfRequestCompleteWithPriorityBoostTableIndex = 264,
        WdfRequestCompleteWithInformationTableIndex = 265,
        WdfRequestGetParametersTableIndex = 266,
        WdfRequestRetrieveInputMemoryTableIndex = 267,
        WdfRequestRetrieveOutputMemoryTableIndex = 268,
        WdfRequestRetrieveInputBufferTableIndex = 269,
        WdfRequestRetrieveOutputBufferTableIndex = 270,
        WdfRequestSetInformationTableIndex = 275,
        WdfRequestGetInformationTableIndex = 276,
        WdfRequestGetFileObjectTableIndex = 277,
        WdfRequestGetRequestorModeTableIndex = 280,
        WdfRequestForwardToIoQueueTableIndex = 281,
        WdfRequestGetIoQueueTableIndex = 282,
        WdfRequestWdmGetIrpTableIndex = 285,
        WdfStringCreateTableIndex = 308,
        WdfStringGetUnicodeStringTableIndex = 309,
        WdfWaitLockCreateTableIndex = 312,
        WdfWaitLockAcquireTableIndex = 313,
        WdfWaitLockReleaseTableIndex = 314,
        WdfSpinLockCreateTableIndex = 315,
        WdfSpinLockAcquireTableIndex = 316,
        WdfSpinLockReleaseTableIndex = 317,
        WdfTimerCreateTableIndex = 318,
        WdfTimerStartTableIndex = 319,
        WdfTimerStopTableIndex = 320,
        WdfTimerGetParentObjectTableIndex = 321,
        WdfVerifierDbgBreakPointTableIndex = 367,
        WdfWorkItemCreateTableIndex = 379,
        WdfWorkItemEnqueueTableIndex = 380,
        WdfWorkItemGetParentObjectTableIndex = 381,
        WdfWorkItemFlushTableIndex = 382,
        WdfRequestMarkCancelableExTableIndex = 393,
    }
}

#[test]
fn structures_have_the_frameworks_layout() {
    layout!(WDF_DRIVER_GLOBALS, 56, Driver @ 0, DriverFlags @ 8, DriverTag @ 12, DriverName @ 16, DisplaceDriverUnload @ 48);
    layout!(WDF_OBJECT_ATTRIBUTES, 56, Size @ 0, EvtCleanupCallback @ 8, EvtDestroyCallback @ 16, ExecutionLevel @ 24, SynchronizationScope @ 28, ParentObject @ 32, ContextSizeOverride @ 40, ContextTypeInfo @ 48);
    layout!(WDF_OBJECT_CONTEXT_TYPE_INFO, 40, Size @ 0, ContextName @ 8, ContextSize @ 16, UniqueType @ 24, EvtDriverGetUniqueContextType @ 32);
    layout!(WDF_DRIVER_CONFIG, 32, Size @ 0, EvtDriverDeviceAdd @ 8, EvtDriverUnload @ 16, DriverInitFlags @ 24, DriverPoolTag @ 28);
    layout!(WDF_FILEOBJECT_CONFIG, 40, Size @ 0, EvtDeviceFileCreate @ 8, EvtFileClose @ 16, EvtFileCleanup @ 24, AutoForwardCleanupClose @ 32, FileObjectClass @ 36);
    layout!(WDF_TIMER_CONFIG, 40, Size @ 0, EvtTimerFunc @ 8, Period @ 16, AutomaticSerialization @ 20, TolerableDelay @ 24, UseHighResolutionTimer @ 32);
    layout!(WDF_WORKITEM_CONFIG, 24, Size @ 0, EvtWorkItemFunc @ 8, AutomaticSerialization @ 16);
    layout!(WDF_DPC_CONFIG, 24, Size @ 0, EvtDpcFunc @ 8, AutomaticSerialization @ 16);
    layout!(WDF_REQUEST_PARAMETERS, 40, Size @ 0, MinorFunction @ 2, Type @ 4, Parameters @ 8);
    layout!(WDF_IO_QUEUE_CONFIG, 96, Size @ 0, DispatchType @ 4, PowerManaged @ 8, AllowZeroLengthRequests @ 12, DefaultQueue @ 13, EvtIoDefault @ 16, EvtIoRead @ 24, EvtIoWrite @ 32, EvtIoDeviceControl @ 40, EvtIoInternalDeviceControl @ 48, EvtIoStop @ 56, EvtIoResume @ 64, EvtIoCanceledOnQueue @ 72, Settings @ 80, Driver @ 88);
    layout!(WDF_BIND_INFO, 48, Size @ 0, Component @ 8, Version @ 16, FuncCount @ 28, FuncTable @ 32, Module @ 40);
}

/// `offset_of!` does not look into unions: compare addresses.
#[test]
fn request_parameters_lie_where_the_framework_puts_them() {
    let parameters = WDF_REQUEST_PARAMETERS::default();
    let base = (&raw const parameters).addr();
    macro_rules! at {
        ($variant:ident . $field:ident, $offset:literal) => {
            // SAFETY: an address is taken, nothing is read.
            let address = unsafe { (&raw const parameters.Parameters.$variant.$field).addr() };
            assert_eq!(address - base, $offset, stringify!($variant.$field));
        };
    }
    at!(Create.SecurityContext, 8);
    at!(Create.Options, 16);
    at!(Create.FileAttributes, 24);
    at!(Create.ShareAccess, 26);
    at!(Create.EaLength, 32);
    at!(Read.Length, 8);
    at!(Read.Key, 16);
    at!(Read.DeviceOffset, 24);
    at!(Write.Length, 8);
    at!(Write.Key, 16);
    at!(Write.DeviceOffset, 24);
    at!(DeviceIoControl.OutputBufferLength, 8);
    at!(DeviceIoControl.InputBufferLength, 16);
    at!(DeviceIoControl.IoControlCode, 24);
    at!(DeviceIoControl.Type3InputBuffer, 32);
    at!(Others.Arg1, 8);
    at!(Others.Arg2, 16);
    at!(Others.IoControlCode, 24);
    at!(Others.Arg4, 32);
}

#[test]
fn enumerations_have_the_frameworks_values() {
    assert_eq!(_WDF_TRI_STATE::WdfFalse, 0);
    assert_eq!(_WDF_TRI_STATE::WdfTrue, 1);
    assert_eq!(_WDF_TRI_STATE::WdfUseDefault, 2);
    assert_eq!(_WDF_EXECUTION_LEVEL::WdfExecutionLevelInheritFromParent, 1);
    assert_eq!(_WDF_EXECUTION_LEVEL::WdfExecutionLevelPassive, 2);
    assert_eq!(_WDF_EXECUTION_LEVEL::WdfExecutionLevelDispatch, 3);
    assert_eq!(
        _WDF_SYNCHRONIZATION_SCOPE::WdfSynchronizationScopeInheritFromParent,
        1
    );
    assert_eq!(_WDF_SYNCHRONIZATION_SCOPE::WdfSynchronizationScopeDevice, 2);
    assert_eq!(_WDF_SYNCHRONIZATION_SCOPE::WdfSynchronizationScopeQueue, 3);
    assert_eq!(_WDF_SYNCHRONIZATION_SCOPE::WdfSynchronizationScopeNone, 4);
    assert_eq!(_WDF_IO_QUEUE_DISPATCH_TYPE::WdfIoQueueDispatchSequential, 1);
    assert_eq!(_WDF_IO_QUEUE_DISPATCH_TYPE::WdfIoQueueDispatchParallel, 2);
    assert_eq!(_WDF_IO_QUEUE_DISPATCH_TYPE::WdfIoQueueDispatchManual, 3);
    assert_eq!(_WDF_DRIVER_INIT_FLAGS::WdfDriverInitNonPnpDriver, 1);
    assert_eq!(_WDF_DRIVER_INIT_FLAGS::WdfDriverInitNoDispatchOverride, 2);
}
