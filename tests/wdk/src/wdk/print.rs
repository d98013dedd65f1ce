//! Text to the debugger through `DbgPrint`, in pieces of at most 511 bytes.
//!
//! No heap, no lock: each call formats on its own stack. IRQL as `DbgPrint`.

use core::fmt::{self, Write};

use crate::wdk_sys::{CHAR, ntddk::DbgPrint};

/// One `DbgPrint` takes 512 bytes with the terminating zero.
const PIECE: usize = 512;

struct Pieces {
    bytes: [u8; PIECE],
    used: usize,
}

impl Pieces {
    fn flush(&mut self) {
        if self.used == 0 {
            return;
        }
        self.bytes[self.used] = 0;
        let text: *const CHAR = self.bytes.as_ptr().cast();
        // SAFETY: both strings end with a zero; the text is no format string.
        let _ = unsafe { DbgPrint(c"%s".as_ptr().cast(), text) };
        self.used = 0;
    }
}

impl Write for Pieces {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let length = character.len_utf8();
            if self.used + length >= PIECE {
                self.flush();
            }
            character.encode_utf8(&mut self.bytes[self.used..]);
            self.used += length;
        }
        Ok(())
    }
}

/// What the print macros expand to.
#[doc(hidden)]
pub fn _print(arguments: fmt::Arguments) {
    let mut pieces = Pieces {
        bytes: [0; PIECE],
        used: 0,
    };
    // Only a failing `Display` can make this fail; a part of the text is fine.
    let _ = fmt::write(&mut pieces, arguments);
    pieces.flush();
}

/// `wdk::print!`.
#[doc(hidden)]
#[macro_export]
macro_rules! __wdk_print {
    ($($argument:tt)*) => { $crate::wdk::_print(format_args!($($argument)*)) };
}

/// `wdk::println!`.
#[doc(hidden)]
#[macro_export]
macro_rules! __wdk_println {
    () => { $crate::wdk::print!("\n") };
    ($($argument:tt)*) => { $crate::wdk::print!("{}\n", format_args!($($argument)*)) };
}

/// `wdk::dbg!`.
#[doc(hidden)]
#[macro_export]
macro_rules! __wdk_dbg {
    () => {
        $crate::wdk::println!("[{}:{}:{}]", core::file!(), core::line!(), core::column!())
    };
    ($value:expr $(,)?) => {
        match $value {
            value => {
                $crate::wdk::println!(
                    "[{}:{}:{}] {} = {:#?}",
                    core::file!(),
                    core::line!(),
                    core::column!(),
                    core::stringify!($value),
                    &&value as &dyn core::fmt::Debug,
                );
                value
            }
        }
    };
    ($($value:expr),+ $(,)?) => { ($($crate::wdk::dbg!($value)),+,) };
}
