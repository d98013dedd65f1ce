//! The end of a broken system: code, parameters, registers and stack on COM1,
//! then exit code 0xBC for the lab.

use core::fmt;

use crate::hal::{power, serial};

/// `DRIVER_VERIFIER_DETECTED_VIOLATION`.
pub const DRIVER_VERIFIER_DETECTED_VIOLATION: u32 = 0xC4;
/// Exit code of a machine that ends in a bugcheck.
pub const EXIT_BUGCHECK: u8 = 0xBC;

/// Ends the machine with this code and these parameters.
pub fn raise(code: u32, parameters: [u64; 4]) -> ! {
    let [p1, p2, p3, p4] = parameters;
    serial::log(format_args!("*** STOP: 0x{code:08X} (0x{p1:016X}, 0x{p2:016X}, 0x{p3:016X}, 0x{p4:016X})"));
    power::exit(EXIT_BUGCHECK)
}

/// Ends the machine because a caller broke a documented rule of `api`.
pub fn violation(api: &str, rule: fmt::Arguments<'_>) -> ! {
    serial::log(format_args!("*** RULE {api}: {rule}"));
    raise(DRIVER_VERIFIER_DETECTED_VIOLATION, [0; 4])
}
