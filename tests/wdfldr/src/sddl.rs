//! Security descriptors in SDDL, as far as `WdfControlDeviceInitAllocate` and
//! `WdfDeviceInitAssignSDDLString` take them: `D:P(A;;GA;;;SY)(A;;GA;;;BA)`.
//!
//! Pure: text in, entries out. The device keeps the result and asks it once for
//! each open. Source: Windows SDK, "Security Descriptor String Format" and "ACE
//! Strings"; Windows drivers, "SDDL for Device Objects".

use alloc::vec::Vec;

/// GENERIC_ALL, GENERIC_READ, … as bits of an ACCESS_MASK.
const GENERIC: [(&[u8; 2], u32); 4] = [
    (b"GA", 0x1000_0000),
    (b"GX", 0x2000_0000),
    (b"GW", 0x4000_0000),
    (b"GR", 0x8000_0000),
];

/// The two-letter accounts that device objects may name.
const ACCOUNTS: [&[u8; 2]; 11] = [
    b"SY", b"BA", b"WD", b"BU", b"BG", b"AU", b"LS", b"NS", b"IU", b"RC", b"UD",
];

/// One access-control entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Allows, or denies.
    pub(crate) allow: bool,
    /// The rights, generic or plain.
    pub(crate) rights: u32,
    /// The account's two letters.
    pub(crate) account: [u8; 2],
}

/// A discretionary access-control list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// `P`: nothing is inherited.
    pub(crate) protected: bool,
    /// In order.
    pub(crate) entries: Vec<Entry>,
}

impl Descriptor {
    /// Reads the text; `None` where it is not SDDL for a device object.
    pub(crate) fn parse(text: &[u16]) -> Option<Self> {
        let text: Vec<u8> = text
            .iter()
            .map(|unit| u8::try_from(*unit).ok().filter(u8::is_ascii))
            .collect::<Option<_>>()?;
        let mut rest = text.strip_prefix(b"D:")?;
        let mut protected = false;
        while let Some((flag, tail)) = rest.split_first().filter(|(first, _)| **first != b'(') {
            protected |= *flag == b'P';
            if !b"PAIR".contains(flag) {
                return None;
            }
            rest = tail;
        }
        let mut entries = Vec::new();
        while let Some(tail) = rest.strip_prefix(b"(") {
            let end = tail.iter().position(|byte| *byte == b')')?;
            entries.push(entry(&tail[..end])?);
            rest = &tail[end + 1..];
        }
        rest.is_empty().then_some(Self { protected, entries })
    }

    /// Whether a caller who holds these accounts may open at all.
    pub(crate) fn opens_to(&self, accounts: &[&[u8; 2]]) -> bool {
        for entry in &self.entries {
            if accounts.contains(&&entry.account) {
                return entry.allow;
            }
        }
        false
    }
}

fn entry(text: &[u8]) -> Option<Entry> {
    let mut fields = text.split(|byte| *byte == b';');
    let allow = match fields.next()? {
        b"A" => true,
        b"D" => false,
        _ => return None,
    };
    let _flags = fields.next()?;
    let rights = rights(fields.next()?)?;
    let (_object, _inherited) = (fields.next()?, fields.next()?);
    let account: [u8; 2] = fields.next()?.try_into().ok()?;
    (fields.next().is_none() && ACCOUNTS.contains(&&account)).then_some(Entry {
        allow,
        rights,
        account,
    })
}

fn rights(text: &[u8]) -> Option<u32> {
    if let Some(digits) = text.strip_prefix(b"0x") {
        return u32::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok();
    }
    text.chunks(2).try_fold(0, |bits, pair| {
        let (_, bit) = GENERIC.iter().find(|(name, _)| name.as_slice() == pair)?;
        Some(bits | bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Descriptor> {
        Descriptor::parse(&text.encode_utf16().collect::<Vec<_>>())
    }

    #[test]
    fn the_administrators_descriptor_is_read_entry_by_entry() {
        let descriptor = parse("D:P(A;;GA;;;SY)(A;;GRGW;;;BA)").expect("valid");
        assert!(descriptor.protected);
        assert_eq!(descriptor.entries.len(), 2);
        assert_eq!(
            descriptor.entries[1],
            Entry {
                allow: true,
                rights: 0xC000_0000,
                account: *b"BA"
            }
        );
    }

    #[test]
    fn access_is_decided_by_the_first_entry_that_names_the_caller() {
        let descriptor = parse("D:P(D;;GA;;;BU)(A;;GA;;;WD)").expect("valid");
        assert!(!descriptor.opens_to(&[b"BU", b"WD"]));
        assert!(descriptor.opens_to(&[b"BA", b"WD"]));
        assert!(!parse("D:P").expect("valid").opens_to(&[b"BA"]));
    }

    #[test]
    fn what_is_not_sddl_is_refused() {
        for text in [
            "",
            "D:Q",
            "O:BA",
            "D:P(A;;GA;;;SY",
            "D:P(A;;ZZ;;;SY)",
            "D:P(A;;GA;;;XX)",
            "D:P(A;;GA;;SY)",
            "D:P(A;;GA;;;SY)x",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
