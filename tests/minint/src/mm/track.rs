//! Accounts of everything that a driver may forget to give back: large pool
//! blocks, contiguous memory, device mappings, MDL pages and mappings, locked MDLs,
//! threads. Small pool blocks keep their own accounts in their headers.
//!
//! One map from (kind, address) to the record. IRQL at most DISPATCH_LEVEL.

use alloc::collections::BTreeMap;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::ke::spinlock::SpinLock;

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Pool.
    Pool,
    /// `MmAllocateContiguousMemory*`.
    Contiguous,
    /// `MmMapIoSpace`.
    IoMapping,
    /// `MmAllocatePagesForMdl*`.
    MdlPages,
    /// `MmMapLockedPages*`.
    MdlMapping,
    /// `MmProbeAndLockPages`.
    LockedMdl,
    /// `PsCreateSystemThread`, still running.
    Thread,
}

/// One outstanding thing.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Where it begins; for MDL kinds the MDL's own address.
    pub address: usize,
    /// Its length.
    pub bytes: usize,
    /// Pool tag, 0 if there is none.
    pub tag: u32,
    /// Where the call that made it returns to.
    pub return_address: usize,
    /// Module number of that address (0: the kernel).
    pub owner: u32,
    /// What it is.
    pub kind: Kind,
}

static BLOCKS: SpinLock<BTreeMap<(Kind, usize), Block>> = SpinLock::new(BTreeMap::new());
static OWNER_LOOKUP: AtomicUsize = AtomicUsize::new(0);

/// Sets the function that tells the module number of a code address; it must be
/// callable at DISPATCH_LEVEL and must not allocate.
pub fn set_owner_lookup(lookup: fn(usize) -> u32) {
    OWNER_LOOKUP.store(lookup as usize, Ordering::Release);
}

/// Module number of a code address.
pub(crate) fn owner_of(return_address: usize) -> u32 {
    let lookup = OWNER_LOOKUP.load(Ordering::Acquire);
    if lookup == 0 {
        return 0;
    }
    // SAFETY: only `set_owner_lookup` writes the word, from a value of this very type.
    let lookup: fn(usize) -> u32 = unsafe { core::mem::transmute(lookup) };
    lookup(return_address)
}

/// Opens an account.
pub(crate) fn add(kind: Kind, address: usize, bytes: usize, tag: u32, return_address: usize) {
    let owner = owner_of(return_address);
    let block = Block {
        address,
        bytes,
        tag,
        return_address,
        owner,
        kind,
    };
    let old = BLOCKS.lock().insert((kind, address), block);
    crate::require!(
        old.is_none(),
        "memory accounts",
        "{kind:?} {address:#x} exists already"
    );
}

/// Closes an account.
pub(crate) fn remove(kind: Kind, address: usize) -> Option<Block> {
    BLOCKS.lock().remove(&(kind, address))
}

/// Looks an account up.
pub(crate) fn get(kind: Kind, address: usize) -> Option<Block> {
    BLOCKS.lock().get(&(kind, address)).copied()
}

/// Tells every open account of `owner`. `f` runs at DISPATCH_LEVEL and must not allocate.
pub fn outstanding(owner: u32, f: &mut dyn FnMut(Block)) {
    for block in BLOCKS.lock().values().filter(|block| block.owner == owner) {
        f(*block);
    }
}
