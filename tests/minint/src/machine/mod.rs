//! The machine as the lab sees it: start of the executive, and text commands.
//!
//! PASSIVE_LEVEL. A command's answer is one JSON object.

mod command;
mod drill;
mod report;
mod state;
mod workload;

pub(crate) use command::command;

use crate::hal::boot;
use crate::{cm, ex, io, ldr, link, mm, ob};

/// Pages of physical memory, for `SYSTEM_BASIC_INFORMATION`.
pub(crate) fn physical_pages() -> u32 {
    u32::try_from(mm::physical::top() / 4096).unwrap_or(u32::MAX)
}

/// Brings the executive up; called by the core on its first system thread, with
/// every processor running.
pub(crate) fn start() {
    ob::start();
    cm::start();
    ldr::start();
    ex::start();
    ldr::kernel_init_discarded();
    mm::discard_init_section();
    // Services to start at boot: `start=a,b`.
    for service in boot::option("start")
        .unwrap_or("")
        .split(',')
        .filter(|name| !name.is_empty())
    {
        let outcome = io::driver::start(service);
        log!("machine: start {service}: {:#010x}", outcome.status);
    }
    for service in boot::option("stop")
        .unwrap_or("")
        .split(',')
        .filter(|name| !name.is_empty())
    {
        let outcome = io::driver::stop(service);
        log!("machine: stop {service}: {:#010x}", outcome.status);
    }
    link::start();
    log!("machine: ready");
    if let Some(code) = boot::option_number("exit") {
        shut_down(code as u8);
    }
}

/// Ends the machine in order: devices that asked for it are told.
pub(crate) fn shut_down(code: u8) -> ! {
    io::shutdown::notify_all();
    link::flush();
    crate::hal::power::exit(code)
}
