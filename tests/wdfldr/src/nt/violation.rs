//! A driver broke a rule: one line that names it, then WDF_VIOLATION.
//!
//! Any IRQL at which DbgPrintEx may be called; no heap, no lock.
//! Source: Windows drivers, "Bug Check 0x10D: WDF_VIOLATION".

use core::fmt::{self, Write};

use wdk_standin::wdk_sys::{
    CHAR, ULONG_PTR,
    ntddk::{DbgPrintEx, KeBugCheckEx},
};

const WDF_VIOLATION: u32 = 0x10D;
/// DPFLTR_DEFAULT_ID, DPFLTR_ERROR_LEVEL: shown by default.
const COMPONENT: u32 = 101;
const LEVEL: u32 = 0;

/// The first parameter of the bugcheck.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Code {
    /// A function was called at a wrong IRQL, or a callback changed it.
    Irql = 1,
    /// A null or impossible argument.
    Argument = 4,
    /// A handle of the wrong kind, stale or made up.
    Handle = 5,
    /// A request was completed twice, while queued, or while cancelable.
    Request = 6,
    /// A lock was released by a thread that does not hold it, or taken twice.
    Lock = 7,
    /// Objects or requests are left when the driver unbinds.
    Leak = 0xA,
    /// A function that a non-PnP driver has no use for.
    Function = 0xB,
    /// An object was deleted twice or may not be deleted.
    Deletion = 0xC,
    /// The framework itself failed.
    Internal = 0xD,
}

struct Line {
    bytes: [u8; 400],
    used: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.len() - 1 - self.used;
        let text = &text.as_bytes()[..text.len().min(room)];
        self.bytes[self.used..self.used + text.len()].copy_from_slice(text);
        self.used += text.len();
        Ok(())
    }
}

/// One line to the debugger, cut at 399 bytes.
pub(crate) fn print(text: fmt::Arguments) {
    let mut line = Line {
        bytes: [0; 400],
        used: 0,
    };
    let _ = line.write_fmt(text);
    let bytes: *const CHAR = line.bytes.as_ptr().cast();
    // SAFETY: both strings end with a zero, the text is no format string.
    let _ = unsafe { DbgPrintEx(COMPONENT, LEVEL, c"WDF: %s\n".as_ptr().cast(), bytes) };
}

/// Names the rule and stops the machine.
pub(crate) fn raise(code: Code, first: u64, second: u64, rule: fmt::Arguments) -> ! {
    print(format_args!("RULE {rule}"));
    // SAFETY: may be called at any IRQL and does not come back.
    unsafe {
        KeBugCheckEx(
            WDF_VIOLATION,
            code as ULONG_PTR,
            first as ULONG_PTR,
            second as ULONG_PTR,
            0,
        )
    }
}
