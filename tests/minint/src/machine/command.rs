//! The commands of a `Machine` frame.

use alloc::format;
use alloc::string::{String, ToString};

use wdk_standin::wdk_sys::NTSTATUS;

use super::{report, shut_down, state, workload};
use crate::hal::{apic, cpu};
use crate::ke::bugcheck;
use crate::link::Origin;
use crate::rtl::status::{STATUS_INVALID_PARAMETER, STATUS_NOT_FOUND, STATUS_SUCCESS};

const HELP: &str = "shutdown CODE, modules, memory, threads, services, objects, bugcheck CODE, nmi CPU|all N, workload NAME N, power suspend|resume, state";

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
        "nmi" => nmi(words.next(), number(words.next())),
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
    let unclaimed = crate::ke::nmi::unclaimed() - before;
    (
        STATUS_SUCCESS,
        format!("{{\"sent\":{sent},\"unclaimed\":{unclaimed}}}"),
    )
}
