//! Hostile text made harmless.
//!
//! A driver's file name may hold anything: terminal escape sequences, line
//! breaks, marks that reverse the writing direction. In text they are spelt out;
//! in JSON everything beyond printable ASCII is a `\u` escape, which loses
//! nothing.

use std::fmt::Write;

/// For a terminal.
pub(crate) fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for c in raw.chars() {
        if c == '\\' {
            out.push_str("\\\\");
        } else if c.is_ascii_graphic() || c == ' ' || (c.is_alphanumeric() && !c.is_ascii()) {
            out.push(c);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
    }
    out
}

/// For JSON that has been serialized: such characters occur in strings only.
pub(crate) fn json(serialized: &str) -> String {
    let mut out = String::with_capacity(serialized.len());
    for c in serialized.chars() {
        if c.is_ascii() && c != '\x7f' {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_are_spelt_out() {
        assert_eq!(text("ev\u{1b}[2Jil\n.sys"), "ev\\u{1b}[2Jil\\u{a}.sys");
        assert_eq!(
            text("a\u{202e}b\u{9b}c\u{200b}"),
            "a\\u{202e}b\\u{9b}c\\u{200b}"
        );
        assert_eq!(text("treiber-ä.sys"), "treiber-ä.sys");
        assert_eq!(text("\\u{1b}"), "\\\\u{1b}", "an escape cannot be forged");
    }

    proptest! {
        #[test]
        fn json_is_ascii_and_loses_nothing(raw: String) {
            let line = json(&serde_json::to_string(&raw).unwrap());
            prop_assert!(line.bytes().all(|b| (0x20..0x7f).contains(&b)));
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), raw);
        }

        #[test]
        fn text_has_no_control_characters(raw: String) {
            prop_assert!(!text(&raw).chars().any(char::is_control));
        }
    }
}
