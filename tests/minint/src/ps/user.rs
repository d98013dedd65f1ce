//! Ring 3: starting and ending programs, their system calls and exceptions.
//!
//! Each program is a process of its own with one thread, preempted like any other.
//! Ring-3 memory is reached through the page tables and the kernel's window, never
//! through the program's own addresses, so no fault and no SMAP window is needed.

use core::ptr;
use core::sync::atomic::Ordering;

use super::process::{self, Process};
use super::programs::{NAMES, PROGRAMS, Program};
use crate::hal::cpu::{R3_CODE, R3_DATA};
use crate::hal::entry::{self, TrapFrame};
use crate::hal::{boot, clock, instr};
use crate::ke::irql::{PASSIVE_LEVEL, current, require_irql};
use crate::ke::wait::{self, Timeout};
use crate::ke::{dispatcher, thread};

use crate::mm::{PAGE_SIZE, paging, physical};

const STATUS_SUCCESS: i32 = 0;
const STATUS_OBJECT_NAME_NOT_FOUND: i32 = 0xC000_0034_u32 as i32;
const STATUS_NO_MEMORY: i32 = 0xC000_0017_u32 as i32;
const STATUS_ACCESS_VIOLATION: i32 = 0xC000_0005_u32 as i32;
const STATUS_ILLEGAL_INSTRUCTION: i32 = 0xC000_001D_u32 as i32;
const STATUS_PRIVILEGED_INSTRUCTION: i32 = 0xC000_0096_u32 as i32;
const STATUS_INTEGER_DIVIDE_BY_ZERO: i32 = 0xC000_0094_u32 as i32;
const STATUS_BREAKPOINT: i32 = 0x8000_0003_u32 as i32;
const STATUS_UNSUCCESSFUL: i32 = 0xC000_0001_u32 as i32;
/// Exit code of a program that was ended from outside.
const TERMINATED: i32 = 1;

const CODE: usize = 0x0000_7FF6_0000_0000;
const JIT: usize = CODE + 0x1_0000;
const DATA: usize = CODE + 0x2_0000;
const STACK_TOP: usize = 0x0000_00A0_0000_0000;
const STACK_PAGES: usize = 4;

/// Names of the programs.
pub fn names() -> &'static [&'static str] {
    &NAMES
}

/// Starts a program and returns its process id, or an NTSTATUS. PASSIVE_LEVEL.
///
/// # Errors
/// There is no program of that name, or no memory.
pub fn start(name: &str, argument: u64) -> Result<u32, i32> {
    require_irql(PASSIVE_LEVEL, "start a program");
    let program = PROGRAMS
        .iter()
        .find(|program| program.name == name)
        .ok_or(STATUS_OBJECT_NAME_NOT_FOUND)?;
    let process = process::create(program.name).ok_or(STATUS_NO_MEMORY)?;
    let id = process.id;
    let ready =
        lay_out(process, program).and_then(|()| thread::create(process, enter, argument as usize));
    let Some(thread) = ready else {
        process::ended(process, STATUS_NO_MEMORY);
        process::dereference(process);
        return Err(STATUS_NO_MEMORY);
    };
    // The reference of `create` becomes the thread's; the reaper drops it.
    super::thread_started(thread);
    thread::start(thread);
    thread::dereference(thread);
    Ok(id)
}

fn lay_out(process: &Process, program: &Program) -> Option<()> {
    let page = |address: usize, bits: u64, content: &[u8]| {
        let frame = physical::allocate_zeroed()?;
        let to = physical::direct(frame);
        // SAFETY: a fresh page; programs are shorter than a page, which the slice shows.
        unsafe { ptr::copy_nonoverlapping(content.as_ptr(), to, content.len().min(PAGE_SIZE)) };
        paging::map(
            process.root,
            address,
            frame,
            paging::PRESENT | paging::USER | bits,
        );
        Some(())
    };
    page(CODE, 0, program.code())?;
    page(JIT, paging::WRITE, &[])?;
    page(DATA, paging::WRITE | paging::NO_EXECUTE, &[])?;
    for number in 1..=STACK_PAGES {
        page(
            STACK_TOP - number * PAGE_SIZE,
            paging::WRITE | paging::NO_EXECUTE,
            &[],
        )?;
    }
    Some(())
}

/// First kernel code of a program's thread: goes to ring 3.
extern "C" fn enter(argument: usize) {
    let mut general = [0; 15];
    general[6] = argument as u64; // RDI
    general[5] = DATA as u64; // RSI
    general[2] = JIT as u64; // RDX
    let frame = TrapFrame {
        xmm: [0; 6],
        mxcsr: 0x1F80,
        gs_base: 0,
        general,
        vector: 0,
        error: 0,
        rip: CODE as u64,
        cs: u64::from(R3_CODE),
        rflags: 0x202,
        rsp: STACK_TOP as u64 - 8,
        ss: u64::from(R3_DATA),
    };
    // SAFETY: a frame on this kernel stack that leads to the program's first instruction.
    unsafe { entry::KiExitToFrame(&raw const frame) }
}

