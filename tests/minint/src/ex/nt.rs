//! The core's part of the NT API that this part calls, by its documented
//! signatures: the seam between the two is that API.
//!
//! Their IRQL rules are Microsoft's, checked by the core.

use wdk_standin::wdk_sys::{
    BOOLEAN, HANDLE, KIRQL, KPROCESSOR_MODE, LONG, NTSTATUS, PCLIENT_ID, PHANDLE, PKEVENT,
    PKSEMAPHORE, PKSPIN_LOCK, PKSTART_ROUTINE, PLARGE_INTEGER, PMDL, POBJECT_ATTRIBUTES, PVOID,
    SIZE_T, ULONG, ULONG_PTR,
};

/// `NotificationEvent`.
pub(crate) const NOTIFICATION_EVENT: u32 = 0;
/// `SynchronizationEvent`.
pub(crate) const SYNCHRONIZATION_EVENT: u32 = 1;
/// `KernelMode`.
pub(crate) const KERNEL_MODE: KPROCESSOR_MODE = 0;
/// `UserMode`.
pub(crate) const USER_MODE: KPROCESSOR_MODE = 1;

/// `PKIPI_BROADCAST_WORKER`.
pub(crate) type BroadcastWorker = unsafe extern "C" fn(ULONG_PTR) -> ULONG_PTR;

unsafe extern "C" {
    pub(crate) fn KeInitializeEvent(event: PKEVENT, kind: u32, state: BOOLEAN);
    pub(crate) fn KeSetEvent(event: PKEVENT, increment: LONG, wait: BOOLEAN) -> LONG;
    pub(crate) fn KeResetEvent(event: PKEVENT) -> LONG;
    pub(crate) fn KeInitializeSemaphore(semaphore: PKSEMAPHORE, count: LONG, limit: LONG);
    pub(crate) fn KeReleaseSemaphore(
        semaphore: PKSEMAPHORE,
        increment: LONG,
        adjustment: LONG,
        wait: BOOLEAN,
    ) -> LONG;
    pub(crate) fn KeWaitForSingleObject(
        object: PVOID,
        reason: u32,
        mode: KPROCESSOR_MODE,
        alertable: BOOLEAN,
        timeout: PLARGE_INTEGER,
    ) -> NTSTATUS;
    pub(crate) fn KeDelayExecutionThread(
        mode: KPROCESSOR_MODE,
        alertable: BOOLEAN,
        interval: PLARGE_INTEGER,
    ) -> NTSTATUS;
    pub(crate) fn KeAcquireSpinLockRaiseToDpc(lock: PKSPIN_LOCK) -> KIRQL;
    pub(crate) fn KeReleaseSpinLock(lock: PKSPIN_LOCK, irql: KIRQL);
    pub(crate) fn KeIpiGenericCall(worker: BroadcastWorker, context: ULONG_PTR) -> ULONG_PTR;
    pub(crate) fn KeInitializeDeviceQueue(queue: *mut wdk_standin::wdk_sys::KDEVICE_QUEUE);
    pub(crate) fn KeInitializeDpc(
        dpc: *mut wdk_standin::wdk_sys::KDPC,
        routine: PVOID,
        context: PVOID,
    );
    pub(crate) fn KeSetSystemAffinityThreadEx(affinity: ULONG_PTR) -> ULONG_PTR;
    pub(crate) fn KeRevertToUserAffinityThreadEx(affinity: ULONG_PTR);
    pub(crate) fn MmBuildMdlForNonPagedPool(mdl: PMDL);
    pub(crate) fn ExAllocatePool2(flags: u64, bytes: SIZE_T, tag: ULONG) -> PVOID;
    pub(crate) fn ExAllocatePoolWithTag(kind: u32, bytes: SIZE_T, tag: ULONG) -> PVOID;
    pub(crate) fn ExFreePoolWithTag(block: PVOID, tag: ULONG);
    pub(crate) fn ExFreePool(block: PVOID);
    pub(crate) fn PsCreateSystemThread(
        thread: PHANDLE,
        access: ULONG,
        attributes: POBJECT_ATTRIBUTES,
        process: HANDLE,
        client: PCLIENT_ID,
        routine: PKSTART_ROUTINE,
        context: PVOID,
    ) -> NTSTATUS;
    pub(crate) fn PsGetCurrentProcess() -> PVOID;
    pub(crate) fn PsGetCurrentThread() -> PVOID;
    pub(crate) fn PsGetProcessId(process: PVOID) -> HANDLE;
}
