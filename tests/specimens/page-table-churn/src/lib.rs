//! Specimen, benign: page tables that live.
//!
//! Mappings are made, protected, used and removed; tables of the driver's own
//! are built, put into CR3 for a call, and given back to the pool, where their
//! frames become somebody's data. The processor writes accessed and dirty bits
//! into all of them. Nothing may be found, and every word must be read as it was
//! written.

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
mod instr;
#[path = "../../tables.rs"]
mod tables;

use harness::{KERNEL_MODE, NORMAL_PRIORITY, PAGE, TAG, Worker, physical_address};
use tables::Tables;
use wdk_standin::wdk_sys::{
    _MEMORY_CACHING_TYPE, LARGE_INTEGER, MM_ALLOCATE_FULLY_REQUIRED, NTSTATUS, PAGE_READONLY,
    PAGE_READWRITE, PCUNICODE_STRING, PDRIVER_OBJECT, POOL_FLAG_NON_PAGED, PVOID,
    ntddk::{
        ExAllocatePool2, ExFreePool, ExFreePoolWithTag, MmAllocatePagesForMdlEx,
        MmFreePagesFromMdl, MmMapLockedPagesSpecifyCache, MmProtectMdlSystemAddress,
        MmUnmapLockedPages,
    },
};

/// Pages of one mapping.
const PAGES: usize = 24;
/// No-execute in a page-table entry.
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000F_FFFF_FFFF_F000;

static WORKER: Worker = Worker::new();

/// The driver's entry point.
///
/// # Safety
/// For the loader.
// SAFETY: the linker is told this name; nothing else defines it.
#[unsafe(export_name = "DriverEntry")]
pub unsafe extern "system" fn driver_entry(
    driver: PDRIVER_OBJECT,
    _registry_path: PCUNICODE_STRING,
) -> NTSTATUS {
    harness::set_unload(driver, Some(unload));
    WORKER.start(run)
}

unsafe extern "C" fn unload(_driver: PDRIVER_OBJECT) {
    WORKER.stop();
}

/// Maps pages, writes, forbids and allows writing, reads, unmaps. Whether all
/// words were there.
fn mapping(seed: u64) -> bool {
    let none = LARGE_INTEGER { QuadPart: 0 };
    let all = LARGE_INTEGER { QuadPart: i64::MAX };
    // SAFETY: the result is checked.
    let mdl = unsafe {
        MmAllocatePagesForMdlEx(
            none,
            all,
            none,
            (PAGES * PAGE) as u64,
            _MEMORY_CACHING_TYPE::MmCached,
            MM_ALLOCATE_FULLY_REQUIRED,
        )
    };
    if mdl.is_null() {
        return true;
    }
    // SAFETY: the pages are resident; failure gives null.
    let mapped = unsafe {
        MmMapLockedPagesSpecifyCache(
            mdl,
            KERNEL_MODE,
            _MEMORY_CACHING_TYPE::MmCached,
            core::ptr::null_mut(),
            0,
            NORMAL_PRIORITY,
        )
    };
    let mut right = true;
    if !mapped.is_null() {
        let word = |page: usize| mapped.cast::<u64>().wrapping_add(page * PAGE / 8);
        for page in 0..PAGES {
            // SAFETY: mapped, writable, aligned.
            unsafe { word(page).write_volatile(seed + page as u64) };
        }
        for protection in [PAGE_READONLY, PAGE_READWRITE] {
            // SAFETY: mapped by this MDL.
            let _ = unsafe { MmProtectMdlSystemAddress(mdl, protection) };
            for page in 0..PAGES {
                // SAFETY: mapped, aligned.
                let found = unsafe { word(page).read_volatile() };
                right &= found == seed + page as u64;
            }
        }
        // SAFETY: mapped above.
        unsafe { MmUnmapLockedPages(mapped, mdl) };
    }
    // SAFETY: allocated above, no longer mapped.
    unsafe { MmFreePagesFromMdl(mdl) };
    // SAFETY: the descriptor itself is pool that is ours to free.
    unsafe { ExFreePool(mdl.cast()) };
    right
}

unsafe extern "C" fn read_word(address: u64) -> u64 {
    // SAFETY: mapped in the tables in use.
    unsafe { (address as *const u64).read_volatile() }
}

/// Two pages and tables in which the address of one leads to the other.
fn own_tables(seed: u64) -> bool {
    let page = || {
        // SAFETY: IRQL <= DISPATCH_LEVEL; a block of a page is page-aligned.
        let block = unsafe { ExAllocatePool2(POOL_FLAG_NON_PAGED, PAGE as u64, TAG) };
        block.cast::<u64>()
    };
    let (one, other) = (page(), page());
    let mut right = true;
    if !one.is_null() && !other.is_null() {
        // SAFETY: a page of ours.
        unsafe { one.write_volatile(seed) };
        // SAFETY: a page of ours.
        unsafe { other.write_volatile(!seed) };
        let frame = physical_address(other as u64);
        // Accessed and dirty are clear: the processor sets them on its way.
        let entry = |_| frame & FRAME | 3 | NO_EXECUTE;
        if let Some(tables) = Tables::with(one as u64, entry) {
            right &= tables.call(read_word, one as u64) == !seed;
        }
        // SAFETY: a page of ours.
        right &= unsafe { one.read_volatile() } == seed;
    }
    for block in [one, other] {
        if !block.is_null() {
            // SAFETY: allocated above with this tag.
            unsafe { ExFreePoolWithTag(block.cast::<core::ffi::c_void>() as PVOID, TAG) };
        }
    }
    right
}

unsafe extern "C" fn run(_context: PVOID) {
    let mut wrong = 0;
    let mut round = 0;
    while round < 60 && WORKER.pause(2) {
        wrong += u64::from(!mapping(round));
        wrong += u64::from(!own_tables(round));
        round += 1;
    }
    harness::report(c"page-table-churn", c"wrong answers", wrong);
    while WORKER.pause(1000) {}
    Worker::leave();
}
