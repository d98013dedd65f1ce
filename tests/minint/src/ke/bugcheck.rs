//! The end of a broken system: code, parameters, registers and stack on COM1,
//! callbacks, then exit code 0xBC for the lab.
//!
//! The first processor that comes here freezes the others by NMI; later comers stop.
//! Nothing here takes a lock that a broken system may hold.

use core::ffi::c_void;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use super::{callbacks, irql, nmi};
use crate::hal::entry::TrapFrame;
use crate::hal::{apic, boot, cpu, instr, power};
use crate::ke::thread::STACK_BYTES;

use crate::mm::paging;

/// `DRIVER_VERIFIER_DETECTED_VIOLATION`.
pub const DRIVER_VERIFIER_DETECTED_VIOLATION: u32 = 0xC4;
/// `KMODE_EXCEPTION_NOT_HANDLED`.
const KMODE_EXCEPTION_NOT_HANDLED: u32 = 0x1E;
/// Exit code of a machine that ends in a bugcheck.
pub const EXIT_BUGCHECK: u8 = 0xBC;
/// Words of the stack that are printed.
const STACK_WORDS: usize = STACK_BYTES / 8;

static OWNER: AtomicU32 = AtomicU32::new(u32::MAX);

/// Ends the machine with this code and these parameters.
pub fn raise(code: u32, parameters: [u64; 4]) -> ! {
    raise_with(code, parameters, None)
}

/// Ends the machine because a caller broke a documented rule of `api`.
pub fn violation(api: &str, rule: fmt::Arguments<'_>) -> ! {
    log!("*** RULE {api}: {rule}");
    raise(DRIVER_VERIFIER_DETECTED_VIOLATION, [0; 4])
}

/// Ends the machine because `api` raised an exception, which nobody can handle here.
pub fn raise_status(status: u32, api: &str) -> ! {
    log!("*** {api} raises status {status:#010x}");
    raise(KMODE_EXCEPTION_NOT_HANDLED, [u64::from(status), 0, 0, 0])
}

/// Ends the machine because the kernel itself has no memory.
pub(crate) fn out_of_memory(what: &str) -> ! {
    log!("*** no memory for {what}");
    raise(0x0000_0059, [0; 4])
}

/// Ends the machine; `frame` holds the registers of what went wrong.
pub(crate) fn raise_with(code: u32, parameters: [u64; 4], frame: Option<&TrapFrame>) -> ! {
    instr::cli();
    let this = cpu::current_number();
    let level = irql::current();
    if let Err(owner) = OWNER.compare_exchange(u32::MAX, this, Ordering::AcqRel, Ordering::Acquire)
    {
        if owner == this {
            log!("*** STOP again: {code:#010x} {parameters:x?}");
            power::exit(EXIT_BUGCHECK);
        }
        instr::halt();
    }
    stop_others(this);
    let [p1, p2, p3, p4] = parameters;
    log!(
        "*** STOP: 0x{code:08X} (0x{p1:016X}, 0x{p2:016X}, 0x{p3:016X}, 0x{p4:016X}) {}",
        name(code)
    );
    log!(
        "processor {this}, IRQL {level}, CR0 {:x} CR2 {:x} CR3 {:x} CR4 {:x}",
        instr::read_cr0(),
        instr::read_cr2(),
        instr::read_cr3(),
        instr::read_cr4()
    );
    let stack = match frame {
        Some(frame) => {
            registers(frame);
            frame.rsp as usize
        }
        None => instr::stack_pointer(),
    };
    dump_stack(stack);
    callbacks::bugcheck();
    power::exit(EXIT_BUGCHECK)
}

fn stop_others(this: u32) {
    nmi::freeze();
    let count = super::cpu_count();
    for number in (0..count).filter(|&number| number != this) {
        apic::send_nmi(cpu::of(number as usize).apic_id.load(Ordering::Acquire));
    }
    for number in (0..count).filter(|&number| number != this) {
        for _ in 0..1_000_000 {
            if cpu::of(number as usize).frozen.load(Ordering::Acquire) {
                break;
            }
            instr::pause();
        }
    }
}

