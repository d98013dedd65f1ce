//! Nonpaged pool: `ExAllocatePool2` and its elder relatives.
//!
//! Blocks of a page and more get their own pages, page-aligned, with an unmapped
//! guard page behind them, and vanish from the address space when they are freed.
//! Smaller blocks come from slabs of one size, never cross a page, are aligned to
//! 16 bytes, carry a header in front and a canary behind, and are overwritten when
//! they are freed. Pool is not executable unless the caller asks for executable
//! pool; that comes from slabs and pages of its own.
//!
//! What is wrong with a call is a bugcheck that names the rule. One lock for the
//! slabs; IRQL at most DISPATCH_LEVEL.

use core::cell::Cell;
use core::ffi::c_void;
use core::ptr;

use super::paging::{self, Rights};
use super::track::{self, Block, Kind};
use super::{PAGE_SIZE, physical, region, tlb};
use crate::ke::bugcheck;
use crate::ke::call::Call;
use crate::ke::irql::{APC_LEVEL, DISPATCH_LEVEL, require_irql};
use crate::ke::spinlock::SpinLock;

pub use super::track::set_owner_lookup;

/// `POOL_FLAG_UNINITIALIZED`.
const POOL_FLAG_UNINITIALIZED: u64 = 0x02;
/// `POOL_FLAG_CACHE_ALIGNED`.
const POOL_FLAG_CACHE_ALIGNED: u64 = 0x08;
/// `POOL_FLAG_RAISE_ON_FAILURE`.
const POOL_FLAG_RAISE_ON_FAILURE: u64 = 0x20;
/// `POOL_FLAG_NON_PAGED`.
const POOL_FLAG_NON_PAGED: u64 = 0x40;
/// `POOL_FLAG_NON_PAGED_EXECUTE`.
const POOL_FLAG_NON_PAGED_EXECUTE: u64 = 0x80;
/// `POOL_FLAG_PAGED`.
const POOL_FLAG_PAGED: u64 = 0x100;
/// `STATUS_INSUFFICIENT_RESOURCES`.
const STATUS_INSUFFICIENT_RESOURCES: u32 = 0xC000_009A;
/// `POOL_NX_ALLOCATION`, a bit of `POOL_TYPE`.
const POOL_NX_ALLOCATION: u32 = 512;

const MAGIC: u32 = 0x4C4F_4F50;
const FREED: u32 = 0x6565_7246;
const CANARY: u64 = 0xC0DE_CAFE_F00D_BEEF;
/// What memory holds that nobody promised to clear.
const GARBAGE: u8 = 0xA5;
/// What a freed block holds.
const POISON: u8 = 0xDD;

/// Stands before each small block.
#[repr(C)]
struct Header {
    magic: Cell<u32>,
    tag: Cell<u32>,
    bytes: Cell<u32>,
    owner: Cell<u32>,
    /// Caller while in use; next free block while free.
    link: Cell<usize>,
    page: Cell<usize>,
}

/// Stands at the start of each slab page.
#[repr(C)]
#[derive(Clone, Copy)]
struct Slab {
    next: usize,
    class: u32,
    executable: u32,
    pad: [u64; 2],
}

const HEADER: usize = size_of::<Header>();
const SLAB: usize = size_of::<Slab>();
const _: () = assert!(HEADER == 32 && SLAB == 32);

/// Sizes of blocks with header and canary; the last leaves one block a page.
const CLASSES: [usize; 12] = [64, 96, 128, 192, 256, 320, 448, 576, 800, 1344, 2032, 4064];

struct Pool {
    /// First free block by (executable, class).
    free: [[usize; CLASSES.len()]; 2],
    /// All slab pages.
    slabs: usize,
    /// Bytes in use in small blocks, blocks in use.
    bytes: usize,
    blocks: usize,
}

static POOL: SpinLock<Pool> = SpinLock::new(Pool {
    free: [[0; CLASSES.len()]; 2],
    slabs: 0,
    bytes: 0,
    blocks: 0,
});

fn header(block: usize) -> &'static Header {
    // SAFETY: `block` is the address of a slab's block, whose header the pool lock guards.
    unsafe { &*(block as *const Header) }
}

fn slab(page: usize) -> Slab {
    // SAFETY: `page` is a slab page, whose head is constant once it is made.
    unsafe { *(page as *const Slab) }
}

fn canary_at(block: usize) -> *mut u64 {
    (block + HEADER + header(block).bytes.get() as usize) as *mut u64
}

