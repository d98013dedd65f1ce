//! Physically contiguous memory: `MmAllocateContiguousMemory*`.
//!
//! Blocks are page-aligned, not executable unless the caller asks for it, and not
//! cleared. They live among the system PTEs. IRQL at most DISPATCH_LEVEL.

use core::ffi::c_void;

use super::paging::{self, Rights};
use super::track::{self, Kind};
use super::{PAGE_SIZE, physical, pool, region};
use crate::ke::call::Call;
use crate::ke::irql::{DISPATCH_LEVEL, require_irql};

const PAGE_READONLY: u32 = 0x02;
const PAGE_READWRITE: u32 = 0x04;
const PAGE_EXECUTE_READ: u32 = 0x20;
const PAGE_EXECUTE_READWRITE: u32 = 0x40;
const PAGE_NOCACHE: u32 = 0x200;
const PAGE_WRITECOMBINE: u32 = 0x400;
const GARBAGE: u8 = 0xA5;

/// PTE bits of a `MEMORY_CACHING_TYPE` under the Windows PAT; `None` for an unknown one.
pub(crate) fn cache_bits(caching: u32) -> Option<u64> {
    match caching {
        0 => Some(paging::CACHE_DISABLE | paging::WRITE_THROUGH),
        1 | 3 => Some(0),
        2 => Some(paging::WRITE_THROUGH),
        4 | 5 => Some(paging::CACHE_DISABLE),
        _ => None,
    }
}

struct Request {
    bytes: usize,
    low: u64,
    high: u64,
    boundary: u64,
    bits: u64,
}

fn allocate(api: &str, request: &Request, caller: usize) -> usize {
    require_irql(DISPATCH_LEVEL, api);
    require!(request.bytes != 0, api, "0 bytes are asked for");
    require!(
        request.boundary == 0 || request.boundary.is_power_of_two(),
        api,
        "the boundary {:#x} is no power of two",
        request.boundary
    );
    let pages = super::pages(request.bytes);
    let Some(physical) =
        physical::allocate_run(pages, request.low, request.high, 1, request.boundary)
    else {
        return 0;
    };
    let Some(address) = region::SYSTEM.reserve(pages) else {
        for page in 0..pages {
            physical::free(physical + (page * PAGE_SIZE) as u64);
        }
        return 0;
    };
    for page in 0..pages {
        let frame = physical + (page * PAGE_SIZE) as u64;
        physical::fill(frame, GARBAGE);
        physical::set_owner(frame, (address + page * PAGE_SIZE) as u64);
        paging::map_kernel(address + page * PAGE_SIZE, frame, request.bits);
    }
    track::add(Kind::Contiguous, address, request.bytes, 0, caller);
    address
}

fn free(address: usize, api: &str) {
    require_irql(DISPATCH_LEVEL, api);
    match track::remove(Kind::Contiguous, address) {
        Some(block) => {
            let pages = super::pages(block.bytes);
            pool::unmap_pages(address, pages);
            region::SYSTEM.release(address, pages);
        }
        None => crate::ke::bugcheck::violation(
            api,
            format_args!("{address:#x} is no block, or freed already"),
        ),
    }
}

extern "C" fn contiguous(call: &Call) -> usize {
    let bits = Rights::ReadWrite.kernel_bits();
    let request = Request {
        bytes: call.word::<0>(),
        low: 0,
        high: call.word::<1>() as u64,
        boundary: 0,
        bits,
    };
    allocate("MmAllocateContiguousMemory", &request, call.return_address)
}

extern "C" fn specify_cache(call: &Call) -> usize {
    let api = "MmAllocateContiguousMemorySpecifyCache";
    let Some(cache) = cache_bits(call.long::<4>()) else {
        crate::ke::bugcheck::violation(api, format_args!("cache type {}", call.long::<4>()))
    };
    let request = Request {
        bytes: call.word::<0>(),
        low: call.word::<1>() as u64,
        high: call.word::<2>() as u64,
        boundary: call.word::<3>() as u64,
        bits: Rights::ReadWrite.kernel_bits() | cache,
    };
    allocate(api, &request, call.return_address)
}

extern "C" fn node(call: &Call) -> usize {
    let api = "MmAllocateContiguousNodeMemory";
    let protect = call.long::<4>();
    let rights = match protect & 0xFF {
        PAGE_READONLY => Rights::ReadOnly,
        PAGE_READWRITE => Rights::ReadWrite,
        PAGE_EXECUTE_READ => Rights::ReadExecute,
        PAGE_EXECUTE_READWRITE => Rights::ReadWriteExecute,
        _ => crate::ke::bugcheck::violation(api, format_args!("protection {protect:#x}")),
    };
    let cache = if protect & PAGE_NOCACHE != 0 {
        cache_bits(0)
    } else if protect & PAGE_WRITECOMBINE != 0 {
        cache_bits(2)
    } else {
        Some(0)
    };
    let request = Request {
        bytes: call.word::<0>(),
        low: call.word::<1>() as u64,
        high: call.word::<2>() as u64,
        boundary: call.word::<3>() as u64,
        bits: rights.kernel_bits() | cache.unwrap_or(0),
    };
    allocate(api, &request, call.return_address)
}

with_caller!(
    /// `MmAllocateContiguousMemory`: below `HighestAcceptableAddress`.
    MmAllocateContiguousMemory,
    contiguous
);
with_caller!(
    /// `MmAllocateContiguousMemorySpecifyCache`.
    MmAllocateContiguousMemorySpecifyCache,
    specify_cache
);
with_caller!(
    /// `MmAllocateContiguousMemorySpecifyCacheNode`: there is one node.
    MmAllocateContiguousMemorySpecifyCacheNode,
    specify_cache
);
with_caller!(
    /// `MmAllocateContiguousNodeMemory`.
    MmAllocateContiguousNodeMemory,
    node
);

/// `MmFreeContiguousMemory`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmFreeContiguousMemory(address: *mut c_void) {
    free(address as usize, "MmFreeContiguousMemory");
}

/// `MmFreeContiguousMemorySpecifyCache`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmFreeContiguousMemorySpecifyCache(
    address: *mut c_void,
    bytes: usize,
    _caching: u32,
) {
    let api = "MmFreeContiguousMemorySpecifyCache";
    if let Some(block) = track::get(Kind::Contiguous, address as usize) {
        require!(
            block.bytes == bytes,
            api,
            "{} bytes were allocated, {bytes} are freed",
            block.bytes
        );
    }
    free(address as usize, api);
}
