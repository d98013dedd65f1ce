//! MDLs: locking, mapping and allocating pages. (`IoAllocateMdl` and its relatives
//! belong to the I/O manager; they only describe.)
//!
//! The frame numbers stand behind the `MDL` structure. Pages of this kernel are never
//! paged out, so locking checks and records only. Mappings live among the system
//! PTEs. IRQL at most DISPATCH_LEVEL; pages of ring 3 at APC_LEVEL.

use core::ffi::c_void;

use super::contiguous::cache_bits;
use super::paging::{self, Rights};
use super::track::{self, Kind};
use super::{KERNEL_HALF, PAGE_SIZE, io_space, pages, physical, tlb};
use crate::hal::instr;
use crate::ke::bugcheck;
use crate::ke::call::Call;
use crate::ke::irql::{APC_LEVEL, DISPATCH_LEVEL, require_irql};
use crate::mm::{pool, region};

const MDL_MAPPED_TO_SYSTEM_VA: i16 = 0x0001;
const MDL_PAGES_LOCKED: i16 = 0x0002;
const MDL_SOURCE_IS_NONPAGED_POOL: i16 = 0x0004;
const MDL_WRITE_OPERATION: i16 = 0x0080;
const MDL_MAPPING_CAN_FAIL: i16 = 0x2000;
/// This kernel's mark of pages that `MmAllocatePagesForMdl*` gave (`MDL_INTERNAL`).
const MDL_INTERNAL: i16 = i16::MIN;

const STATUS_ACCESS_VIOLATION: u32 = 0xC000_0005;
const STATUS_SUCCESS: i32 = 0;
const STATUS_INVALID_PAGE_PROTECTION: i32 = 0xC000_0045_u32 as i32;
const STATUS_NOT_MAPPED_VIEW: i32 = 0xC000_0019_u32 as i32;

const MM_DONT_ZERO_ALLOCATION: u32 = 0x1;
const MM_ALLOCATE_FULLY_REQUIRED: u32 = 0x4;
const MM_ALLOCATE_REQUIRE_CONTIGUOUS_CHUNKS: u32 = 0x20;
const MDL_TAG: u32 = u32::from_le_bytes(*b"Mdl ");

/// `MDL`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Mdl {
    next: *mut Mdl,
    size: i16,
    flags: i16,
    allocation_processor: u16,
    reserved: u16,
    process: usize,
    mapped: usize,
    start: usize,
    bytes: u32,
    offset: u32,
}

const _: () = assert!(size_of::<Mdl>() == size_of::<wdk_standin::wdk_sys::MDL>());

fn mdl<'a>(mdl: *mut Mdl, api: &str) -> &'a mut Mdl {
    require!(!mdl.is_null(), api, "the MDL is NULL");
    // SAFETY: the caller of the export owns the MDL for the call.
    unsafe { &mut *mdl }
}

fn frame_slot(mdl: *const Mdl, page: usize) -> *mut u64 {
    mdl.wrapping_add(1)
        .cast::<u64>()
        .wrapping_add(page)
        .cast_mut()
}

fn frame(mdl: *const Mdl, page: usize) -> u64 {
    // SAFETY: the array behind an MDL has a slot for each of its pages.
    unsafe { frame_slot(mdl, page).read() }
}

fn set_frame(mdl: *mut Mdl, page: usize, value: u64) {
    // SAFETY: as in `frame`.
    unsafe { frame_slot(mdl, page).write(value) };
}

impl Mdl {
    fn pages(&self) -> usize {
        pages(self.offset as usize + self.bytes as usize)
    }

    fn address(&self) -> usize {
        self.start + self.offset as usize
    }
}

/// `MmBuildMdlForNonPagedPool`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmBuildMdlForNonPagedPool(list: *mut Mdl) {
    let api = "MmBuildMdlForNonPagedPool";
    require_irql(DISPATCH_LEVEL, api);
    let this = mdl(list, api);
    require!(this.flags & MDL_PAGES_LOCKED == 0, api, "the MDL is locked");
    for page in 0..this.pages() {
        let at = this.start + page * PAGE_SIZE;
        let Some(physical) = paging::translate(paging::system_root(), at) else {
            bugcheck::violation(api, format_args!("{at:#x} is not mapped"))
        };
        set_frame(list, page, physical / PAGE_SIZE as u64);
    }
    this.flags |= MDL_SOURCE_IS_NONPAGED_POOL;
    this.mapped = this.address();
}