fn read_canary(block: usize) -> u64 {
    // SAFETY: the canary lies inside the block, behind the caller's bytes, at any alignment.
    unsafe { ptr::read_unaligned(canary_at(block)) }
}

fn write_canary(block: usize) {
    // SAFETY: as in `read_canary`.
    unsafe { ptr::write_unaligned(canary_at(block), CANARY) };
}

fn fill(address: usize, value: u8, bytes: usize) {
    // SAFETY: the bytes belong to a block that is just being made or freed.
    unsafe { ptr::write_bytes(address as *mut u8, value, bytes) };
}

fn class_of(bytes: usize) -> Option<usize> {
    let need = bytes + HEADER + size_of::<u64>();
    CLASSES.iter().position(|&size| need <= size)
}

impl Pool {
    fn grow(&mut self, executable: bool, class: usize) -> Option<()> {
        let rights = if executable {
            Rights::ReadWriteExecute
        } else {
            Rights::ReadWrite
        };
        let page = map_pages(1, rights)?;
        let head = Slab {
            next: self.slabs,
            class: class as u32,
            executable: u32::from(executable),
            pad: [0; 2],
        };
        // SAFETY: the page was just mapped for this.
        unsafe { (page as *mut Slab).write(head) };
        self.slabs = page;
        let size = CLASSES[class];
        let mut block = page + SLAB;
        while block + size <= page + PAGE_SIZE {
            let this = header(block);
            this.magic.set(FREED);
            this.link.set(self.free[usize::from(executable)][class]);
            this.page.set(page);
            self.free[usize::from(executable)][class] = block;
            block += size;
        }
        Some(())
    }

    fn take(
        &mut self,
        bytes: usize,
        tag: u32,
        executable: bool,
        class: usize,
        caller: usize,
    ) -> Option<usize> {
        if self.free[usize::from(executable)][class] == 0 {
            self.grow(executable, class)?;
        }
        let block = self.free[usize::from(executable)][class];
        let this = header(block);
        require!(
            this.magic.get() == FREED,
            "pool",
            "the free block at {block:#x} was written to after it was freed"
        );
        self.free[usize::from(executable)][class] = this.link.get();
        this.magic.set(MAGIC);
        this.tag.set(tag);
        this.bytes.set(bytes as u32);
        this.owner.set(track::owner_of(caller));
        this.link.set(caller);
        write_canary(block);
        self.bytes += bytes;
        self.blocks += 1;
        Some(block + HEADER)
    }

    fn give(&mut self, address: usize, tag: Option<u32>, api: &str) {
        let block = address - HEADER;
        let page = address & !(PAGE_SIZE - 1);
        let class = slab(page).class as usize;
        let size = CLASSES[class];
        require!(
            address & (PAGE_SIZE - 1) >= SLAB + HEADER
                && ((block & (PAGE_SIZE - 1)) - SLAB).is_multiple_of(size),
            api,
            "{address:#x} is not the start of a block"
        );
        let executable = slab(page).executable as usize;
        let this = header(block);
        require!(
            this.magic.get() != FREED,
            api,
            "{address:#x} is freed twice"
        );
        require!(
            this.magic.get() == MAGIC && this.page.get() == page,
            api,
            "the header before {address:#x} is overwritten"
        );
        require!(
            read_canary(block) == CANARY,
            api,
            "{} bytes at {address:#x} (tag {:#x}, from {:#x}) are overrun",
            this.bytes.get(),
            this.tag.get(),
            this.link.get()
        );
        if let Some(tag) = tag {
            require!(
                tag == 0 || tag == this.tag.get(),
                api,
                "{address:#x} has tag {:#x}, not {tag:#x}",
                this.tag.get()
            );
        }
        self.bytes -= this.bytes.get() as usize;
        self.blocks -= 1;
        this.magic.set(FREED);
        this.link.set(self.free[executable][class]);
        self.free[executable][class] = block;
        fill(address, POISON, size - HEADER);
    }
}

/// Maps `pages` fresh pages in the pool's region; content undefined.
fn map_pages(pages: usize, rights: Rights) -> Option<usize> {
    let address = region::POOL.reserve(pages)?;
    for page in 0..pages {
        let at = address + page * PAGE_SIZE;
        let Some(physical) = physical::allocate() else {
            unmap_pages(address, page);
            region::POOL.release(address, pages);
            return None;
        };
        physical::set_owner(physical, at as u64);
        paging::map_kernel(at, physical, rights.kernel_bits());
    }
    Some(address)
}

