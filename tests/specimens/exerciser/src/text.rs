//! The answer's text: lines in a caller's buffer. What does not fit is cut off,
//! and said.

use core::fmt;

/// A buffer that is being filled.
pub(crate) struct Text<'a> {
    bytes: &'a mut [u8],
    length: usize,
    full: bool,
}

impl<'a> Text<'a> {
    /// An empty text.
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Self {
            bytes,
            length: 0,
            full: false,
        }
    }

    /// Bytes written, and whether all was.
    pub(crate) fn finish(self) -> (usize, bool) {
        (self.length, !self.full)
    }
}

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.length..).unwrap_or_default();
        if self.full || room.len() < text.len() {
            self.full = true;
            return Err(fmt::Error);
        }
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        self.length += text.len();
        Ok(())
    }
}

/// A line of the answer. A full buffer is noticed at the end.
#[macro_export]
macro_rules! line {
    ($text:expr, $($arguments:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($text, $($arguments)*);
    }};
}
