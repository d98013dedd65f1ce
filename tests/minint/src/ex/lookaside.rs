//! Lookaside lists: the caller's structure, filled with the pool's routines.
//!
//! Allocation and freeing are inline in the DDK headers; they call through the
//! structure. Lists that exist are kept in a table for the unload check.

use alloc::vec::Vec;

use wdk_standin::wdk_sys::{
    GENERAL_LOOKASIDE, NTSTATUS, PALLOCATE_FUNCTION, PALLOCATE_FUNCTION_EX, PFREE_FUNCTION,
    PFREE_FUNCTION_EX, PLOOKASIDE_LIST_EX, PVOID, SIZE_T, ULONG, USHORT,
};

use super::nt;
use super::slist::{ExpInterlockedPopEntrySList, InitializeSListHead};
use crate::ke::irql::{DISPATCH_LEVEL, require_irql};
use crate::ke::spinlock::SpinLock;
use crate::ob::argument::borrow;
use crate::rtl::status::STATUS_SUCCESS;

/// (list, address inside the module that made it).
static LISTS: SpinLock<Vec<(usize, usize)>> = SpinLock::new(Vec::new());

/// Non-paged pool that is not executable.
const NON_PAGED_POOL_NX: u32 = 512;
const PAGED_POOL: u32 = 1;

/// Calls `visit` with each list and an address inside the module that made it.
pub(crate) fn outstanding(visit: &mut dyn FnMut(usize, usize)) {
    let all = LISTS.lock().clone();
    for (list, owner) in all {
        visit(list, owner);
    }
}

fn initialize(list: *mut GENERAL_LOOKASIDE, kind: u32, size: SIZE_T, tag: ULONG, api: &str) {
    require_irql(DISPATCH_LEVEL, api);
    let header = borrow!(list, api);
    *header = GENERAL_LOOKASIDE::default();
    // SAFETY: the list head of the structure above.
    unsafe { InitializeSListHead((&raw mut header.__bindgen_anon_1).cast()) };
    header.Depth = 4;
    header.MaximumDepth = 256;
    header.Type = kind as _;
    header.Tag = tag;
    header.Size = u32::try_from(size).unwrap_or(u32::MAX);
}

fn enter(list: PVOID, owner: usize, api: &str) {
    let mut lists = LISTS.lock();
    let known = lists.iter().any(|(other, _)| *other == list.addr());
    if !known {
        lists.push((list.addr(), owner));
    }
    drop(lists);
    crate::require!(!known, api, "the list at {:p} is initialized already", list);
}

fn leave(list: PVOID, api: &str) {
    let mut lists = LISTS.lock();
    let at = lists.iter().position(|(other, _)| *other == list.addr());
    if let Some(at) = at {
        lists.swap_remove(at);
    }
    drop(lists);
    crate::require!(at.is_some(), api, "{:p} is not a lookaside list", list);
}

fn drain(list: *mut GENERAL_LOOKASIDE, free: impl Fn(PVOID)) {
    loop {
        // SAFETY: the list head at the start of an initialized structure.
        let entry = unsafe { ExpInterlockedPopEntrySList(list.cast()) };
        if entry.is_null() {
            return;
        }
        free(entry.cast());
    }
}

unsafe extern "C" fn default_allocate(kind: i32, bytes: SIZE_T, tag: ULONG) -> PVOID {
    // SAFETY: any size and tag are allowed.
    unsafe { nt::ExAllocatePoolWithTag(kind.cast_unsigned(), bytes, tag) }
}

unsafe extern "C" fn default_allocate_ex(
    kind: i32,
    bytes: SIZE_T,
    tag: ULONG,
    _list: PLOOKASIDE_LIST_EX,
) -> PVOID {
    // SAFETY: any size and tag are allowed.
    unsafe { nt::ExAllocatePoolWithTag(kind.cast_unsigned(), bytes, tag) }
}

unsafe extern "C" fn default_free(block: PVOID) {
    // SAFETY: the pool checks the block.
    unsafe { nt::ExFreePool(block) };
}

unsafe extern "C" fn default_free_ex(block: PVOID, _list: PLOOKASIDE_LIST_EX) {
    // SAFETY: the pool checks the block.
    unsafe { nt::ExFreePool(block) };
}

