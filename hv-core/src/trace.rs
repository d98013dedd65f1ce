//! A line of text on the emulator's debug port 0xE9, for the people who work on
//! root mode. Without the feature `trace` there is none of it in the image.

/// Writes a name and some values in hexadecimal.
#[macro_export]
#[doc(hidden)]
macro_rules! trace {
    ($name:literal $(, $value:expr)* $(,)?) => {{
        #[cfg(feature = "trace")]
        $crate::trace::line($name, &[$($value as u64),*]);
    }};
}

/// Writes one line.
#[cfg(feature = "trace")]
pub fn line(name: &str, values: &[u64]) {
    let put = |byte: u8| {
        // SAFETY: the emulator prints the byte; nothing else listens there.
        unsafe { crate::instr::outb(0xE9, byte) };
    };
    name.bytes().for_each(put);
    for value in values {
        put(b' ');
        for shift in (0..16).rev() {
            let digit = (value >> (shift * 4) & 15) as u8;
            put(if digit < 10 {
                b'0' + digit
            } else {
                b'a' + digit - 10
            });
        }
    }
    put(b'\n');
}
