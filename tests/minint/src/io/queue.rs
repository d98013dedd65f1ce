//! Device queues, and `StartIo` on top of them.
//!
//! The queue's state is the caller's `KDEVICE_QUEUE`, under its own spin lock.
//! IRQL DISPATCH_LEVEL, or below it where Microsoft says so.

use wdk_standin::wdk_sys::{
    BOOLEAN, KDEVICE_QUEUE, KDEVICE_QUEUE_ENTRY, LIST_ENTRY, PDEVICE_OBJECT, PDRIVER_CANCEL, PIRP,
    ULONG,
};

use super::irp::exchange_cancel_routine;
use crate::ex::nt;
use crate::ke::irql::{self, DISPATCH_LEVEL, require_irql, require_irql_exact};
use crate::ob::argument::{borrow, own};

const DEVICE_QUEUE_OBJECT: i16 = 20;

type Queue = *mut KDEVICE_QUEUE;
type Entry = *mut KDEVICE_QUEUE_ENTRY;

fn busy<'a>(queue: Queue) -> &'a mut u8 {
    // SAFETY: a plain byte of the structure, guarded by its lock.
    unsafe { &mut *(&raw mut own!(queue).__bindgen_anon_1).cast::<u8>() }
}

/// Runs `f` under the queue's lock.
fn locked<R>(queue: Queue, f: impl FnOnce() -> R) -> R {
    let lock = &raw mut own!(queue).Lock;
    // SAFETY: the lock in the queue.
    let old = unsafe { nt::KeAcquireSpinLockRaiseToDpc(lock) };
    let result = f();
    // SAFETY: taken above.
    unsafe { nt::KeReleaseSpinLock(lock, old) };
    result
}

fn head(queue: Queue) -> *mut LIST_ENTRY {
    &raw mut own!(queue).DeviceListHead
}

fn link(entry: *mut LIST_ENTRY, before: *mut LIST_ENTRY) {
    let after = own!(before).Blink;
    own!(entry).Flink = before;
    own!(entry).Blink = after;
    own!(after).Flink = entry;
    own!(before).Blink = entry;
}

