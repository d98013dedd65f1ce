//! Page tables: four levels, reached through the kernel's window on RAM.
//!
//! The upper half of every address space is the same: its PML4 entries are made
//! once, before the first process. Kernel pages are global, supervisor-only, never
//! writable and executable at once unless a driver asks for executable pool.
//! Leaf entries change by one atomic store; the structure lock guards the making
//! of tables. Tables of the kernel half are never freed. IRQL at most DISPATCH_LEVEL.

use core::sync::atomic::{AtomicU64, Ordering};

use super::physical::{self, direct};
use super::{DIRECT_MAP, IMAGE_BASE, KERNEL_HALF, PAGE_SIZE, POOL_BASE, SHARED_DATA, SYSTEM_BASE};
use crate::hal::{boot, instr};
use crate::ke::spinlock::SpinLock;

/// Present.
pub const PRESENT: u64 = 1 << 0;
/// Writable.
pub const WRITE: u64 = 1 << 1;
/// Ring 3 may use it.
pub const USER: u64 = 1 << 2;
/// PAT bit 0.
pub const WRITE_THROUGH: u64 = 1 << 3;
/// PAT bit 1.
pub const CACHE_DISABLE: u64 = 1 << 4;
/// Accessed.
pub const ACCESSED: u64 = 1 << 5;
/// Dirty.
pub const DIRTY: u64 = 1 << 6;
/// 2 MiB or 1 GiB leaf.
pub const LARGE: u64 = 1 << 7;
/// Kept over a CR3 load.
pub const GLOBAL: u64 = 1 << 8;
/// Not executable.
pub const NO_EXECUTE: u64 = 1 << 63;
/// Physical address bits of an entry.
pub const FRAME: u64 = 0x000F_FFFF_FFFF_F000;

/// Kernel page, valid and used, as NT's `ValidKernelPte`.
const KERNEL: u64 = PRESENT | ACCESSED | DIRTY | GLOBAL;

/// What a kernel page may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
    /// Read and execute.
    ReadExecute,
    /// Everything: executable pool only.
    ReadWriteExecute,
}

impl Rights {
    /// Bits of a kernel leaf with these rights.
    pub const fn kernel_bits(self) -> u64 {
        KERNEL
            | match self {
                Self::ReadOnly => NO_EXECUTE,
                Self::ReadWrite => NO_EXECUTE | WRITE,
                Self::ReadExecute => 0,
                Self::ReadWriteExecute => WRITE,
            }
    }
}

/// Root of the system address space and of the one on which processors start.
static SYSTEM_ROOT: AtomicU64 = AtomicU64::new(0);
static STRUCTURE: SpinLock<()> = SpinLock::new(());

/// The entry `index` of the table at `table`.
fn slot(table: u64, index: usize) -> &'static AtomicU64 {
    let at = direct(table).cast::<AtomicU64>().wrapping_add(index);
    // SAFETY: a table is a page of RAM in the window, of 512 entries that are only accessed atomically.
    unsafe { &*at }
}

fn index(address: usize, level: u32) -> usize {
    address >> (12 + 9 * level) & 511
}

/// CR3 of the system process.
pub fn system_root() -> u64 {
    SYSTEM_ROOT.load(Ordering::Acquire)
}

/// CR3 on which application processors start: the system's plus the identity map.
pub(crate) fn startup_root() -> u64 {
    boot::block().cr3
}

#[unsafe(link_section = "INIT")]
pub(crate) fn initialize() {
    let boot_root = startup_root();
    let root = new_table();
    for base in [POOL_BASE, SYSTEM_BASE, SHARED_DATA, DIRECT_MAP] {
        slot(root, index(base, 3))
            .store(new_table() | PRESENT | WRITE | ACCESSED, Ordering::Release);
    }
    // The kernel's own tables, made by bootimg, serve for the driver images too.
    assert!(index(IMAGE_BASE, 3) == index(boot::kernel_base(), 3));
    let kernel = slot(boot_root, index(IMAGE_BASE, 3)).load(Ordering::Acquire);
    slot(root, index(IMAGE_BASE, 3)).store(kernel, Ordering::Release);
    // The window: exactly the RAM.
    for span in physical::spans() {
        let mut at = span.start;
        while at < span.end {
            let large = at.is_multiple_of(2 << 20) && at + (2 << 20) <= span.end;
            let level = u32::from(large);
            let bits = Rights::ReadWrite.kernel_bits() | if large { LARGE } else { 0 };
            entry_for(root, DIRECT_MAP + at as usize, level).store(at | bits, Ordering::Release);
            at += 4096 << (9 * level);
        }
    }
    SYSTEM_ROOT.store(root, Ordering::Release);
    // SAFETY: the new tables map the kernel, its stack and the window as the old ones did.
    unsafe { instr::write_cr3(root) };
    for upper in 256..512 {
        let entry = slot(root, upper).load(Ordering::Acquire);
        slot(boot_root, upper).store(entry, Ordering::Release);
    }
}

fn new_table() -> u64 {
    physical::allocate_zeroed().unwrap_or_else(|| crate::ke::bugcheck::out_of_memory("page table"))
}

