//! Ring-3 programs on request of the host.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use lab_link::ProgramOp;

use super::Origin;
use crate::ke::spinlock::SpinLock;
use crate::ps::process::{self, Process};
use crate::ps::user;
use crate::rtl::status::{STATUS_OBJECT_NAME_NOT_FOUND, STATUS_SUCCESS};

/// A program that was started here; the process is referenced, so that its exit
/// code can be read when it has ended by itself.
struct Started {
    name: String,
    pid: u32,
    process: Option<&'static Process>,
}

static STARTED: SpinLock<Vec<Started>> = SpinLock::new(Vec::new());

fn take(name: &str) -> Option<Started> {
    let mut started = STARTED.lock();
    let wanted = name.parse::<u32>().ok();
    let at = started
        .iter()
        .position(|program| program.name == name || wanted == Some(program.pid))?;
    Some(started.remove(at))
}

/// Ends a program, or waits for its end; its exit code.
fn end(program: &Started, wait: bool) -> Option<u32> {
    let code = if wait {
        user::wait(program.pid)
    } else {
        user::stop(program.pid)
    };
    let process = program.process?;
    let ended = process.exit_code.load(Ordering::Acquire).cast_unsigned();
    process::dereference(process);
    Some(code.unwrap_or(ended))
}

/// Runs a program, ends it, or (argument `wait`) waits for its end.
pub(super) fn serve(origin: Origin, op: ProgramOp, name: &str, argument: &str) {
    match op {
        ProgramOp::Run => match user::start(name, argument.trim().parse().unwrap_or(0)) {
            Ok(pid) => {
                let process = process::by_id(pid);
                let name = name.to_string();
                STARTED.lock().push(Started { name, pid, process });
                origin.reply(STATUS_SUCCESS, u64::from(pid), &[]);
            }
            Err(status) => origin.reply(status, 0, user::names().join(" ").as_bytes()),
        },
        ProgramOp::Stop => match take(name) {
            Some(program) => {
                let code = end(&program, argument == "wait").unwrap_or(0);
                origin.reply(STATUS_SUCCESS, u64::from(code), &[]);
            }
            None => origin.reply(STATUS_OBJECT_NAME_NOT_FOUND, 0, b"no such program"),
        },
    }
}