/// Unmaps and frees pages; the address space stays reserved.
pub(crate) fn unmap_pages(address: usize, pages: usize) {
    let root = paging::system_root();
    // Frames are collected page by page in chunks, so that a frame is free only
    // after no TLB holds it.
    let mut done = 0;
    while done < pages {
        let mut frames = [0u64; 64];
        let count = frames.len().min(pages - done);
        let from = address + done * PAGE_SIZE;
        for (page, frame) in frames.iter_mut().take(count).enumerate() {
            if let Some(entry) = paging::unmap(root, from + page * PAGE_SIZE) {
                *frame = entry & paging::FRAME;
            }
        }
        tlb::flush(from, count);
        for frame in frames.into_iter().filter(|&frame| frame != 0) {
            physical::free(frame);
        }
        done += count;
    }
}

/// Allocates; `None` if memory is short. IRQL at most DISPATCH_LEVEL.
pub(crate) fn allocate(
    bytes: usize,
    tag: u32,
    executable: bool,
    zero: bool,
    caller: usize,
) -> Option<usize> {
    let value = if zero { 0 } else { GARBAGE };
    if let Some(class) = class_of(bytes).filter(|_| bytes < PAGE_SIZE) {
        let address = POOL.lock().take(bytes, tag, executable, class, caller)?;
        fill(address, value, bytes);
        return Some(address);
    }
    let rights = if executable {
        Rights::ReadWriteExecute
    } else {
        Rights::ReadWrite
    };
    let pages = super::pages(bytes);
    let address = map_pages(pages, rights)?;
    fill(address, value, pages * PAGE_SIZE);
    track::add(Kind::Pool, address, bytes, tag, caller);
    Some(address)
}

/// Frees what [`allocate`] gave.
pub(crate) fn free(address: usize, tag: Option<u32>, api: &str) {
    require!(
        region::POOL.contains(address),
        api,
        "{address:#x} is no pool address"
    );
    if !address.is_multiple_of(PAGE_SIZE) {
        require!(
            address.is_multiple_of(16),
            api,
            "{address:#x} is not the start of a block"
        );
        require!(
            paging::translate(paging::system_root(), address).is_some(),
            api,
            "{address:#x} is freed already"
        );
        require!(
            // The heap also frees the accounts' own nodes, under their lock.
            api == "heap" || track::get(Kind::Pool, address & !(PAGE_SIZE - 1)).is_none(),
            api,
            "{address:#x} is not the start of a block"
        );
        POOL.lock().give(address, tag, api);
        return;
    }
    let Some(block) = track::remove(Kind::Pool, address) else {
        crate::ke::bugcheck::violation(
            api,
            format_args!("{address:#x} is no block, or freed already"),
        )
    };
    if let Some(tag) = tag {
        require!(
            tag == 0 || tag == block.tag,
            api,
            "{address:#x} has tag {:#x}, not {tag:#x}",
            block.tag
        );
    }
    let pages = super::pages(block.bytes);
    unmap_pages(address, pages);
    region::POOL.release(address, pages);
}

/// Length of a block in bytes, if there is one at this address.
pub fn block_bytes(address: usize) -> Option<usize> {
    if address.is_multiple_of(PAGE_SIZE) {
        return track::get(Kind::Pool, address).map(|block| block.bytes);
    }
    let _pool = POOL.lock();
    let block = header(address - HEADER);
    (block.magic.get() == MAGIC).then_some(block.bytes.get() as usize)
}

/// Tells each block of memory that `owner` has not given back: pool, contiguous
/// memory, mappings, MDLs. `f` runs at DISPATCH_LEVEL and must not allocate.
pub fn outstanding(owner: u32, f: &mut dyn FnMut(Block)) {
    let pool = POOL.lock();
    let mut page = pool.slabs;
    while page != 0 {
        let size = CLASSES[slab(page).class as usize];
        let mut block = page + SLAB;
        while block + size <= page + PAGE_SIZE {
            let this = header(block);
            if this.magic.get() == MAGIC && this.owner.get() == owner {
                f(Block {
                    address: block + HEADER,
                    bytes: this.bytes.get() as usize,
                    tag: this.tag.get(),
                    return_address: this.link.get(),
                    owner,
                    kind: Kind::Pool,
                });
            }
            block += size;
        }
        page = slab(page).next;
    }
    drop(pool);
    track::outstanding(owner, f);
}

