//! Which module an address lies in, without a lock.
//!
//! Written by the loader under its lock; read by anybody at any IRQL, also in a
//! bugcheck. A slot's number is the owner number of pool blocks: slot 0 is the
//! kernel itself.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// Modules that can be loaded at a time.
pub(super) const COUNT: usize = 64;
/// Owner number of code that lies in no module.
pub(crate) const NOBODY: u32 = u32::MAX;

struct Slot {
    base: AtomicUsize,
    end: AtomicUsize,
    name: [AtomicU8; 32],
}

static SLOTS: [Slot; COUNT] = [const {
    Slot {
        base: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        name: [const { AtomicU8::new(0) }; 32],
    }
}; COUNT];

/// Takes a free slot for a module.
pub(super) fn enter(base: usize, size: usize, name: &str) -> Option<u32> {
    let index = SLOTS
        .iter()
        .position(|slot| slot.base.load(Ordering::Relaxed) == 0)?;
    let slot = &SLOTS[index];
    let bytes = name.bytes().chain(core::iter::repeat(0));
    for (target, byte) in slot.name.iter().zip(bytes) {
        target.store(byte, Ordering::Relaxed);
    }
    slot.end.store(base + size, Ordering::Relaxed);
    slot.base.store(base, Ordering::Release);
    u32::try_from(index).ok()
}

/// Frees a slot.
pub(super) fn leave(number: u32) {
    if let Some(slot) = SLOTS.get(number as usize) {
        slot.base.store(0, Ordering::Release);
        slot.end.store(0, Ordering::Relaxed);
    }
}

fn find(address: usize) -> Option<usize> {
    SLOTS.iter().position(|slot| {
        let base = slot.base.load(Ordering::Acquire);
        base != 0 && (base..slot.end.load(Ordering::Relaxed)).contains(&address)
    })
}

/// Number of the module that an address lies in, [`NOBODY`] if in none.
pub(crate) fn owner_of(address: usize) -> u32 {
    find(address)
        .and_then(|index| u32::try_from(index).ok())
        .unwrap_or(NOBODY)
}

/// Base of the module that an address lies in.
pub(crate) fn base_of(address: usize) -> Option<usize> {
    find(address).map(|index| SLOTS[index].base.load(Ordering::Relaxed))
}

/// Calls `f` with the name of the module that an address lies in and the offset.
pub(crate) fn describe(address: usize, f: &mut dyn FnMut(&str, usize)) {
    // The kernel names itself.
    let Some(index) = find(address).filter(|&index| index != 0) else {
        return;
    };
    let slot = &SLOTS[index];
    let mut name = [0u8; 32];
    for (target, source) in name.iter_mut().zip(&slot.name) {
        *target = source.load(Ordering::Relaxed);
    }
    let length = name
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(name.len());
    f(
        core::str::from_utf8(&name[..length]).unwrap_or("?"),
        address - slot.base.load(Ordering::Relaxed),
    );
}
