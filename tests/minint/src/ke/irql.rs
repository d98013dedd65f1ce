//! Interrupt request levels: CR8 is the IRQL, as on every 64-bit NT.
//!
//! No data; any IRQL. The checks at the door of each export stand here too.

use crate::hal::instr;

/// Threads run.
pub const PASSIVE_LEVEL: u8 = 0;
/// No APC is delivered.
pub const APC_LEVEL: u8 = 1;
/// No thread switch; DPCs run here.
pub const DISPATCH_LEVEL: u8 = 2;
/// Device interrupts of the I/O APIC.
pub const DEVICE_LEVEL: u8 = 5;
/// The LAPIC timer.
pub const CLOCK_LEVEL: u8 = 13;
/// Interrupts between processors.
pub const IPI_LEVEL: u8 = 14;
/// Nothing but NMI and machine check.
pub const HIGH_LEVEL: u8 = 15;

/// The current IRQL.
pub fn current() -> u8 {
    (instr::read_cr8() & 15) as u8
}

/// Raises to `level` and returns the level before; never lowers.
pub(crate) fn raise(level: u8) -> u8 {
    let old = current();
    debug_assert!(level >= old);
    // SAFETY: masking interrupts delays them only.
    unsafe { instr::write_cr8(u64::from(level)) };
    old
}

/// Lowers to `level`, what `raise` returned.
pub(crate) fn lower(level: u8) {
    // SAFETY: the level is one that this code ran at before.
    unsafe { instr::write_cr8(u64::from(level)) };
}

/// Bugchecks unless the IRQL is at most `max`.
#[track_caller]
pub fn require_irql(max: u8, api: &str) {
    let now = current();
    if now > max {
        super::bugcheck::violation(api, format_args!("IRQL {now}, at most {max} is allowed"));
    }
}

/// Bugchecks unless the IRQL is `level`.
#[track_caller]
pub fn require_irql_exact(level: u8, api: &str) {
    let now = current();
    if now != level {
        super::bugcheck::violation(api, format_args!("IRQL {now}, {level} is required"));
    }
}