fn unlink(entry: *mut LIST_ENTRY) {
    let links = *own!(entry);
    own!(links.Blink).Flink = links.Flink;
    own!(links.Flink).Blink = links.Blink;
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn KeInitializeDeviceQueue(queue: Queue) {
    let state = borrow!(queue, "KeInitializeDeviceQueue");
    *state = KDEVICE_QUEUE::default();
    state.Type = DEVICE_QUEUE_OBJECT;
    state.Size = size_of::<KDEVICE_QUEUE>() as i16;
    let head = head(queue);
    state.DeviceListHead = LIST_ENTRY {
        Flink: head,
        Blink: head,
    };
}

fn insert(queue: Queue, entry: Entry, key: Option<u32>, api: &str) -> BOOLEAN {
    require_irql_exact(DISPATCH_LEVEL, api);
    let state = borrow!(entry, api);
    let _ = borrow!(queue, api);
    locked(queue, || {
        if *busy(queue) == 0 {
            *busy(queue) = 1;
            state.Inserted = 0;
            return 0;
        }
        let mut before = head(queue);
        if let Some(key) = key {
            state.SortKey = key;
            let mut at = own!(before).Flink;
            while at != head(queue) && own!(at.cast::<KDEVICE_QUEUE_ENTRY>()).SortKey <= key {
                at = own!(at).Flink;
            }
            before = at;
        }
        link(&raw mut state.DeviceListEntry, before);
        state.Inserted = 1;
        1
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn KeInsertDeviceQueue(queue: Queue, entry: Entry) -> BOOLEAN {
    insert(queue, entry, None, "KeInsertDeviceQueue")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn KeInsertByKeyDeviceQueue(
    queue: Queue,
    entry: Entry,
    key: ULONG,
) -> BOOLEAN {
    insert(queue, entry, Some(key), "KeInsertByKeyDeviceQueue")
}

fn remove(queue: Queue, key: u32, api: &str) -> Entry {
    require_irql_exact(DISPATCH_LEVEL, api);
    let _ = borrow!(queue, api);
    locked(queue, || {
        let head = head(queue);
        let mut at = own!(head).Flink;
        if at == head {
            *busy(queue) = 0;
            return core::ptr::null_mut();
        }
        while at != head && own!(at.cast::<KDEVICE_QUEUE_ENTRY>()).SortKey < key {
            at = own!(at).Flink;
        }
        if at == head {
            at = own!(head).Flink;
        }
        unlink(at);
        own!(at.cast::<KDEVICE_QUEUE_ENTRY>()).Inserted = 0;
        at.cast()
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn KeRemoveDeviceQueue(queue: Queue) -> Entry {
    remove(queue, 0, "KeRemoveDeviceQueue")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn KeRemoveByKeyDeviceQueue(queue: Queue, key: ULONG) -> Entry {
    remove(queue, key, "KeRemoveByKeyDeviceQueue")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn KeRemoveEntryDeviceQueue(queue: Queue, entry: Entry) -> BOOLEAN {
    const API: &str = "KeRemoveEntryDeviceQueue";
    require_irql(DISPATCH_LEVEL, API);
    let state = borrow!(entry, API);
    locked(queue, || {
        let inserted = state.Inserted;
        if inserted != 0 {
            unlink(&raw mut state.DeviceListEntry);
            state.Inserted = 0;
        }
        inserted
    })
}

fn entry_of(irp: PIRP) -> Entry {
    (&raw mut own!(irp).Tail).cast()
}

fn irp_of(entry: Entry) -> PIRP {
    entry
        .wrapping_byte_sub(core::mem::offset_of!(wdk_standin::wdk_sys::IRP, Tail))
        .cast()
}

fn start_io(device: PDEVICE_OBJECT, irp: PIRP) {
    let driver = own!(own!(device).DriverObject);
    if let Some(routine) = driver.DriverStartIo {
        // SAFETY: the driver's routine, at DISPATCH_LEVEL as documented.
        unsafe { routine(device, irp) };
    }
}

fn at_dispatch(f: impl FnOnce()) {
    let old = irql::raise(DISPATCH_LEVEL);
    f();
    irql::lower(old);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoStartPacket(
    device: PDEVICE_OBJECT,
    irp: PIRP,
    key: *mut ULONG,
    cancel: PDRIVER_CANCEL,
) {
    const API: &str = "IoStartPacket";
    require_irql(DISPATCH_LEVEL, API);
    let state = borrow!(device, API);
    let key = if key.is_null() {
        None
    } else {
        Some(*borrow!(key, API))
    };
    at_dispatch(|| {
        if cancel.is_some() {
            let _ = exchange_cancel_routine(irp, cancel);
        }
        if insert(&raw mut state.DeviceQueue, entry_of(irp), key, API) == 0 {
            state.CurrentIrp = irp;
            start_io(device, irp);
        }
    });
}

fn next(device: PDEVICE_OBJECT, key: u32, api: &str) {
    require_irql_exact(DISPATCH_LEVEL, api);
    let state = borrow!(device, api);
    state.CurrentIrp = core::ptr::null_mut();
    let entry = remove(&raw mut state.DeviceQueue, key, api);
    if !entry.is_null() {
        let irp = irp_of(entry);
        state.CurrentIrp = irp;
        start_io(device, irp);
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoStartNextPacket(device: PDEVICE_OBJECT, _cancelable: BOOLEAN) {
    next(device, 0, "IoStartNextPacket");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoStartNextPacketByKey(
    device: PDEVICE_OBJECT,
    _cancelable: BOOLEAN,
    key: ULONG,
) {
    next(device, key, "IoStartNextPacketByKey");
}
