//! Questions about memory, and copies that cannot fault.
//!
//! Translations are read from the page tables in use on this processor; no access is
//! made through an address that is not mapped. IRQL at most DISPATCH_LEVEL unless a
//! routine says less.

use core::ffi::c_void;

use super::{KERNEL_HALF, PAGE_SIZE, USER_END, paging, physical, pool};
use crate::ke::irql::{APC_LEVEL, DISPATCH_LEVEL, PASSIVE_LEVEL, require_irql};

const STATUS_SUCCESS: i32 = 0;
const STATUS_INVALID_ADDRESS: i32 = 0xC000_0141_u32 as i32;
const STATUS_INVALID_PARAMETER: i32 = 0xC000_000D_u32 as i32;
const RANGES_TAG: u32 = u32::from_le_bytes(*b"hPmM");

/// `MmGetPhysicalAddress`: 0 if nothing is mapped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmGetPhysicalAddress(address: *mut c_void) -> i64 {
    paging::translate_current(address as usize).unwrap_or(0) as i64
}

/// `MmGetVirtualForPhysical`: the address under which the kernel uses the frame; NULL
/// for frames that it uses under none, page tables among them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmGetVirtualForPhysical(physical: i64) -> *mut c_void {
    let physical = physical as u64;
    let page = physical::owner(physical);
    if page == 0 {
        return core::ptr::null_mut();
    }
    (page as usize + (physical as usize & (PAGE_SIZE - 1))) as *mut c_void
}

/// `MmIsAddressValid`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmIsAddressValid(address: *mut c_void) -> u8 {
    require_irql(DISPATCH_LEVEL, "MmIsAddressValid");
    let address = address as usize;
    let canonical = !(USER_END..KERNEL_HALF).contains(&address);
    u8::from(canonical && paging::translate_current(address).is_some())
}

/// `MmIsNonPagedSystemAddressValid`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmIsNonPagedSystemAddressValid(address: *mut c_void) -> u8 {
    let address = address as usize;
    u8::from(address >= KERNEL_HALF && paging::translate_current(address).is_some())
}

/// `PHYSICAL_MEMORY_RANGE`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PhysicalRange {
    base: u64,
    bytes: u64,
}

fn ranges(api: &str) -> *mut PhysicalRange {
    require_irql(PASSIVE_LEVEL, api);
    let count = physical::spans().count() + 1;
    let Some(block) = pool::allocate(
        count * size_of::<PhysicalRange>(),
        RANGES_TAG,
        false,
        true,
        0,
    ) else {
        return core::ptr::null_mut();
    };
    let table = block as *mut PhysicalRange;
    for (number, span) in physical::spans().enumerate() {
        let range = PhysicalRange {
            base: span.start,
            bytes: span.end - span.start,
        };
        // SAFETY: the block has a row for each span and one of zeros.
        unsafe { table.wrapping_add(number).write(range) };
    }
    table
}

/// `MmGetPhysicalMemoryRanges`: a table that ends with zeros; the caller frees it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmGetPhysicalMemoryRanges() -> *mut PhysicalRange {
    ranges("MmGetPhysicalMemoryRanges")
}

/// `MmGetPhysicalMemoryRangesEx2`: partition NULL, flags 0 only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmGetPhysicalMemoryRangesEx2(
    partition: *mut c_void,
    flags: u64,
) -> *mut PhysicalRange {
    let api = "MmGetPhysicalMemoryRangesEx2";
    require!(
        partition.is_null() && flags & !1 == 0,
        api,
        "partition {partition:p}, flags {flags:#x}"
    );
    ranges(api)
}

/// Copies `bytes` from `source` (virtual in the current space, or physical) as far as
/// it is mapped; returns how many.
fn copy(target: *mut u8, source: u64, bytes: usize, physical: bool) -> usize {
    let mut done = 0;
    while done < bytes {
        let at = source + done as u64;
        let from = if physical {
            Some(at)
        } else {
            paging::translate_current(at as usize)
        };
        let chunk = (PAGE_SIZE - (at as usize & (PAGE_SIZE - 1))).min(bytes - done);
        let Some(from) = from.filter(|&from| physical::is_ram(from, chunk as u64)) else {
            break;
        };
        let to = target.wrapping_add(done);
        // SAFETY: RAM through the kernel's window; the caller vouches for the target.
        unsafe { core::ptr::copy(physical::direct(from), to, chunk) };
        done += chunk;
    }
    done
}

/// `MmCopyMemory`: from RAM only, virtual or physical.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmCopyMemory(
    target: *mut u8,
    source: u64,
    bytes: usize,
    flags: u32,
    transferred: *mut usize,
) -> i32 {
    const MM_COPY_MEMORY_PHYSICAL: u32 = 1;
    const MM_COPY_MEMORY_VIRTUAL: u32 = 2;
    require_irql(APC_LEVEL, "MmCopyMemory");
    let physical = match flags {
        MM_COPY_MEMORY_PHYSICAL => true,
        MM_COPY_MEMORY_VIRTUAL => false,
        _ => return STATUS_INVALID_PARAMETER,
    };
    let done = copy(target, source, bytes, physical);
    // SAFETY: forwarded to the caller.
    unsafe { transferred.write(done) };
    if done == bytes {
        STATUS_SUCCESS
    } else {
        STATUS_INVALID_ADDRESS
    }
}

/// `RtlCopyMemory` as an export.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RtlCopyMemory(target: *mut u8, source: *const u8, bytes: usize) {
    // SAFETY: forwarded to the caller; overlap is allowed, which RtlCopyMemory does not promise.
    unsafe { core::ptr::copy(source, target, bytes) };
}

/// `RtlCopyMemoryNonTemporal` as an export.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RtlCopyMemoryNonTemporal(
    target: *mut u8,
    source: *const u8,
    bytes: usize,
) {
    // SAFETY: forwarded to the caller.
    unsafe { core::ptr::copy(source, target, bytes) };
}

/// `RtlMoveMemory`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RtlMoveMemory(target: *mut u8, source: *const u8, bytes: usize) {
    // SAFETY: forwarded to the caller.
    unsafe { core::ptr::copy(source, target, bytes) };
}

/// `RtlZeroMemory`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RtlZeroMemory(target: *mut u8, bytes: usize) {
    // SAFETY: forwarded to the caller.
    unsafe { core::ptr::write_bytes(target, 0, bytes) };
}

/// `RtlFillMemory`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RtlFillMemory(target: *mut u8, bytes: usize, value: u8) {
    // SAFETY: forwarded to the caller.
    unsafe { core::ptr::write_bytes(target, value, bytes) };
}

/// `RtlCompareMemory`: the number of equal bytes at the start.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RtlCompareMemory(
    first: *const u8,
    second: *const u8,
    bytes: usize,
) -> usize {
    // SAFETY: forwarded to the caller.
    let first = unsafe { core::slice::from_raw_parts(first, bytes) };
    // SAFETY: forwarded to the caller.
    let second = unsafe { core::slice::from_raw_parts(second, bytes) };
    first.iter().zip(second).take_while(|(a, b)| a == b).count()
}