extern "C" fn probe_and_lock(call: &Call) -> usize {
    let api = "MmProbeAndLockPages";
    let list = call.word::<0>() as *mut Mdl;
    let (mode, operation) = (call.byte::<1>(), call.long::<2>());
    let this = mdl(list, api);
    let user = this.address() < KERNEL_HALF;
    require_irql(if user { APC_LEVEL } else { DISPATCH_LEVEL }, api);
    require!(
        this.flags & (MDL_PAGES_LOCKED | MDL_SOURCE_IS_NONPAGED_POOL | MDL_MAPPED_TO_SYSTEM_VA)
            == 0,
        api,
        "the MDL is locked, mapped or of nonpaged pool"
    );
    if mode != 0 && !user {
        bugcheck::raise_status(STATUS_ACCESS_VIOLATION, api);
    }
    let root = instr::read_cr3() & paging::FRAME;
    for page in 0..this.pages() {
        let at = this.start + page * PAGE_SIZE;
        // IoReadAccess needs no write access.
        let entry = paging::leaf(root, at)
            .map(|(entry, _)| entry.load(core::sync::atomic::Ordering::Acquire));
        let allowed = entry.is_some_and(|entry| operation == 0 || entry & paging::WRITE != 0);
        let (Some(physical), true) = (paging::translate(root, at), allowed) else {
            bugcheck::raise_status(STATUS_ACCESS_VIOLATION, api)
        };
        set_frame(list, page, physical / PAGE_SIZE as u64);
    }
    this.flags |= MDL_PAGES_LOCKED;
    if operation != 0 {
        this.flags |= MDL_WRITE_OPERATION;
    }
    this.process = if user {
        crate::ps::current_process_address()
    } else {
        0
    };
    track::add(
        Kind::LockedMdl,
        list as usize,
        this.bytes as usize,
        0,
        call.return_address,
    );
    0
}

with_caller!(
    /// `MmProbeAndLockPages`; raises an access violation, which is a bugcheck here.
    MmProbeAndLockPages,
    probe_and_lock
);

/// `MmUnlockPages`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmUnlockPages(list: *mut Mdl) {
    let api = "MmUnlockPages";
    require_irql(DISPATCH_LEVEL, api);
    let this = mdl(list, api);
    require!(
        this.flags & MDL_PAGES_LOCKED != 0,
        api,
        "the MDL is not locked"
    );
    if this.flags & MDL_MAPPED_TO_SYSTEM_VA != 0 {
        let mapped = this.mapped;
        unmap(list, mapped, api);
    }
    let this = mdl(list, api);
    this.flags &= !(MDL_PAGES_LOCKED | MDL_WRITE_OPERATION);
    require!(
        track::remove(Kind::LockedMdl, list as usize).is_some(),
        api,
        "{list:p} was not locked by MmProbeAndLockPages"
    );
}

extern "C" fn map_locked(call: &Call) -> usize {
    let api = "MmMapLockedPagesSpecifyCache";
    let list = call.word::<0>() as *mut Mdl;
    let (mode, caching, priority) = (call.byte::<1>(), call.long::<2>(), call.long::<5>());
    map(api, list, mode, caching, priority, call.return_address)
}

extern "C" fn map_locked_plain(call: &Call) -> usize {
    map(
        "MmMapLockedPages",
        call.word::<0>() as *mut Mdl,
        call.byte::<1>(),
        1,
        0,
        call.return_address,
    )
}

extern "C" fn map_for_mdl_safe(call: &Call) -> usize {
    let list = call.word::<0>() as *mut Mdl;
    let this = mdl(list, "MmGetSystemAddressForMdlSafe");
    if this.flags & (MDL_MAPPED_TO_SYSTEM_VA | MDL_SOURCE_IS_NONPAGED_POOL) != 0 {
        return this.mapped;
    }
    map(
        "MmGetSystemAddressForMdlSafe",
        list,
        0,
        1,
        call.long::<1>(),
        call.return_address,
    )
}