/// Small blocks in use and their bytes.
pub fn usage() -> (usize, usize) {
    let pool = POOL.lock();
    (pool.blocks, pool.bytes)
}

fn allocate_for_driver(
    api: &str,
    bytes: usize,
    tag: u32,
    executable: bool,
    zero: bool,
    caller: usize,
) -> usize {
    require_irql(DISPATCH_LEVEL, api);
    require!(tag != 0, api, "the tag is 0");
    require!(bytes != 0, api, "0 bytes are asked for");
    if bytes > super::POOL_SPACE / 2 {
        return 0;
    }
    allocate(bytes, tag, executable, zero, caller).unwrap_or(0)
}

extern "C" fn allocate2(call: &Call) -> usize {
    let api = "ExAllocatePool2";
    let (flags, bytes, tag) = (call.word::<0>() as u64, call.word::<1>(), call.long::<2>());
    let kinds = flags & (POOL_FLAG_NON_PAGED | POOL_FLAG_NON_PAGED_EXECUTE | POOL_FLAG_PAGED);
    require!(
        kinds.is_power_of_two(),
        api,
        "flags {flags:#x} name not exactly one pool"
    );
    if kinds == POOL_FLAG_PAGED {
        require_irql(APC_LEVEL, api);
    }
    // A page is aligned to every cache line.
    let bytes = if flags & POOL_FLAG_CACHE_ALIGNED != 0 {
        bytes.max(PAGE_SIZE)
    } else {
        bytes
    };
    let executable = kinds == POOL_FLAG_NON_PAGED_EXECUTE;
    let zero = flags & POOL_FLAG_UNINITIALIZED == 0;
    let block = allocate_for_driver(api, bytes, tag, executable, zero, call.return_address);
    if block == 0 && flags & POOL_FLAG_RAISE_ON_FAILURE != 0 {
        bugcheck::raise_status(STATUS_INSUFFICIENT_RESOURCES, api);
    }
    block
}

/// `POOL_TYPE` is odd for paged pools; nonpaged is executable unless NX is asked for.
fn by_type(api: &str, pool_type: u32, bytes: usize, tag: u32, caller: usize) -> usize {
    let paged = pool_type & 1 != 0;
    if paged {
        require_irql(APC_LEVEL, api);
    }
    let executable = !paged && pool_type & POOL_NX_ALLOCATION == 0;
    allocate_for_driver(api, bytes, tag, executable, false, caller)
}

extern "C" fn allocate_with_tag(call: &Call) -> usize {
    by_type(
        "ExAllocatePoolWithTag",
        call.long::<0>(),
        call.word::<1>(),
        call.long::<2>(),
        call.return_address,
    )
}

extern "C" fn allocate_without_tag(call: &Call) -> usize {
    let tag = u32::from_le_bytes(*b"None");
    by_type(
        "ExAllocatePool",
        call.long::<0>(),
        call.word::<1>(),
        tag,
        call.return_address,
    )
}

with_caller!(
    /// `ExAllocatePool2`: cleared unless `POOL_FLAG_UNINITIALIZED`.
    ExAllocatePool2,
    allocate2
);
with_caller!(
    /// `ExAllocatePoolWithTag`: not cleared.
    ExAllocatePoolWithTag,
    allocate_with_tag
);
with_caller!(
    /// `ExAllocatePool`: not cleared, tag `None`.
    ExAllocatePool,
    allocate_without_tag
);

/// `ExFreePoolWithTag`; tag 0 matches every tag.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExFreePoolWithTag(block: *mut c_void, tag: u32) {
    require_irql(DISPATCH_LEVEL, "ExFreePoolWithTag");
    free(block as usize, Some(tag), "ExFreePoolWithTag");
}

/// `ExFreePool`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExFreePool(block: *mut c_void) {
    require_irql(DISPATCH_LEVEL, "ExFreePool");
    free(block as usize, None, "ExFreePool");
}

/// `ExFreePool2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExFreePool2(block: *mut c_void, tag: u32, _: *mut c_void, count: u32) {
    require_irql(DISPATCH_LEVEL, "ExFreePool2");
    require!(
        count == 0,
        "ExFreePool2",
        "extended parameters are not known here"
    );
    free(block as usize, Some(tag), "ExFreePool2");
}
