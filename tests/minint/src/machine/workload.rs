//! Work of a known kind and amount, measured with the time-stamp counter: in the
//! lab it counts instructions.
//!
//! Each runs on the caller's thread, bound to processor 0 so that one counter is
//! read.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, Ordering};

use wdk_standin::wdk_sys::{PVOID, ULONG_PTR};

use crate::ex::event::Event;
use crate::ex::work::start_thread;
use crate::ex::{nt, pool};
use crate::hal::instr;
use crate::mm::image;

/// The workloads.
pub(super) const NAMES: [&str; 8] = [
    "nop", "memory", "cpuid", "rdmsr", "ipi", "alloc", "threads", "tlb",
];

/// Tag of the blocks of `alloc` (`Work`).
const TAG: u32 = u32::from_le_bytes(*b"Work");

fn nop(count: u64) {
    for i in 0..count * 1000 {
        black_box(i);
    }
}

fn memory(count: u64) {
    const BYTES: usize = 1 << 20;
    let mut buffer = vec![0u8; BYTES];
    for round in 0..count {
        for at in (0..BYTES).step_by(64) {
            buffer[at] = buffer[at].wrapping_add(round as u8);
        }
        black_box(&buffer);
    }
}

fn cpuid(count: u64) {
    for _ in 0..count {
        black_box(instr::cpuid(0, 0));
    }
}

fn rdmsr(count: u64) {
    const EFER: u32 = 0xC000_0080;
    for _ in 0..count {
        // SAFETY: every x86-64 processor has it.
        black_box(unsafe { instr::rdmsr(EFER) });
    }
}

unsafe extern "C" fn nothing(_context: ULONG_PTR) -> ULONG_PTR {
    0
}

fn ipi(count: u64) {
    for _ in 0..count {
        // SAFETY: the routine does nothing.
        unsafe { nt::KeIpiGenericCall(nothing, 0) };
    }
}

fn alloc(count: u64) {
    const KEPT: usize = 16;
    let mut blocks = [core::ptr::null_mut::<core::ffi::c_void>(); KEPT];
    for round in 0..count as usize {
        let slot = round % KEPT;
        if !blocks[slot].is_null() {
            pool::free(blocks[slot], TAG);
        }
        blocks[slot] = pool::allocate(16 + round * 37 % 6000, TAG);
    }
    blocks
        .into_iter()
        .filter(|block| !block.is_null())
        .for_each(|block| pool::free(block, TAG));
}

fn tlb(count: u64) {
    for _ in 0..count {
        if let Some(page) = image::reserve(4096) {
            // SAFETY: a page of our own.
            unsafe { page.write_volatile(1) };
            image::release(page);
        }
    }
}

/// Two threads that wake each other.
struct Pair {
    first: Box<Event>,
    second: Box<Event>,
    stop: AtomicBool,
}

unsafe extern "C" fn partner(context: PVOID) {
    // SAFETY: `threads` passes a reference of this type.
    let pair = unsafe { Arc::from_raw(context.cast::<Pair>().cast_const()) };
    loop {
        pair.first.wait();
        let stop = pair.stop.load(Ordering::SeqCst);
        pair.second.set();
        if stop {
            return;
        }
    }
}

fn threads(count: u64) {
    let pair = Arc::new(Pair {
        first: Event::new(nt::SYNCHRONIZATION_EVENT),
        second: Event::new(nt::SYNCHRONIZATION_EVENT),
        stop: AtomicBool::new(false),
    });
    let shared = Arc::into_raw(Arc::clone(&pair)).cast_mut().cast();
    if !start_thread(partner, shared) {
        return;
    }
    for round in 0..count.max(1) {
        pair.stop.store(round + 1 >= count, Ordering::SeqCst);
        pair.first.set();
        pair.second.wait();
    }
}

/// Runs a workload; `None` if there is none of that name.
pub(super) fn run(name: &str, count: u64) -> Option<String> {
    let work: fn(u64) = match name {
        "nop" => nop,
        "memory" => memory,
        "cpuid" => cpuid,
        "rdmsr" => rdmsr,
        "ipi" => ipi,
        "alloc" => alloc,
        "threads" => threads,
        "tlb" => tlb,
        _ => return None,
    };
    // SAFETY: PASSIVE_LEVEL; processor 0 is always there.
    let before = unsafe { nt::KeSetSystemAffinityThreadEx(1) };
    let start = instr::rdtsc();
    work(count);
    let instructions = instr::rdtsc() - start;
    // SAFETY: what the call above returned.
    unsafe { nt::KeRevertToUserAffinityThreadEx(before) };
    let cpus = crate::ke::cpu_count();
    Some(format!(
        "{{\"workload\":\"{name}\",\"n\":{count},\"cpus\":{cpus},\"instructions\":{instructions}}}"
    ))
}
