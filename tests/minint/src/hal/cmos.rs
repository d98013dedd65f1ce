//! CMOS: the size of memory as firmware leaves it there, and the date.
//!
//! Only the bootstrap processor reads it, before the others run; no lock.

use super::instr;

fn read(register: u8) -> u64 {
    // SAFETY: the index port of the RTC belongs to this file; NMI stays enabled (bit 7 clear).
    unsafe { instr::outb(0x70, register) };
    // SAFETY: as above.
    u64::from(unsafe { instr::inb(0x71) })
}

/// End of RAM below the hole at 3 GiB.
pub(crate) fn low_memory_end() -> u64 {
    let above_16m = (read(0x34) | read(0x35) << 8) << 16;
    if above_16m != 0 {
        return (16 << 20) + above_16m;
    }
    (1 << 20) + ((read(0x30) | read(0x31) << 8) << 10)
}

/// Bytes of RAM from 4 GiB upward.
pub(crate) fn high_memory_bytes() -> u64 {
    (read(0x5B) | read(0x5C) << 8 | read(0x5D) << 16) << 16
}

/// Processors that the machine has, where it says so (QEMU); else 1.
pub(crate) fn processors() -> u64 {
    read(0x5F) + 1
}

/// Seconds since 1601-01-01 by the real-time clock, taken as UTC; a clock that
/// gives no valid date yields 2026-01-01.
#[unsafe(link_section = "INIT")]
pub(crate) fn seconds_since_1601() -> u64 {
    let binary = read(0x0B) & 4 != 0;
    let number = |register| {
        let value = read(register);
        if binary {
            value
        } else {
            (value >> 4) * 10 + (value & 15)
        }
    };
    let (year, month, day) = (2000 + number(9) % 100, number(8), number(7));
    let valid = (1..=12).contains(&month) && (1..=31).contains(&day);
    let (year, month, day) = if valid {
        (year, month, day)
    } else {
        (2026, 1, 1)
    };
    // Days since 1601-01-01, a Monday at the start of a 400-year cycle.
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut days = (1601..year)
        .map(|year| 365 + u64::from(leap(year)))
        .sum::<u64>();
    let lengths = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    days += lengths.iter().take(month as usize - 1).sum::<u64>() + day - 1;
    ((days * 24 + number(4) % 24) * 60 + number(2) % 60) * 60 + number(0) % 60
}
