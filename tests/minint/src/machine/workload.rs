//! Work of a known kind and amount, measured with the time-stamp counter: in the
//! lab it counts instructions.
//!
//! Each runs on the caller's thread, bound to processor 0 so that one counter is
//! read. What is measured stands between two marks for the emulator (port 0xE6),
//! whose counters are exact on any number of processors; what a workload needs
//! first is done before the first mark.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, Ordering};

use wdk_standin::wdk_sys::{PVOID, ULONG_PTR};

use crate::ex::event::Event;
use crate::ex::work::start_thread;
use crate::ex::{nt, pool};
use crate::hal::instr;
use crate::io::driver;
use crate::ke::spinlock::SpinLock;
use crate::mm::{image, pool as pages};
use crate::ps::user;

/// The workloads.
pub(super) const NAMES: [&str; 17] = [
    "nop",
    "memory",
    "walk",
    "cpuid",
    "rdmsr",
    "ipi",
    "alloc",
    "threads",
    "tlb",
    "syscalls",
    "loads",
    "first-touch",
    "warm-touch",
    "ping-pong",
    "self-store",
    "self-increment",
    "vectors",
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

/// One read a page: the translation of each, and hardly anything else.
fn walk(count: u64) {
    const BYTES: usize = 4 << 20;
    let buffer = vec![1u8; BYTES];
    for _ in 0..count {
        for at in (0..BYTES).step_by(4096) {
            black_box(buffer[at]);
        }
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

/// A ring-3 program: three system calls a round, two processes' switch with each.
fn syscalls(count: u64) {
    if let Ok(process) = user::start("syscalls", count.max(1)) {
        user::wait(process);
    }
}

/// A driver loaded and unloaded.
fn loads(count: u64) {
    for _ in 0..count {
        black_box(driver::start("simple_wdm").status);
        black_box(driver::stop("simple_wdm").status);
    }
}

/// Executable pages of nobody's, each with these bytes at its start.
struct Code(Vec<usize>);

impl Code {
    fn new(count: u64, bytes: &[u8]) -> Self {
        let mut all = Vec::new();
        for _ in 0..count {
            let Some(page) = pages::allocate(4096, TAG, true, true, 0) else {
                break;
            };
            all.push(page);
        }
        let code = Self(all);
        for &page in &code.0 {
            write(page, bytes);
        }
        code
    }

    fn call_each(&self) {
        for &page in &self.0 {
            call(page);
        }
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        for &page in &self.0 {
            pages::free(page, Some(TAG), "workload");
        }
    }
}

fn write(page: usize, bytes: &[u8]) {
    for (offset, &byte) in bytes.iter().enumerate() {
        let place = (page + offset) as *mut u8;
        // SAFETY: a page of our own.
        unsafe { place.write_volatile(byte) };
    }
}

fn call(page: usize) {
    // SAFETY: the page holds a function of this type.
    let function = unsafe { core::mem::transmute::<usize, unsafe extern "C" fn()>(page) };
    // SAFETY: it returns at once and changes at most a byte of its own page.
    unsafe { function() };
}

/// The pages of `warm-touch`.
static KEPT: SpinLock<Option<Code>> = SpinLock::new(None);

/// RET.
const RETURN: [u8; 1] = [0xC3];
/// MOV BYTE PTR [RIP + F9H], 1; RET.
const STORE: [u8; 8] = [0xC6, 0x05, 0xF9, 0, 0, 0, 1, 0xC3];
/// INC BYTE PTR [RIP + FAH]; RET.
const INCREMENT: [u8; 7] = [0xFE, 0x05, 0xFA, 0, 0, 0, 0xC3];

/// Instructions that `work` takes, as this processor's time-stamp counter says.
fn measured(work: impl FnOnce()) -> u64 {
    const MARK: u16 = 0xE6;
    // SAFETY: a port of the lab's emulator; nothing listens there elsewhere.
    unsafe { instr::outl(MARK, 1) };
    let start = instr::rdtsc();
    work();
    let instructions = instr::rdtsc() - start;
    // SAFETY: as above.
    unsafe { instr::outl(MARK, 2) };
    instructions
}

/// The vector registers, changed by nobody over `count` CPUID; how many differ.
fn vectors(count: u64) -> usize {
    let mut before = [0u128; 17];
    for (number, register) in before.iter_mut().enumerate() {
        *register = 0x0123_4567_89AB_CDEF_0F1E_2D3C_4B5A_6978u128.rotate_left(number as u32 * 7);
    }
    // MXCSR: all exceptions masked, rounding towards zero, denormals are zeros.
    before[16] = 0x7FC0;
    let mut after = [0; 17];
    // SAFETY: sixteen registers and an MXCSR; at least one round.
    unsafe { instr::vectors_over_exits(&before, &mut after, count.max(1)) };
    before.iter().zip(&after).filter(|(a, b)| a != b).count()
}

/// Runs a workload; its instructions, `None` if there is none of that name.
fn perform(name: &str, count: u64) -> Option<u64> {
    let plain: fn(u64) = match name {
        "nop" => nop,
        "memory" => memory,
        "walk" => walk,
        "cpuid" => cpuid,
        "rdmsr" => rdmsr,
        "ipi" => ipi,
        "alloc" => alloc,
        "threads" => threads,
        "tlb" => tlb,
        "syscalls" => syscalls,
        "loads" => loads,
        "first-touch" => {
            let code = Code::new(count, &RETURN);
            return Some(measured(|| code.call_each()));
        }
        "warm-touch" => {
            // The pages stay from one request to the next; another number of them
            // (0 ends it) makes new ones.
            let kept = KEPT.lock().take();
            let code = kept
                .filter(|code| code.0.len() as u64 == count)
                .unwrap_or_else(|| Code::new(count, &RETURN));
            let instructions = measured(|| code.call_each());
            *KEPT.lock() = Some(code);
            return Some(instructions);
        }
        "ping-pong" => {
            let code = Code::new(1, &RETURN);
            return Some(measured(|| {
                for _ in 0..count {
                    code.0.iter().for_each(|&page| write(page, &RETURN));
                    code.call_each();
                }
            }));
        }
        "self-store" | "self-increment" => {
            let bytes: &[u8] = if name == "self-store" {
                &STORE
            } else {
                &INCREMENT
            };
            let code = Code::new(1, bytes);
            return Some(measured(|| (0..count).for_each(|_| code.call_each())));
        }
        _ => return None,
    };
    Some(measured(|| plain(count)))
}

/// Runs a workload; `None` if there is none of that name.
pub(super) fn run(name: &str, count: u64) -> Option<String> {
    if name == "vectors" {
        let wrong = vectors(count);
        return Some(format!(
            "{{\"workload\":\"vectors\",\"n\":{count},\"wrong\":{wrong}}}"
        ));
    }
    // SAFETY: PASSIVE_LEVEL; processor 0 is always there.
    let before = unsafe { nt::KeSetSystemAffinityThreadEx(1) };
    let instructions = perform(name, count);
    // SAFETY: what the call above returned.
    unsafe { nt::KeRevertToUserAffinityThreadEx(before) };
    let instructions = instructions?;
    let cpus = crate::ke::cpu_count();
    Some(format!(
        "{{\"workload\":\"{name}\",\"n\":{count},\"cpus\":{cpus},\"instructions\":{instructions}}}"
    ))
}