fn map(api: &str, list: *mut Mdl, mode: u8, caching: u32, priority: u32, caller: usize) -> usize {
    const MD_READ_ONLY: u32 = 0x8000_0000;
    const MD_NO_EXECUTE: u32 = 0x4000_0000;
    require_irql(DISPATCH_LEVEL, api);
    require!(
        mode == 0,
        api,
        "mapping into ring 3 is not offered by this machine"
    );
    let this = mdl(list, api);
    require!(
        this.flags & (MDL_PAGES_LOCKED | MDL_SOURCE_IS_NONPAGED_POOL) != 0,
        api,
        "the MDL's pages are not locked"
    );
    require!(
        this.flags & MDL_MAPPED_TO_SYSTEM_VA == 0,
        api,
        "the MDL is mapped already"
    );
    let Some(cache) = cache_bits(caching) else {
        bugcheck::violation(api, format_args!("cache type {caching}"))
    };
    // Without MdlMappingNoExecute such a mapping is executable on Windows.
    let rights = match (priority & MD_READ_ONLY != 0, priority & MD_NO_EXECUTE != 0) {
        (true, true) => Rights::ReadOnly,
        (true, false) => Rights::ReadExecute,
        (false, true) => Rights::ReadWrite,
        (false, false) => Rights::ReadWriteExecute,
    };
    let count = this.pages();
    let Some(address) = region::SYSTEM.reserve(count) else {
        require!(
            this.flags & MDL_MAPPING_CAN_FAIL != 0 || priority & 0xFF != 32,
            api,
            "no system PTEs are left"
        );
        return 0;
    };
    for page in 0..count {
        let physical = frame(list, page) * PAGE_SIZE as u64;
        paging::map_kernel(
            address + page * PAGE_SIZE,
            physical,
            rights.kernel_bits() | cache,
        );
    }
    this.flags |= MDL_MAPPED_TO_SYSTEM_VA;
    this.mapped = address + this.offset as usize;
    track::add(
        Kind::MdlMapping,
        list as usize,
        count * PAGE_SIZE,
        0,
        caller,
    );
    this.mapped
}

with_caller!(
    /// `MmMapLockedPagesSpecifyCache`; kernel mode only.
    MmMapLockedPagesSpecifyCache,
    map_locked
);
with_caller!(
    /// `MmMapLockedPages`.
    MmMapLockedPages,
    map_locked_plain
);
with_caller!(
    /// `MmGetSystemAddressForMdlSafe` as a function.
    MmGetSystemAddressForMdlSafe,
    map_for_mdl_safe
);

fn unmap(list: *mut Mdl, address: usize, api: &str) {
    let this = mdl(list, api);
    require!(
        this.flags & MDL_MAPPED_TO_SYSTEM_VA != 0 && this.mapped == address,
        api,
        "the MDL is not mapped at {address:#x}"
    );
    let count = this.pages();
    io_space::unmap_view(address & !(PAGE_SIZE - 1), count);
    this.flags &= !MDL_MAPPED_TO_SYSTEM_VA;
    this.mapped = 0;
    track::remove(Kind::MdlMapping, list as usize);
}

/// `MmUnmapLockedPages`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmUnmapLockedPages(address: *mut c_void, list: *mut Mdl) {
    require_irql(DISPATCH_LEVEL, "MmUnmapLockedPages");
    unmap(list, address as usize, "MmUnmapLockedPages");
}

/// `MmProtectMdlSystemAddress`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmProtectMdlSystemAddress(list: *mut Mdl, protect: u32) -> i32 {
    let api = "MmProtectMdlSystemAddress";
    require_irql(APC_LEVEL, api);
    let this = mdl(list, api);
    if this.flags & MDL_MAPPED_TO_SYSTEM_VA == 0 {
        return STATUS_NOT_MAPPED_VIEW;
    }
    let rights = match protect {
        0x02 => Rights::ReadOnly,
        0x04 => Rights::ReadWrite,
        0x10 | 0x20 => Rights::ReadExecute,
        0x40 => Rights::ReadWriteExecute,
        _ => return STATUS_INVALID_PAGE_PROTECTION,
    };
    let start = this.mapped & !(PAGE_SIZE - 1);
    for page in 0..this.pages() {
        paging::set_bits(
            paging::system_root(),
            start + page * PAGE_SIZE,
            rights.kernel_bits(),
        );
    }
    tlb::flush(start, this.pages());
    STATUS_SUCCESS
}

