//! Ring-3 programs on request of the host.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use lab_link::ProgramOp;

use super::Origin;
use crate::ke::spinlock::SpinLock;
use crate::ps::user;
use crate::rtl::status::{STATUS_OBJECT_NAME_NOT_FOUND, STATUS_SUCCESS};

/// Programs that were started here, by name.
static STARTED: SpinLock<Vec<(String, u32)>> = SpinLock::new(Vec::new());

fn take(name: &str) -> Option<u32> {
    let mut started = STARTED.lock();
    let wanted = name.parse::<u32>().ok();
    let at = started
        .iter()
        .position(|(other, pid)| other == name || wanted == Some(*pid))?;
    Some(started.remove(at).1)
}

/// Runs a program, ends it, or (argument `wait`) waits for its end.
pub(super) fn serve(origin: Origin, op: ProgramOp, name: &str, argument: &str) {
    match op {
        ProgramOp::Run => match user::start(name, argument.trim().parse().unwrap_or(0)) {
            Ok(pid) => {
                STARTED.lock().push((name.to_string(), pid));
                origin.reply(STATUS_SUCCESS, u64::from(pid), &[]);
            }
            Err(status) => origin.reply(status, 0, user::names().join(" ").as_bytes()),
        },
        ProgramOp::Stop => {
            let code = take(name).and_then(|pid| {
                if argument == "wait" {
                    user::wait(pid)
                } else {
                    user::stop(pid)
                }
            });
            match code {
                Some(code) => origin.reply(STATUS_SUCCESS, u64::from(code), &[]),
                None => origin.reply(STATUS_OBJECT_NAME_NOT_FOUND, 0, b"no such program"),
            }
        }
    }
}
