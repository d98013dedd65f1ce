//! The commands of a `Machine` frame.

use alloc::format;
use alloc::string::{String, ToString};

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use wdk_standin::wdk_sys::{NTSTATUS, ULONG_PTR};

use super::{drill, report, shut_down, state, workload};
use crate::ex::nt;
use crate::hal::{apic, cpu, instr};
use crate::ke::bugcheck;
use crate::link::Origin;
use crate::rtl::status::{STATUS_INVALID_PARAMETER, STATUS_NOT_FOUND, STATUS_SUCCESS};

const HELP: &str = "shutdown CODE, modules, memory, threads, services, objects, bugcheck CODE, nmi CPU|all N, msr REGISTER VALUE, dr7 VALUE, osxsave, workload NAME N, power suspend|resume, restart CPU, state";

fn number(word: Option<&str>) -> Option<u64> {
    let word = word?;
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

fn bad() -> (NTSTATUS, String) {
    (
        STATUS_INVALID_PARAMETER,
        format!("{{\"error\":{}}}", report::text(HELP)),
    )
}

fn done() -> (NTSTATUS, String) {
    (STATUS_SUCCESS, "{}".to_string())
}

/// Runs one command.
pub(crate) fn command(origin: Origin, line: &str) -> (NTSTATUS, String) {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap_or("");
    match name {
        "shutdown" => {
            let code = number(words.next()).unwrap_or(0);
            // The host gets its answer before the machine is gone.
            origin.reply(STATUS_SUCCESS, 0, b"{}");
            crate::link::flush();
            shut_down(code as u8)
        }
        "modules" => (STATUS_SUCCESS, report::modules()),
        "memory" => (STATUS_SUCCESS, report::memory()),
        "threads" => (STATUS_SUCCESS, report::threads()),
        "services" => (STATUS_SUCCESS, report::services()),
        "objects" => (STATUS_SUCCESS, report::objects()),
        "state" => (STATUS_SUCCESS, state::all()),
        "bugcheck" => {
            if let Some(code) = number(words.next()) {
                bugcheck::raise(code as u32, [0; 4])
            }
            bad()
        }
        "restart" => restart(number(words.next())),
        "nmi" => nmi(words.next(), number(words.next())),
        "dr7" => match number(words.next()) {
            Some(value) => {
                write_dr7(value);
                done()
            }
            None => bad(),
        },
        "osxsave" => osxsave(),
        "msr" => match (number(words.next()), number(words.next())) {
            (Some(register), Some(value)) => {
                write_msr(register as u32, value);
                done()
            }
            _ => bad(),
        },
        "power" => match words.next() {
            Some("suspend") if crate::po::state_change(false) => done(),
            Some("resume") if crate::po::state_change(true) => done(),
            _ => bad(),
        },
        "workload" => {
            let workload = words.next().unwrap_or("");
            let count = number(words.next()).unwrap_or(1);
            if let Some(answer) = workload::run(workload, count) {
                return (STATUS_SUCCESS, answer);
            }
            let names = report::text(&workload::NAMES.join(" "));
            (STATUS_NOT_FOUND, format!("{{\"error\":{names}}}"))
        }
        _ => bad(),
    }
}

/// Starts a processor anew by INIT and startup IPIs; whether it came back.
fn restart(number: Option<u64>) -> (NTSTATUS, String) {
    let known = |&number: &u32| number != 0 && number < crate::ke::cpu_count();
    match number.and_then(|n| u32::try_from(n).ok()).filter(known) {
        Some(number) => {
            let back = drill::restart(number);
            (STATUS_SUCCESS, format!("{{\"back\":{back}}}"))
        }
        None => bad(),
    }
}

static REGISTER: AtomicU32 = AtomicU32::new(0);
static VALUE: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn write_here(_: ULONG_PTR) -> ULONG_PTR {
    let (register, value) = (
        REGISTER.load(Ordering::SeqCst),
        VALUE.load(Ordering::SeqCst),
    );
    // SAFETY: the host asked for it; a register that faults stops the machine.
    unsafe { instr::wrmsr(register, value) };
    0
}

/// Writes a model-specific register on all processors at once, as a change of
/// memory types has to be made.
fn write_msr(register: u32, value: u64) {
    REGISTER.store(register, Ordering::SeqCst);
    VALUE.store(value, Ordering::SeqCst);
    // SAFETY: the routine may run at IPI_LEVEL.
    unsafe { nt::KeIpiGenericCall(write_here, 0) };
}

unsafe extern "C" fn write_dr7_here(_: ULONG_PTR) -> ULONG_PTR {
    // SAFETY: the host asked for it; no breakpoint address is set.
    unsafe { instr::write_dr7(VALUE.load(Ordering::SeqCst)) };
    0
}

/// Writes DR7 on all processors.
fn write_dr7(value: u64) {
    VALUE.store(value, Ordering::SeqCst);
    // SAFETY: the routine may run at IPI_LEVEL.
    unsafe { nt::KeIpiGenericCall(write_dr7_here, 0) };
}

/// CPUID.1:ECX.OSXSAVE with CR4.OSXSAVE set and clear, on this processor.
fn osxsave() -> (NTSTATUS, String) {
    const OSXSAVE: u64 = 1 << 18;
    let enabled = instr::cli();
    let cr4 = instr::read_cr4();
    let mut seen = [0; 2];
    for (seen, value) in seen.iter_mut().zip([cr4 | OSXSAVE, cr4 & !OSXSAVE]) {
        // SAFETY: nothing uses XSAVE before the old value is back.
        unsafe { instr::write_cr4(value) };
        *seen = instr::cpuid(1, 0)[2] >> 27 & 1;
    }
    // SAFETY: what it was.
    unsafe { instr::write_cr4(cr4) };
    if enabled {
        // SAFETY: they were enabled.
        unsafe { instr::sti() };
    }
    let [set, clear] = seen;
    (
        STATUS_SUCCESS,
        format!("{{\"set\":{set},\"clear\":{clear}}}"),
    )
}

/// Rounds of 50 us after which an NMI that was sent counts as lost.
const LATE_ROUNDS: u32 = 1000;

/// Sends `count` NMIs to one processor or to all, spaced so that they do not
/// coalesce by themselves.
fn nmi(target: Option<&str>, count: Option<u64>) -> (NTSTATUS, String) {
    let count = count.unwrap_or(1);
    let cpus = crate::ke::cpu_count();
    let range = match target {
        Some("all") => 0..cpus,
        other => match number(other).and_then(|cpu| u32::try_from(cpu).ok()) {
            Some(cpu) if cpu < cpus => cpu..cpu + 1,
            _ => return bad(),
        },
    };
    let before = crate::ke::nmi::unclaimed();
    for _ in 0..count {
        for number in range.clone() {
            let id = cpu::of(number as usize)
                .apic_id
                .load(core::sync::atomic::Ordering::Relaxed);
            apic::send_nmi(id);
        }
        crate::hal::clock::stall(50);
    }
    let sent = count * u64::from(range.end - range.start);
    // A processor below a hypervisor may take its last ones late.
    for _ in 0..LATE_ROUNDS {
        if crate::ke::nmi::unclaimed() - before >= sent {
            break;
        }
        crate::hal::clock::stall(50);
    }
    let total = crate::ke::nmi::unclaimed();
    let unclaimed = total - before;
    (
        STATUS_SUCCESS,
        format!("{{\"sent\":{sent},\"unclaimed\":{unclaimed},\"total\":{total}}}"),
    )
}
