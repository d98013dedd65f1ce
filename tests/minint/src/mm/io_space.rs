//! `MmMapIoSpace`: a second view of physical addresses, devices or RAM.
//!
//! RAM is mapped like anything else: rootkits write to the kernel's code that way.
//! IRQL at most DISPATCH_LEVEL.

use core::ffi::c_void;

use super::contiguous::cache_bits;
use super::paging::{self, Rights};
use super::track::{self, Kind};
use super::{PAGE_SIZE, pages, region, tlb};
use crate::ke::call::Call;
use crate::ke::irql::{DISPATCH_LEVEL, require_irql};

fn map(api: &str, physical: u64, bytes: usize, bits: u64, caller: usize) -> usize {
    require_irql(DISPATCH_LEVEL, api);
    require!(bytes != 0, api, "0 bytes are asked for");
    let inside = physical as usize & (PAGE_SIZE - 1);
    let count = pages(inside + bytes);
    let Some(address) = region::SYSTEM.reserve(count) else {
        return 0;
    };
    for page in 0..count {
        let at = address + page * PAGE_SIZE;
        let frame = (physical & !(PAGE_SIZE as u64 - 1)) + (page * PAGE_SIZE) as u64;
        paging::map_kernel(at, frame, bits);
    }
    track::add(Kind::IoMapping, address + inside, bytes, 0, caller);
    address + inside
}

extern "C" fn map_io_space(call: &Call) -> usize {
    let api = "MmMapIoSpace";
    let Some(cache) = cache_bits(call.long::<2>()) else {
        crate::ke::bugcheck::violation(api, format_args!("cache type {}", call.long::<2>()))
    };
    // Since Windows 10 the mapping is not executable.
    let bits = Rights::ReadWrite.kernel_bits() | cache;
    map(
        api,
        call.word::<0>() as u64,
        call.word::<1>(),
        bits,
        call.return_address,
    )
}

extern "C" fn map_io_space_ex(call: &Call) -> usize {
    let api = "MmMapIoSpaceEx";
    let protect = call.long::<2>();
    let rights = match protect & 0xFF {
        0x02 => Rights::ReadOnly,
        0x04 => Rights::ReadWrite,
        0x20 => Rights::ReadExecute,
        0x40 => Rights::ReadWriteExecute,
        _ => crate::ke::bugcheck::violation(api, format_args!("protection {protect:#x}")),
    };
    let cache = match protect & 0x600 {
        0x200 => cache_bits(0),
        0x400 => cache_bits(2),
        _ => Some(0),
    };
    let bits = rights.kernel_bits() | cache.unwrap_or(0);
    map(
        api,
        call.word::<0>() as u64,
        call.word::<1>(),
        bits,
        call.return_address,
    )
}

with_caller!(
    /// `MmMapIoSpace`.
    MmMapIoSpace,
    map_io_space
);
with_caller!(
    /// `MmMapIoSpaceEx`.
    MmMapIoSpaceEx,
    map_io_space_ex
);

/// `MmUnmapIoSpace`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmUnmapIoSpace(address: *mut c_void, bytes: usize) {
    let api = "MmUnmapIoSpace";
    require_irql(DISPATCH_LEVEL, api);
    let address = address as usize;
    let block = track::remove(Kind::IoMapping, address);
    require!(
        block.is_some_and(|block| block.bytes == bytes),
        api,
        "{address:#x}, {bytes} bytes: there is no such mapping"
    );
    let start = address & !(PAGE_SIZE - 1);
    let count = pages(address - start + bytes);
    unmap_view(start, count);
}

/// Removes a view of frames that it does not own.
pub(crate) fn unmap_view(start: usize, count: usize) {
    for page in 0..count {
        let _ = paging::unmap(paging::system_root(), start + page * PAGE_SIZE);
    }
    tlb::flush(start, count);
    region::SYSTEM.release(start, count);
}