/// The entry for `address` in the table of `level` (0: page table), making the
/// tables above it. The entry itself may be anything.
fn entry_for(root: u64, address: usize, level: u32) -> &'static AtomicU64 {
    let mut table = root;
    let user = if address < KERNEL_HALF { USER } else { 0 };
    for above in (level + 1..4).rev() {
        let entry = slot(table, index(address, above));
        let mut value = entry.load(Ordering::Acquire);
        if value & PRESENT == 0 {
            value = new_table() | PRESENT | WRITE | ACCESSED | user;
            entry.store(value, Ordering::Release);
        }
        assert!(value & LARGE == 0, "{address:#x} lies in a large page");
        table = value & FRAME;
    }
    slot(table, index(address, level))
}

/// The leaf that maps `address` under `root`: its entry and the bytes it covers.
pub fn leaf(root: u64, address: usize) -> Option<(&'static AtomicU64, usize)> {
    let mut table = root;
    for level in (0..4).rev() {
        let entry = slot(table, index(address, level));
        let value = entry.load(Ordering::Acquire);
        if value & PRESENT == 0 {
            return None;
        }
        if level == 0 || value & LARGE != 0 {
            return Some((entry, PAGE_SIZE << (9 * level)));
        }
        table = value & FRAME;
    }
    None
}

/// Physical address behind `address` under `root`.
pub fn translate(root: u64, address: usize) -> Option<u64> {
    let (entry, size) = leaf(root, address)?;
    let inside = size as u64 - 1;
    Some(entry.load(Ordering::Acquire) & FRAME & !inside | address as u64 & inside)
}

/// Physical address behind `address` in the address space in use now.
pub fn translate_current(address: usize) -> Option<u64> {
    translate(instr::read_cr3() & FRAME, address)
}

/// Maps one page under `root`. The page must not be mapped yet.
pub fn map(root: u64, address: usize, physical: u64, bits: u64) {
    let _structure = STRUCTURE.lock();
    let entry = entry_for(root, address, 0);
    let old = entry.swap(physical | bits, Ordering::AcqRel);
    assert!(old & PRESENT == 0, "{address:#x} is mapped twice");
}

/// Maps one kernel page.
pub fn map_kernel(address: usize, physical: u64, bits: u64) {
    map(system_root(), address, physical, bits);
}

/// Removes the page's mapping and returns its entry. The caller shoots the TLBs
/// down ([`super::tlb`]) before it reuses frame or address.
#[must_use]
pub fn unmap(root: u64, address: usize) -> Option<u64> {
    let (entry, size) = leaf(root, address)?;
    assert!(size == PAGE_SIZE, "{address:#x} is a large page");
    Some(entry.swap(0, Ordering::AcqRel))
}

/// Replaces the bits of a mapped page, keeping its frame. TLBs as for [`unmap`].
pub fn set_bits(root: u64, address: usize, bits: u64) -> bool {
    let Some((entry, size)) = leaf(root, address) else {
        return false;
    };
    assert!(size == PAGE_SIZE, "{address:#x} is a large page");
    let frame = entry.load(Ordering::Acquire) & FRAME;
    entry.store(frame | bits, Ordering::Release);
    true
}

/// A new address space: empty user half, the common kernel half.
pub(crate) fn new_space() -> Option<u64> {
    let root = physical::allocate_zeroed()?;
    for upper in 256..512 {
        let entry = slot(system_root(), upper).load(Ordering::Acquire);
        slot(root, upper).store(entry, Ordering::Release);
    }
    Some(root)
}

/// Frees an address space with all pages of its user half. No processor may use it.
pub(crate) fn free_space(root: u64) {
    for upper in 0..256 {
        let entry = slot(root, upper).load(Ordering::Acquire);
        if entry & PRESENT != 0 {
            free_tables(entry & FRAME, 2);
        }
    }
    physical::free(root);
}

fn free_tables(table: u64, level: u32) {
    for number in 0..512 {
        let entry = slot(table, number).load(Ordering::Acquire);
        if entry & PRESENT == 0 {
            continue;
        }
        if level == 0 {
            physical::free(entry & FRAME);
        } else {
            free_tables(entry & FRAME, level - 1);
        }
    }
    physical::free(table);
}

/// Tells each leaf of the kernel half: address and entry.
pub fn each_kernel_leaf(f: &mut dyn FnMut(usize, u64)) {
    walk(system_root(), 3, 0, f);
}

fn walk(table: u64, level: u32, base: usize, f: &mut dyn FnMut(usize, u64)) {
    let from = if level == 3 { 256 } else { 0 };
    for number in from..512 {
        let entry = slot(table, number).load(Ordering::Acquire);
        if entry & PRESENT == 0 {
            continue;
        }
        let mut address = base | number << (12 + 9 * level);
        if level == 3 {
            address |= 0xFFFF << 48;
        }
        if level == 0 || entry & LARGE != 0 {
            f(address, entry);
        } else {
            walk(entry & FRAME, level - 1, address, f);
        }
    }
}
