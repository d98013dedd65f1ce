//! What a driver may not leave behind.
//!
//! Two looks at each unload: [`driver_gone`] after `DriverUnload` returned, for
//! what hangs on the driver object; [`unloaded`] before the image goes, for what
//! its code allocated or registered. Everything that is left is named on COM1;
//! anything at all ends the machine with `DRIVER_VERIFIER_DETECTED_VIOLATION`, as
//! the genuine verifier does (sub-code 0x62: allocations; 0x91 and others).
//! PASSIVE_LEVEL; the tables are read through their owners.

use wdk_standin::wdk_sys::{PDEVICE_OBJECT, PDRIVER_OBJECT};

use crate::io::{device, irp, mdl, workitem};
use crate::ke::bugcheck;
use crate::ldr::Module;
use crate::{ex, ldr, mm};

const DRIVER_VERIFIER_DETECTED_VIOLATION: u32 = 0xC4;
/// "A driver has forgotten to free its pool allocations prior to unloading."
const LEFT_BEHIND: u64 = 0x62;

struct Report<'a> {
    who: &'a str,
    count: u64,
}

impl Report<'_> {
    fn add(&mut self, what: core::fmt::Arguments<'_>) {
        self.count += 1;
        log!("*** RULE DriverUnload: {} left {what}", self.who);
    }

    fn end(self) {
        if self.count != 0 {
            bugcheck::raise(
                DRIVER_VERIFIER_DETECTED_VIOLATION,
                [LEFT_BEHIND, 0, 0, self.count],
            );
        }
    }
}

/// Checks what hangs on a driver object whose `DriverUnload` has returned, or
/// whose `DriverEntry` has failed, and what its code has left.
pub(crate) fn driver_gone(driver: PDRIVER_OBJECT) {
    let number = crate::io::driver::module_of(driver);
    let Some(module) = ldr::modules()
        .into_iter()
        .find(|module| module.number == number)
    else {
        return;
    };
    let mut report = Report {
        who: &module.name,
        count: 0,
    };
    for found in device::of_driver(driver) {
        let found: PDEVICE_OBJECT = found;
        report.add(format_args!(
            "the device object {found:p} \"{}\"",
            device::name_of(found)
        ));
    }
    device::links_of(number, &mut |path| {
        report.add(format_args!("the symbolic link \"{path}\""));
    });
    workitem::outstanding(&mut |item, owner| {
        if owner == driver.addr() {
            report.add(format_args!("the work item {item:#x}"));
        }
    });
    irp::alive(&mut |alive| {
        if alive.holder == driver.addr() {
            report.add(format_args!("the request (IRP) {:#x}", alive.irp));
        }
    });
    code(&module, &mut report);
    report.end();
}

/// Checks what the code of a library that is about to go has left.
pub(crate) fn unloaded(module: &Module) {
    let mut report = Report {
        who: &module.name,
        count: 0,
    };
    code(module, &mut report);
    report.end();
}

/// What a module's code allocated or registered and is still there.
fn code(module: &Module, report: &mut Report<'_>) {
    let range = module.base..module.base + module.size;
    mm::pool::outstanding(module.number, &mut |block| {
        let tag = block.tag.to_le_bytes();
        report.add(format_args!(
            "{:?}: {} bytes at {:#x}, tag '{}', allocated at {}+{:#x}",
            block.kind,
            block.bytes,
            block.address,
            core::str::from_utf8(&tag).unwrap_or("?"),
            module.name,
            block.return_address.wrapping_sub(module.base)
        ));
    });
    crate::ke::callbacks::outstanding(range.clone(), &mut |what, address| {
        report.add(format_args!("{what} at {address:#x}"));
    });
    let mut routine = |what: &str, address: usize| {
        if range.contains(&address) {
            report.add(format_args!(
                "{what} (routine {}+{:#x})",
                module.name,
                address - range.start
            ));
        }
    };
    ldr::notify::registered(&mut |address| routine("an image-load notify routine", address));
    ex::notify::registered(&mut |address| routine("a process or thread notify routine", address));
    ex::callback::registered(&mut |address| routine("a callback registration", address));
    crate::po::registered(&mut |address| routine("a power setting callback", address));
    ex::etw::registered(&mut |_, address| routine("an ETW registration", address));
    ex::lookaside::outstanding(&mut |list, owner| {
        if range.contains(&list) || range.contains(&owner) {
            routine(
                "a lookaside list",
                if range.contains(&owner) { owner } else { list },
            );
        }
    });
    mdl::outstanding(&mut |_, owner| routine("an MDL", owner));
    irp::alive(&mut |alive| routine("an allocated IRP", alive.owner));
}
