//! `IoAllocateMdl`, `IoFreeMdl`, `IoBuildPartialMdl`: the descriptors themselves.
//! Their pages and mappings are the memory manager's.
//!
//! The table of descriptors is for the unload check. IRQL at most DISPATCH_LEVEL.

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::collections::BTreeMap;
use core::alloc::Layout;
use core::ffi::c_void;

use wdk_standin::wdk_sys::{BOOLEAN, MDL, PIRP, PMDL, PVOID, ULONG};

use crate::ex::entry::caller_aware;
use crate::ke::irql::{DISPATCH_LEVEL, require_irql};
use crate::ke::spinlock::SpinLock;
use crate::ob::argument::{borrow, own};

const PAGE: usize = 4096;
const MDL_MAPPED_TO_SYSTEM_VA: i16 = 0x0001;
const MDL_PAGES_LOCKED: i16 = 0x0002;
const MDL_SOURCE_IS_NONPAGED_POOL: i16 = 0x0004;
const MDL_PARTIAL: i16 = 0x0010;
const MDL_PARTIAL_HAS_BEEN_MAPPED: i16 = 0x0020;
const MDL_IO_SPACE: i16 = 0x0800;

struct Known {
    layout: Layout,
    owner: usize,
}

static MDLS: SpinLock<BTreeMap<usize, Known>> = SpinLock::new(BTreeMap::new());

/// Calls `visit` with each descriptor and an address inside its maker.
pub(crate) fn outstanding(visit: &mut dyn FnMut(usize, usize)) {
    let all: alloc::vec::Vec<(usize, usize)> = MDLS
        .lock()
        .iter()
        .map(|(&mdl, known)| (mdl, known.owner))
        .collect();
    for (mdl, owner) in all {
        visit(mdl, owner);
    }
}

/// A descriptor of a range of virtual memory, its page numbers not filled in.
pub(crate) fn make(address: *mut c_void, bytes: u32, owner: usize) -> PMDL {
    let offset = address.addr() % PAGE;
    let pages = (offset + bytes as usize).div_ceil(PAGE);
    let size = size_of::<MDL>() + pages * 8;
    let Ok(layout) = Layout::from_size_align(size, 16) else {
        return core::ptr::null_mut();
    };
    // SAFETY: the layout is not empty.
    let mdl: PMDL = unsafe { alloc_zeroed(layout) }.cast();
    if mdl.is_null() {
        return mdl;
    }
    let header = own!(mdl);
    // The field is 16 bits wide; larger descriptors wrap it on Windows as well.
    header.Size = size as i16;
    header.StartVa = address.wrapping_byte_sub(offset);
    header.ByteOffset = offset as u32;
    header.ByteCount = bytes;
    MDLS.lock().insert(mdl.addr(), Known { layout, owner });
    mdl
}

/// Frees a descriptor of [`make`].
pub(crate) fn release(mdl: PMDL) {
    let known = MDLS.lock().remove(&mdl.addr());
    if let Some(known) = known {
        // SAFETY: made with this layout, in the table until now.
        unsafe { dealloc(mdl.cast(), known.layout) };
    }
}

unsafe extern "C" fn allocate(
    address: PVOID,
    bytes: ULONG,
    secondary: BOOLEAN,
    _charge: BOOLEAN,
    irp: PIRP,
    caller: usize,
) -> PMDL {
    const API: &str = "IoAllocateMdl";
    require_irql(DISPATCH_LEVEL, API);
    let mdl = make(address, bytes, caller);
    if irp.is_null() || mdl.is_null() {
        return mdl;
    }
    let irp = borrow!(irp, API);
    if secondary == 0 {
        irp.MdlAddress = mdl;
    } else {
        let mut link = &raw mut irp.MdlAddress;
        while !(*own!(link)).is_null() {
            link = &raw mut own!(*own!(link)).Next;
        }
        *own!(link) = mdl;
    }
    mdl
}

caller_aware!(IoAllocateMdl, 5, allocate);

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoFreeMdl(mdl: PMDL) {
    const API: &str = "IoFreeMdl";
    require_irql(DISPATCH_LEVEL, API);
    let flags = borrow!(mdl, API).MdlFlags;
    crate::require!(
        flags & MDL_PAGES_LOCKED == 0,
        API,
        "the pages of the MDL are still locked"
    );
    if flags & MDL_PARTIAL_HAS_BEEN_MAPPED != 0 && flags & MDL_MAPPED_TO_SYSTEM_VA != 0 {
        // "MmPrepareMdlForReuse": the mapping of a partial MDL goes with it.
        let address = own!(mdl).MappedSystemVa;
        // SAFETY: the mapping that the MDL itself holds.
        unsafe { MmUnmapLockedPages(address, mdl) };
    }
    let known = MDLS.lock().contains_key(&mdl.addr());
    crate::require!(known, API, "{:p} did not come from IoAllocateMdl", mdl);
    release(mdl);
}

unsafe extern "C" {
    fn MmUnmapLockedPages(address: PVOID, mdl: PMDL);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoBuildPartialMdl(
    source: PMDL,
    target: PMDL,
    address: PVOID,
    bytes: ULONG,
) {
    const API: &str = "IoBuildPartialMdl";
    require_irql(DISPATCH_LEVEL, API);
    let (from, to) = (borrow!(source, API), borrow!(target, API));
    let start = from.StartVa.addr() + from.ByteOffset as usize;
    let skipped = address.addr().wrapping_sub(start);
    crate::require!(
        skipped < from.ByteCount as usize || from.ByteCount == 0,
        API,
        "{:p} is outside the source MDL",
        address
    );
    let bytes = if bytes == 0 {
        from.ByteCount - skipped as u32
    } else {
        bytes
    };
    crate::require!(
        skipped + bytes as usize <= from.ByteCount as usize,
        API,
        "{} bytes from {:p} are more than the source MDL has",
        bytes,
        address
    );
    let offset = address.addr() % PAGE;
    let pages = (offset + bytes as usize).div_ceil(PAGE);
    let room = (to.Size as u16 as usize).saturating_sub(size_of::<MDL>()) / 8;
    crate::require!(
        pages <= room,
        API,
        "the target MDL has room for {} pages, {} are needed",
        room,
        pages
    );
    to.Next = core::ptr::null_mut();
    to.StartVa = address.wrapping_byte_sub(offset);
    to.ByteOffset = offset as u32;
    to.ByteCount = bytes;
    to.Process = from.Process;
    to.MdlFlags = MDL_PARTIAL
        | from.MdlFlags & (MDL_SOURCE_IS_NONPAGED_POOL | MDL_MAPPED_TO_SYSTEM_VA | MDL_IO_SPACE);
    to.MappedSystemVa = from.MappedSystemVa.wrapping_byte_add(skipped);
    let first = (address.addr() - offset - from.StartVa.addr()) / PAGE;
    let from_pages = source.wrapping_add(1).cast::<u64>().wrapping_add(first);
    let to_pages = target.wrapping_add(1).cast::<u64>();
    // SAFETY: both arrays hold `pages` numbers from there on, as just checked.
    unsafe { core::ptr::copy_nonoverlapping(from_pages, to_pages, pages) };
}