/// Asks a program to end and waits; its exit code.
pub fn stop(id: u32) -> Option<u32> {
    let process = process::by_id(id)?;
    if process.exit_code.load(Ordering::Acquire) == 0 {
        process.exit_code.store(TERMINATED, Ordering::Release);
    }
    process.terminate.store(true, Ordering::Release);
    Some(wait_for(process))
}

/// Waits for a program's end; its exit code.
pub fn wait(id: u32) -> Option<u32> {
    process::by_id(id).map(wait_for)
}

fn wait_for(process: &'static Process) -> u32 {
    wait::wait(
        &[ptr::from_ref(&process.header)],
        true,
        Timeout::Never,
        "wait for a program",
    );
    let code = process.exit_code.load(Ordering::Acquire) as u32;
    process::dereference(process);
    code
}

/// What a program has reported of its work.
pub fn progress(id: u32) -> Option<u64> {
    let process = process::by_id(id)?;
    let value = process.progress.load(Ordering::Relaxed);
    process::dereference(process);
    Some(value)
}

/// Last kernel code before ring 3 goes on; interrupts are off.
pub(crate) fn before_return(_: &mut TrapFrame) {
    let process = thread::current().process;
    if process.terminate.load(Ordering::Acquire) && current() == PASSIVE_LEVEL {
        // SAFETY: on the thread's own kernel stack at PASSIVE_LEVEL.
        unsafe { instr::sti() };
        thread::exit(process.exit_code.load(Ordering::Acquire));
    }
}

/// An exception in ring 3: ends the program with the status that NT would give it.
pub(crate) fn exception(frame: &TrapFrame, vector: u8, address: u64) {
    let status = match vector {
        0 => STATUS_INTEGER_DIVIDE_BY_ZERO,
        3 => STATUS_BREAKPOINT,
        6 => STATUS_ILLEGAL_INSTRUCTION,
        13 => STATUS_PRIVILEGED_INSTRUCTION,
        14 => STATUS_ACCESS_VIOLATION,
        _ => STATUS_UNSUCCESSFUL,
    };
    let process = thread::current().process;
    log!(
        "{} ({}): exception {vector} at {:#x}, error {:#x}, address {address:#x}: ends with {status:#x}",
        process.name,
        process.id,
        frame.rip,
        frame.error
    );
    thread::exit(status)
}

/// Reads `buffer.len()` bytes of the current program at `address`.
fn read(address: usize, buffer: &mut [u8]) -> bool {
    for (offset, byte) in buffer.iter_mut().enumerate() {
        let at = address + offset;
        let leaf = paging::leaf(super::current_process().root, at)
            .map(|(entry, _)| entry.load(Ordering::Acquire));
        if leaf.is_none_or(|entry| entry & paging::USER == 0) {
            return false;
        }
        let Some(physical) = paging::translate(super::current_process().root, at) else {
            return false;
        };
        // SAFETY: a ring-3 page is RAM in the window.
        *byte = unsafe { physical::direct(physical).read_volatile() };
    }
    true
}

/// A system call of a program.
pub(crate) fn system_call(frame: &mut TrapFrame) {
    let (number, rsi, rdi) = (frame.general[0], frame.general[5], frame.general[6]);
    let result = match number {
        0 => thread::exit(rdi as i32),
        1 => {
            dispatcher::yield_now();
            0
        }
        2 => i64::from(print(rdi as usize, rsi as usize)),
        3 => clock::interrupt_time() as i64,
        5 => {
            thread::current()
                .process
                .progress
                .store(rdi, Ordering::Relaxed);
            0
        }
        6 => {
            wait::sleep(rdi.min(100_000_000));
            0
        }
        _ => i64::from(0xC000_001C_u32 as i32),
    };
    frame.general[0] = result as u64;
}

fn print(address: usize, length: usize) -> i32 {
    let mut text = [0; 120];
    let length = length.min(text.len());
    if !read(address, &mut text[..length]) {
        return STATUS_ACCESS_VIOLATION;
    }
    if let Ok(text) = core::str::from_utf8(&text[..length]) {
        let process = thread::current().process;
        log!("{} ({}): {text}", process.name, process.id);
    }
    STATUS_SUCCESS
}

/// Programs that the command line asks for (`programs=compute:100,jit`), for drills
/// without a host.
pub(crate) fn start_from_command_line() {
    let Some(list) = boot::option("programs") else {
        return;
    };
    for word in list.split(',') {
        let (name, argument) = word.split_once(':').unwrap_or((word, "0"));
        match start(name, argument.parse().unwrap_or(0)) {
            Ok(id) => log!("program {name}: process {id}"),
            Err(status) => log!("program {name}: status {status:#x}"),
        }
    }
}
