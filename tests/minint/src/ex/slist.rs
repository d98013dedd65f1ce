//! Interlocked singly linked lists (`SLIST_HEADER`), lock-free by CMPXCHG16B.
//!
//! Any IRQL. The header's x64 layout: depth (16 bits) and sequence (48) in the
//! first half, the next entry's address in the second (its low 4 bits are 0).

use core::sync::atomic::Ordering;

use wdk_standin::wdk_sys::{PSLIST_ENTRY, PSLIST_HEADER, USHORT};

use crate::ob::argument::own;

fn load(head: PSLIST_HEADER) -> u128 {
    exchange(head, 0, 0)
}

/// Compare and exchange of the whole header; returns what was there.
fn exchange(head: PSLIST_HEADER, old: u128, new: u128) -> u128 {
    crate::ob::argument::check(head.cast_const().cast::<u128>(), "SLIST_HEADER");
    // SAFETY: 16 aligned bytes of kernel memory, as just checked; every x64
    // Windows machine has CMPXCHG16B.
    unsafe {
        core::arch::x86_64::cmpxchg16b(head.cast(), old, new, Ordering::SeqCst, Ordering::SeqCst)
    }
}

fn change(head: PSLIST_HEADER, f: impl Fn(u64, u16) -> Option<(u64, u16)>) -> u64 {
    let mut old = load(head);
    loop {
        let (low, next) = (old as u64, (old >> 64) as u64);
        let (depth, sequence) = ((low & 0xFFFF) as u16, low >> 16);
        let Some((first, depth)) = f(next & !15, depth) else {
            return next & !15;
        };
        let low = u64::from(depth) | sequence.wrapping_add(1) << 16;
        let seen = exchange(head, old, u128::from(first) << 64 | u128::from(low));
        if seen == old {
            return next & !15;
        }
        old = seen;
    }
}

fn entry(address: u64) -> PSLIST_ENTRY {
    core::ptr::with_exposed_provenance_mut(address as usize)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExpInterlockedPushEntrySList(
    head: PSLIST_HEADER,
    new: PSLIST_ENTRY,
) -> PSLIST_ENTRY {
    let address = new.expose_provenance() as u64;
    entry(change(head, |first, depth| {
        own!(new).Next = entry(first);
        Some((address, depth.wrapping_add(1)))
    }))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExpInterlockedPopEntrySList(head: PSLIST_HEADER) -> PSLIST_ENTRY {
    entry(change(head, |first, depth| {
        if first == 0 {
            return None;
        }
        let next = own!(entry(first)).Next.expose_provenance() as u64;
        Some((next, depth.wrapping_sub(1)))
    }))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExpInterlockedFlushSList(head: PSLIST_HEADER) -> PSLIST_ENTRY {
    entry(change(
        head,
        |first, _| if first == 0 { None } else { Some((0, 0)) },
    ))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn InitializeSListHead(head: PSLIST_HEADER) {
    *own!(head.cast::<u128>()) = 0;
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExQueryDepthSList(head: PSLIST_HEADER) -> USHORT {
    (load(head) & 0xFFFF) as USHORT
}
