//! Counted UTF-16 strings that own their text.

use alloc::{boxed::Box, string::String, vec::Vec};

use wdk_standin::wdk_sys::{PCUNICODE_STRING, UNICODE_STRING};

/// The text keeps its place on the heap, whoever owns the value.
pub(crate) struct Text {
    units: Box<[u16]>,
}

// SAFETY: plain data.
unsafe impl Send for Text {}

impl Text {
    /// Copies; `None` for a null pointer.
    ///
    /// # Safety
    /// `string` is null or a valid UNICODE_STRING.
    pub(crate) unsafe fn copy(string: PCUNICODE_STRING) -> Option<Self> {
        // SAFETY: the caller says so.
        let string = unsafe { string.as_ref() }?;
        let length = usize::from(string.Length) / 2;
        if length == 0 || string.Buffer.is_null() {
            return Some(Self::from_units(&[]));
        }
        // SAFETY: a valid string has `Length` bytes at `Buffer`.
        let units = unsafe { core::slice::from_raw_parts(string.Buffer, length) };
        Some(Self::from_units(units))
    }

    /// Copies and appends the terminating zero that C callers like.
    pub(crate) fn from_units(units: &[u16]) -> Self {
        let mut copy: Vec<u16> = Vec::with_capacity(units.len() + 1);
        copy.extend_from_slice(units);
        copy.push(0);
        Self {
            units: copy.into_boxed_slice(),
        }
    }

    /// Without the terminating zero.
    pub(crate) fn units(&self) -> &[u16] {
        &self.units[..self.units.len() - 1]
    }

    /// A view that the kernel may read as long as `self` lives.
    pub(crate) fn as_unicode(&self) -> UNICODE_STRING {
        let bytes = u16::try_from(self.units().len() * 2).unwrap_or(u16::MAX - 1);
        UNICODE_STRING {
            Length: bytes,
            MaximumLength: bytes,
            Buffer: self.units.as_ptr().cast_mut(),
        }
    }

    pub(crate) fn to_text(&self) -> String {
        String::from_utf16_lossy(self.units())
    }
}
