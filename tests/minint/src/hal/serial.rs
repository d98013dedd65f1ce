//! The log: whole lines on COM1, 115200 baud, 8N1.
//!
//! Owner of the UART is this file. A line is formatted on the caller's stack and
//! written under one lock with interrupts off, so lines of several processors do
//! not mix. Any IRQL, also in an NMI or in a bugcheck: the lock is then taken by
//! force after a bounded wait, because a mixed line beats a silent death.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use super::instr;

const COM1: u16 = 0x3F8;
/// Turns before the lock is taken by force.
const PATIENCE: u32 = 20_000_000;
/// Longest line in bytes; more is cut.
const LINE: usize = 480;

static BUSY: AtomicBool = AtomicBool::new(false);

fn port_out(offset: u16, value: u8) {
    // SAFETY: COM1 belongs to this file.
    unsafe { instr::outb(COM1 + offset, value) };
}

fn port_in(offset: u16) -> u8 {
    // SAFETY: COM1 belongs to this file.
    unsafe { instr::inb(COM1 + offset) }
}

/// Sets the line up; before the first log line.
pub(crate) fn initialize() {
    port_out(1, 0x00);
    port_out(3, 0x80);
    port_out(0, 1);
    port_out(1, 0);
    port_out(3, 0x03);
    port_out(2, 0xC7);
    port_out(4, 0x0B);
}

fn put(byte: u8) {
    // An absent or dead UART must not hang the kernel.
    for _ in 0..1_000_000 {
        if port_in(5) & 0x20 != 0 {
            break;
        }
        instr::pause();
    }
    port_out(0, byte);
}

/// Writes `text` and a line end.
pub fn write_line(text: &str) {
    let were_on = instr::cli();
    let mut forced = false;
    let mut turns = 0;
    while BUSY
        .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        instr::pause();
        turns += 1;
        if turns == PATIENCE {
            forced = true;
            break;
        }
    }
    for byte in text.bytes() {
        if byte == b'\n' {
            put(b'\r');
        }
        put(byte);
    }
    put(b'\r');
    put(b'\n');
    if !forced {
        BUSY.store(false, Ordering::Release);
    }
    if were_on {
        // SAFETY: interrupts were on when the caller came.
        unsafe { instr::sti() };
    }
}

struct Line {
    bytes: [u8; LINE],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(slot) = self.bytes.get_mut(self.length) {
                *slot = byte;
                self.length += 1;
            }
        }
        Ok(())
    }
}

/// Writes one line with the processor and the IRQL in front; [`crate::log!`] is the way to call it.
pub fn log(text: fmt::Arguments<'_>) {
    let mut line = Line {
        bytes: [0; LINE],
        length: 0,
    };
    let cpu = crate::ke::current_cpu();
    let irql = crate::ke::irql::current();
    let _ = write!(line, "[{cpu} {irql}] {text}");
    // A cut may fall inside a character; what stands before it is still text.
    let whole = line.bytes[..line.length]
        .utf8_chunks()
        .next()
        .map_or("", |chunk| chunk.valid());
    write_line(whole);
}

/// Waits until the last byte has left the transmitter.
pub(crate) fn drain() {
    for _ in 0..10_000_000 {
        if port_in(5) & 0x40 != 0 {
            break;
        }
        instr::pause();
    }
}
