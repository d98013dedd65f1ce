//! Device queues: `KDEVICE_QUEUE`, the order of IRPs before `StartIo`.
//!
//! Each queue has its own spin lock. IRQL DISPATCH_LEVEL (removal and insertion), any
//! below for initialisation.

use core::cell::Cell;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;

use super::irql::{self, DISPATCH_LEVEL};
use super::list::{List, container};
use super::spinlock_exports::{KeAcquireSpinLockAtDpcLevel, KeReleaseSpinLockFromDpcLevel};

/// `KDEVICE_QUEUE`.
#[repr(C)]
#[derive(Debug)]
pub struct DeviceQueue {
    kind: Cell<i16>,
    size: Cell<i16>,
    head: List,
    lock: Cell<usize>,
    busy: Cell<u8>,
}

/// `KDEVICE_QUEUE_ENTRY`.
#[repr(C)]
#[derive(Debug)]
pub struct DeviceQueueEntry {
    link: List,
    key: Cell<u32>,
    inserted: Cell<u8>,
}

const DEVICE_QUEUE_OBJECT: i16 = 20;
const _: () = assert!(size_of::<DeviceQueue>() == size_of::<wdk_standin::wdk_sys::KDEVICE_QUEUE>());
const _: () = assert!(
    size_of::<DeviceQueueEntry>() == size_of::<wdk_standin::wdk_sys::KDEVICE_QUEUE_ENTRY>()
);

fn queue<'a>(object: *mut c_void, api: &str) -> &'a DeviceQueue {
    require!(!object.is_null(), api, "the queue is NULL");
    // SAFETY: the caller vouches for the queue; its type is checked next.
    let queue = unsafe { &*object.cast::<DeviceQueue>() };
    require!(
        queue.kind.get() == DEVICE_QUEUE_OBJECT,
        api,
        "{object:p} is no initialised device queue"
    );
    queue
}

fn entry<'a>(object: *mut c_void) -> &'a DeviceQueueEntry {
    // SAFETY: the caller of the export vouches for the entry.
    unsafe { &*object.cast::<DeviceQueueEntry>() }
}

fn entry_of(link: *const List) -> &'static DeviceQueueEntry {
    let entry = container::<DeviceQueueEntry>(link, offset_of!(DeviceQueueEntry, link));
    // SAFETY: the queue holds entries by this link.
    unsafe { &*entry }
}

fn locked<R>(queue: &DeviceQueue, api: &str, f: impl FnOnce() -> R) -> R {
    irql::require_irql_exact(DISPATCH_LEVEL, api);
    let lock = queue.lock.as_ptr();
    // SAFETY: the queue's own lock.
    unsafe { KeAcquireSpinLockAtDpcLevel(lock) };
    let result = f();
    // SAFETY: taken above.
    unsafe { KeReleaseSpinLockFromDpcLevel(lock) };
    result
}

/// `KeInitializeDeviceQueue`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInitializeDeviceQueue(object: *mut c_void) {
    // SAFETY: the caller gives memory for a KDEVICE_QUEUE.
    let queue = unsafe { &*object.cast::<DeviceQueue>() };
    queue.kind.set(DEVICE_QUEUE_OBJECT);
    queue.size.set(size_of::<DeviceQueue>() as i16);
    queue.head.initialize();
    queue.lock.set(0);
    queue.busy.set(0);
}

fn insert(object: *mut c_void, new: *mut c_void, key: Option<u32>, api: &str) -> u8 {
    let queue = queue(object, api);
    let new = entry(new);
    locked(queue, api, || {
        new.key.set(key.unwrap_or(0));
        if queue.busy.replace(1) == 0 {
            new.inserted.set(0);
            return 0;
        }
        let mut before = if key.is_some() {
            queue.head.first()
        } else {
            None
        };
        while let Some(link) = before {
            if entry_of(link).key.get() > new.key.get() {
                break;
            }
            before = queue.head.after(link);
        }
        match before {
            Some(link) => entry_of(link).link.push_back(&new.link),
            None => queue.head.push_back(&new.link),
        }
        new.inserted.set(1);
        1
    })
}

/// `KeInsertDeviceQueue`: whether it was queued (else the device was idle).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInsertDeviceQueue(queue: *mut c_void, entry: *mut c_void) -> u8 {
    insert(queue, entry, None, "KeInsertDeviceQueue")
}

/// `KeInsertByKeyDeviceQueue`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInsertByKeyDeviceQueue(
    queue: *mut c_void,
    entry: *mut c_void,
    key: u32,
) -> u8 {
    insert(queue, entry, Some(key), "KeInsertByKeyDeviceQueue")
}

fn remove(object: *mut c_void, least: Option<u32>, api: &str) -> *mut c_void {
    let queue = queue(object, api);
    locked(queue, api, || {
        require!(queue.busy.get() != 0, api, "the queue is not busy");
        let Some(first) = queue.head.first() else {
            queue.busy.set(0);
            return ptr::null_mut();
        };
        let mut chosen = Some(first);
        while let Some(link) = chosen {
            if least.is_none_or(|least| entry_of(link).key.get() >= least) {
                break;
            }
            chosen = queue.head.after(link);
        }
        let entry = entry_of(chosen.unwrap_or(first));
        entry.link.remove();
        entry.inserted.set(0);
        ptr::from_ref(entry).cast_mut().cast()
    })
}

/// `KeRemoveDeviceQueue`: the first entry; NULL makes the queue idle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRemoveDeviceQueue(queue: *mut c_void) -> *mut c_void {
    remove(queue, None, "KeRemoveDeviceQueue")
}

/// `KeRemoveByKeyDeviceQueue`: the first entry with at least this key, else the first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRemoveByKeyDeviceQueue(queue: *mut c_void, key: u32) -> *mut c_void {
    remove(queue, Some(key), "KeRemoveByKeyDeviceQueue")
}

/// `KeRemoveEntryDeviceQueue`: whether the entry was queued.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRemoveEntryDeviceQueue(object: *mut c_void, old: *mut c_void) -> u8 {
    let api = "KeRemoveEntryDeviceQueue";
    let this = queue(object, api);
    let entry = entry(old);
    let level = irql::raise(DISPATCH_LEVEL.max(irql::current()));
    let removed = locked(this, api, || {
        let inserted = entry.inserted.replace(0) != 0;
        if inserted {
            entry.link.remove();
        }
        u8::from(inserted)
    });
    irql::lower(level);
    removed
}