fn allocate_pages(api: &str, call: &Call, flags: u32) -> usize {
    require_irql(DISPATCH_LEVEL, api);
    let (low, high) = (call.word::<0>() as u64, call.word::<1>() as u64);
    let (skip, total) = (call.word::<2>() as u64, call.word::<3>());
    require!(total != 0, api, "0 bytes are asked for");
    let wanted = pages(total);
    let Some(list) = pool::allocate(size_of::<Mdl>() + wanted * 8, MDL_TAG, false, true, 0) else {
        return 0;
    };
    let list = list as *mut Mdl;
    let contiguous = flags & MM_ALLOCATE_REQUIRE_CONTIGUOUS_CHUNKS != 0;
    let mut got = 0;
    if contiguous {
        if let Some(first) = physical::allocate_run(wanted, low, high, 1, 0) {
            for page in 0..wanted {
                set_frame(list, page, first / PAGE_SIZE as u64 + page as u64);
            }
            got = wanted;
        }
    } else {
        // `skip` bytes further for each range that is used up.
        let (mut from, mut to) = (low, high);
        while got < wanted {
            match physical::allocate_run(1, from, to, 1, 0) {
                Some(page) => {
                    set_frame(list, got, page / PAGE_SIZE as u64);
                    got += 1;
                }
                None if skip == 0
                    || to.checked_add(skip).is_none()
                    || from + skip >= physical::top() =>
                {
                    break;
                }
                None => {
                    from += skip;
                    to += skip;
                }
            }
        }
    }
    if got == 0 || (got < wanted && flags & MM_ALLOCATE_FULLY_REQUIRED != 0) {
        for page in 0..got {
            physical::free(frame(list, page) * PAGE_SIZE as u64);
        }
        pool::free(list as usize, Some(MDL_TAG), api);
        return 0;
    }
    let value = if flags & MM_DONT_ZERO_ALLOCATION != 0 {
        0xA5
    } else {
        0
    };
    for page in 0..got {
        physical::fill(frame(list, page) * PAGE_SIZE as u64, value);
    }
    let this = mdl(list, api);
    this.size = (size_of::<Mdl>() + wanted.min(4000) * 8) as i16;
    this.flags = MDL_PAGES_LOCKED | MDL_INTERNAL;
    this.bytes = (got * PAGE_SIZE).min(total.next_multiple_of(PAGE_SIZE)) as u32;
    track::add(
        Kind::MdlPages,
        list as usize,
        got * PAGE_SIZE,
        0,
        call.return_address,
    );
    list as usize
}

extern "C" fn pages_for_mdl(call: &Call) -> usize {
    allocate_pages("MmAllocatePagesForMdl", call, 0)
}

extern "C" fn pages_for_mdl_ex(call: &Call) -> usize {
    let api = "MmAllocatePagesForMdlEx";
    require!(
        cache_bits(call.long::<4>()).is_some(),
        api,
        "cache type {}",
        call.long::<4>()
    );
    allocate_pages(api, call, call.long::<5>())
}

with_caller!(
    /// `MmAllocatePagesForMdl`: cleared pages, perhaps fewer than asked for.
    MmAllocatePagesForMdl,
    pages_for_mdl
);
with_caller!(
    /// `MmAllocatePagesForMdlEx`.
    MmAllocatePagesForMdlEx,
    pages_for_mdl_ex
);

/// `MmFreePagesFromMdl`. The MDL itself is the caller's to free by `ExFreePool`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmFreePagesFromMdl(list: *mut Mdl) {
    let api = "MmFreePagesFromMdl";
    require_irql(DISPATCH_LEVEL, api);
    let this = mdl(list, api);
    require!(
        this.flags & MDL_MAPPED_TO_SYSTEM_VA == 0,
        api,
        "the MDL is still mapped"
    );
    let block = track::remove(Kind::MdlPages, list as usize);
    require!(
        block.is_some(),
        api,
        "the MDL's pages were not allocated for it, or are freed already"
    );
    for page in 0..this.pages() {
        physical::free(frame(list, page) * PAGE_SIZE as u64);
    }
    this.flags &= !(MDL_PAGES_LOCKED | MDL_INTERNAL);
    this.bytes = 0;
}

