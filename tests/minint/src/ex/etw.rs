//! Event tracing providers. No session listens: nothing is enabled, and writing
//! succeeds without an effect, as on a Windows without a consumer.
//!
//! Any IRQL for writing; PASSIVE_LEVEL for (un)registering.

use alloc::collections::BTreeMap;

use wdk_standin::wdk_sys::{BOOLEAN, LPCGUID, NTSTATUS, PVOID, ULONG};

use super::entry::caller_aware;
use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ke::spinlock::IrqLock;
use crate::ob::argument::put;
use crate::rtl::status::{STATUS_INVALID_HANDLE, STATUS_SUCCESS};

struct Providers {
    owners: BTreeMap<u64, usize>,
    next: u64,
}

static PROVIDERS: IrqLock<Providers> = IrqLock::new(Providers {
    owners: BTreeMap::new(),
    next: 0x10,
});

/// Calls `visit` with each registration and an address inside its owner.
pub(crate) fn registered(visit: &mut dyn FnMut(u64, usize)) {
    let all: alloc::vec::Vec<(u64, usize)> = {
        let providers = PROVIDERS.lock();
        providers
            .owners
            .iter()
            .map(|(&handle, &owner)| (handle, owner))
            .collect()
    };
    for (handle, owner) in all {
        visit(handle, owner);
    }
}

fn known(handle: u64) -> NTSTATUS {
    if PROVIDERS.lock().owners.contains_key(&handle) {
        STATUS_SUCCESS
    } else {
        STATUS_INVALID_HANDLE
    }
}

unsafe extern "C" fn register(
    provider: LPCGUID,
    _enable: PVOID,
    _context: PVOID,
    handle: *mut u64,
    caller: usize,
) -> NTSTATUS {
    const API: &str = "EtwRegister";
    require_irql(PASSIVE_LEVEL, API);
    crate::ob::argument::check(provider, API);
    let mut providers = PROVIDERS.lock();
    let value = providers.next;
    providers.next += 0x10;
    let _ = providers.owners.insert(value, caller);
    drop(providers);
    put!(handle, value, API);
    STATUS_SUCCESS
}

caller_aware!(EtwRegister, 4, register);

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn EtwUnregister(handle: u64) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, "EtwUnregister");
    let removed = PROVIDERS.lock().owners.remove(&handle);
    if removed.is_some() {
        STATUS_SUCCESS
    } else {
        STATUS_INVALID_HANDLE
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn EtwWrite(
    handle: u64,
    _descriptor: PVOID,
    _activity: LPCGUID,
    _count: ULONG,
    _data: PVOID,
) -> NTSTATUS {
    known(handle)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn EtwWriteTransfer(
    handle: u64,
    _descriptor: PVOID,
    _activity: LPCGUID,
    _related: LPCGUID,
    _count: ULONG,
    _data: PVOID,
) -> NTSTATUS {
    known(handle)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn EtwWriteString(
    handle: u64,
    _level: u8,
    _keyword: u64,
    _activity: LPCGUID,
    _string: *const u16,
) -> NTSTATUS {
    known(handle)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn EtwSetInformation(
    handle: u64,
    _class: ULONG,
    _information: PVOID,
    _length: ULONG,
) -> NTSTATUS {
    known(handle)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn EtwEventEnabled(_handle: u64, _descriptor: PVOID) -> BOOLEAN {
    0
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn EtwProviderEnabled(
    _handle: u64,
    _level: u8,
    _keyword: u64,
) -> BOOLEAN {
    0
}