fn set_up(
    list: *mut GENERAL_LOOKASIDE,
    routines: (PALLOCATE_FUNCTION, PFREE_FUNCTION),
    kind: u32,
    size: SIZE_T,
    tag: ULONG,
    api: &str,
) {
    initialize(list, kind, size, tag, api);
    let header = borrow!(list, api);
    header.__bindgen_anon_4.Allocate = routines.0.or(Some(default_allocate));
    header.__bindgen_anon_5.Free = routines.1.or(Some(default_free));
    let owner = routines.0.map_or(0, |routine| routine as usize);
    enter(list.cast(), owner, api);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExInitializeNPagedLookasideList(
    list: *mut GENERAL_LOOKASIDE,
    allocate: PALLOCATE_FUNCTION,
    free: PFREE_FUNCTION,
    _flags: ULONG,
    size: SIZE_T,
    tag: ULONG,
    _depth: USHORT,
) {
    set_up(
        list,
        (allocate, free),
        NON_PAGED_POOL_NX,
        size,
        tag,
        "ExInitializeNPagedLookasideList",
    );
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExInitializePagedLookasideList(
    list: *mut GENERAL_LOOKASIDE,
    allocate: PALLOCATE_FUNCTION,
    free: PFREE_FUNCTION,
    _flags: ULONG,
    size: SIZE_T,
    tag: ULONG,
    _depth: USHORT,
) {
    set_up(
        list,
        (allocate, free),
        PAGED_POOL,
        size,
        tag,
        "ExInitializePagedLookasideList",
    );
}

fn delete(list: *mut GENERAL_LOOKASIDE, api: &str) {
    require_irql(DISPATCH_LEVEL, api);
    leave(list.cast(), api);
    let header = borrow!(list, api);
    // SAFETY: initialized, so the member that `set_up` wrote is set.
    let free = unsafe { header.__bindgen_anon_5.Free };
    drain(list, |block| {
        if let Some(free) = free {
            // SAFETY: the list's own routine for its own block.
            unsafe { free(block) };
        }
    });
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExDeleteNPagedLookasideList(list: *mut GENERAL_LOOKASIDE) {
    delete(list, "ExDeleteNPagedLookasideList");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExDeletePagedLookasideList(list: *mut GENERAL_LOOKASIDE) {
    delete(list, "ExDeletePagedLookasideList");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExInitializeLookasideListEx(
    list: PLOOKASIDE_LIST_EX,
    allocate: PALLOCATE_FUNCTION_EX,
    free: PFREE_FUNCTION_EX,
    kind: u32,
    _flags: ULONG,
    size: SIZE_T,
    tag: ULONG,
    _depth: USHORT,
) -> NTSTATUS {
    const API: &str = "ExInitializeLookasideListEx";
    let general = list.cast::<GENERAL_LOOKASIDE>();
    initialize(general, kind, size, tag, API);
    let header = borrow!(general, API);
    header.__bindgen_anon_4.AllocateEx = allocate.or(Some(default_allocate_ex));
    header.__bindgen_anon_5.FreeEx = free.or(Some(default_free_ex));
    enter(
        list.cast(),
        allocate.map_or(0, |routine| routine as usize),
        API,
    );
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExFlushLookasideListEx(list: PLOOKASIDE_LIST_EX) {
    const API: &str = "ExFlushLookasideListEx";
    require_irql(DISPATCH_LEVEL, API);
    let general = list.cast::<GENERAL_LOOKASIDE>();
    let header = borrow!(general, API);
    // SAFETY: initialized, so the member is set.
    let free = unsafe { header.__bindgen_anon_5.FreeEx };
    drain(general, |block| {
        if let Some(free) = free {
            // SAFETY: the list's own routine for its own block.
            unsafe { free(block, list) };
        }
    });
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExDeleteLookasideListEx(list: PLOOKASIDE_LIST_EX) {
    leave(list.cast(), "ExDeleteLookasideListEx");
    // SAFETY: the same contract.
    unsafe { ExFlushLookasideListEx(list) };
}