/// `MmFreePagesFromMdlEx`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmFreePagesFromMdlEx(list: *mut Mdl, _flags: u32) {
    // SAFETY: the same; the flags are hints.
    unsafe { MmFreePagesFromMdl(list) };
}

/// `MmSizeOfMdl`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmSizeOfMdl(base: *mut c_void, bytes: usize) -> usize {
    let offset = base as usize & (PAGE_SIZE - 1);
    size_of::<Mdl>() + pages(offset + bytes) * 8
}

/// `MmAllocateMappingAddress`: system address space for a later mapping.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmAllocateMappingAddress(bytes: usize, tag: u32) -> *mut c_void {
    let api = "MmAllocateMappingAddress";
    require_irql(DISPATCH_LEVEL, api);
    require!(bytes != 0 && tag != 0, api, "{bytes} bytes, tag {tag:#x}");
    let Some(address) = region::SYSTEM.reserve(pages(bytes)) else {
        return core::ptr::null_mut();
    };
    track::add(Kind::MdlMapping, address, bytes, tag, 0);
    address as *mut c_void
}

/// `MmFreeMappingAddress`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmFreeMappingAddress(address: *mut c_void, tag: u32) {
    let api = "MmFreeMappingAddress";
    require_irql(DISPATCH_LEVEL, api);
    let block = track::remove(Kind::MdlMapping, address as usize);
    require!(
        block.is_some_and(|block| block.tag == tag),
        api,
        "{address:p} is no mapping address with this tag"
    );
    if let Some(block) = block {
        region::SYSTEM.release(address as usize, pages(block.bytes));
    }
}

/// `MmMapLockedPagesWithReservedMapping`: NULL if the space is too short.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmMapLockedPagesWithReservedMapping(
    address: *mut c_void,
    tag: u32,
    list: *mut Mdl,
    caching: u32,
) -> *mut c_void {
    let api = "MmMapLockedPagesWithReservedMapping";
    require_irql(DISPATCH_LEVEL, api);
    let this = mdl(list, api);
    let Some(block) =
        track::get(Kind::MdlMapping, address as usize).filter(|block| block.tag == tag)
    else {
        bugcheck::violation(
            api,
            format_args!("{address:p} is no mapping address with this tag"),
        )
    };
    let Some(cache) = cache_bits(caching) else {
        bugcheck::violation(api, format_args!("cache type {caching}"))
    };
    if this.pages() > pages(block.bytes) {
        return core::ptr::null_mut();
    }
    for page in 0..this.pages() {
        let physical = frame(list, page) * PAGE_SIZE as u64;
        let bits = Rights::ReadWriteExecute.kernel_bits() | cache;
        paging::map_kernel(address as usize + page * PAGE_SIZE, physical, bits);
    }
    this.flags |= MDL_MAPPED_TO_SYSTEM_VA;
    this.mapped = address as usize + this.offset as usize;
    this.mapped as *mut c_void
}

/// `MmUnmapReservedMapping`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MmUnmapReservedMapping(address: *mut c_void, tag: u32, list: *mut Mdl) {
    let api = "MmUnmapReservedMapping";
    require_irql(DISPATCH_LEVEL, api);
    let this = mdl(list, api);
    let known =
        track::get(Kind::MdlMapping, address as usize).is_some_and(|block| block.tag == tag);
    require!(
        known && this.flags & MDL_MAPPED_TO_SYSTEM_VA != 0,
        api,
        "{address:p} is not mapped so"
    );
    for page in 0..this.pages() {
        let _ = paging::unmap(paging::system_root(), address as usize + page * PAGE_SIZE);
    }
    tlb::flush(address as usize, this.pages());
    this.flags &= !MDL_MAPPED_TO_SYSTEM_VA;
    this.mapped = 0;
}
