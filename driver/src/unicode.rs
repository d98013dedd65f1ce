//! Constant UTF-16 text as the `UNICODE_STRING`s that NT takes.
//!
//! Pure values; callable anywhere.

use crate::wdk_crates::wdk_sys::UNICODE_STRING;

/// UTF-16 of an ASCII text. `N` is its length.
pub(crate) const fn utf16<const N: usize>(ascii: &str) -> [u16; N] {
    let bytes = ascii.as_bytes();
    assert!(bytes.len() == N, "N is the length of the text");
    let mut units = [0; N];
    let mut index = 0;
    while index < N {
        assert!(bytes[index].is_ascii(), "ASCII only");
        units[index] = bytes[index] as u16;
        index += 1;
    }
    units
}

/// A constant text that lives as long as the image.
macro_rules! wide {
    ($text:expr) => {{
        const LENGTH: usize = $text.len();
        static TEXT: [u16; LENGTH] = $crate::unicode::utf16::<LENGTH>($text);
        $crate::unicode::unicode_string(&TEXT)
    }};
}
pub(crate) use wide;

/// The string that NT takes; nobody writes through it.
pub(crate) fn unicode_string(text: &'static [u16]) -> UNICODE_STRING {
    let bytes = u16::try_from(size_of_val(text)).unwrap_or(0);
    UNICODE_STRING {
        Length: bytes,
        MaximumLength: bytes,
        Buffer: text.as_ptr().cast_mut(),
    }
}