fn registers(frame: &TrapFrame) {
    const NAMES: [&str; 15] = [
        "rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8 ", "r9 ", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    log!(
        "vector {:x} error {:x} rip {:x} cs {:x} rflags {:x} rsp {:x} ss {:x}",
        frame.vector,
        frame.error,
        frame.rip,
        frame.cs,
        frame.rflags,
        frame.rsp,
        frame.ss
    );
    describe("rip", frame.rip as usize);
    for row in 0..5 {
        let at = row * 3;
        log!(
            "{} {:016x}  {} {:016x}  {} {:016x}",
            NAMES[at],
            frame.general[at],
            NAMES[at + 1],
            frame.general[at + 1],
            NAMES[at + 2],
            frame.general[at + 2]
        );
    }
}

/// The word at `address` if a page is mapped there.
fn peek(address: usize) -> Option<u64> {
    paging::translate_current(address)?;
    // SAFETY: mapped, and the kernel's own half; a stack word is aligned.
    Some(unsafe { (address as *const u64).read_volatile() })
}

fn dump_stack(stack: usize) {
    if stack < crate::mm::KERNEL_HALF {
        log!("the stack pointer is not in the kernel half");
        return;
    }
    let stack = stack & !7;
    for word in 0..STACK_WORDS {
        let at = stack + word * 8;
        let Some(value) = peek(at) else { break };
        if word < 16 {
            log!("stack {at:x}: {value:016x}");
        }
        describe("stack", value as usize);
    }
}

/// Prints `address` as module and offset if it lies in one.
fn describe(what: &str, address: usize) {
    let base = boot::kernel_base();
    if address.wrapping_sub(base) < boot::kernel_size() {
        log!("{what}: {address:x} ntoskrnl+{:x}", address - base);
    }
    #[cfg(not(feature = "core-only"))]
    crate::ldr::describe(address, &mut |module, offset| {
        log!("{what}: {address:x} {module}+{offset:x}");
    });
}

fn name(code: u32) -> &'static str {
    match code {
        0x0A => "IRQL_NOT_LESS_OR_EQUAL",
        0x0C => "MAXIMUM_WAIT_OBJECTS_EXCEEDED",
        0x1E => "KMODE_EXCEPTION_NOT_HANDLED",
        0x50 => "PAGE_FAULT_IN_NONPAGED_AREA",
        0x7F => "UNEXPECTED_KERNEL_MODE_TRAP",
        0x80 => "NMI_HARDWARE_FAILURE",
        0x9C => "MACHINE_CHECK_EXCEPTION",
        0xBE => "ATTEMPTED_WRITE_TO_READONLY_MEMORY",
        0xC4 => "DRIVER_VERIFIER_DETECTED_VIOLATION",
        0xE2 => "MANUALLY_INITIATED_CRASH",
        0xFC => "ATTEMPTED_EXECUTE_OF_NOEXECUTE_MEMORY",
        0x101 => "CLOCK_WATCHDOG_TIMEOUT",
        0x139 => "KERNEL_SECURITY_CHECK_FAILURE",
        _ => "",
    }
}

/// `KeBugCheckEx`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeBugCheckEx(code: u32, p1: usize, p2: usize, p3: usize, p4: usize) -> ! {
    raise(code, [p1 as u64, p2 as u64, p3 as u64, p4 as u64])
}

/// `KeBugCheck`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeBugCheck(code: u32) -> ! {
    raise(code, [0; 4])
}

/// `__C_specific_handler`: structured exceptions are not delivered here; whoever
/// comes here has an exception that nobody can handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __C_specific_handler(
    _record: *mut c_void,
    _frame: *mut c_void,
    _context: *mut c_void,
    _dispatcher: *mut c_void,
) -> i32 {
    raise_status(0xC000_0025, "__C_specific_handler")
}
