//! The machine below the kernel: processor tables and instructions, firmware
//! duties, interrupt controllers, clock, the log line, the boot block.
//!
//! Everything here may run at any IRQL unless it says otherwise, and owns only
//! hardware state. Inline assembly stands in `instr` and the entry stubs in
//! `entry`, nowhere else in the crate.

pub mod apic;
pub mod boot;
pub mod clock;
pub mod cmos;
pub mod cpu;
pub mod entry;
pub mod firmware;
pub mod instr;
pub mod ioapic;
pub mod power;
pub mod processors;
pub mod serial;
