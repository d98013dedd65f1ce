//! Disassembly and hexadecimal dump of evidence.

use crate::record::{Record, hex_bytes, unhex, unhex_bytes};
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use serde::Serialize;
use std::fmt::Write;

/// Instructions shown.
const INSTRUCTIONS: usize = 24;

/// A decoded instruction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Instruction {
    pub(crate) address: String,
    pub(crate) bytes: String,
    pub(crate) text: String,
}

/// A piece of code with a heading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Listing {
    pub(crate) title: &'static str,
    pub(crate) instructions: Vec<Instruction>,
}

/// Decodes up to `most` instructions of 64-bit code.
fn disassemble(bytes: &[u8], address: u64, most: usize) -> Vec<Instruction> {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_small_hex_numbers_in_decimal(false);
    options.set_space_after_operand_separator(true);
    let decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    decoder
        .into_iter()
        .take(most)
        .map(|instruction| {
            let start = usize::try_from(instruction.ip().wrapping_sub(address)).unwrap_or(0);
            let raw = bytes.get(start..start + instruction.len());
            let mut text = String::new();
            if instruction.is_invalid() {
                text.push_str("(bad)");
            } else {
                formatter.format(&instruction, &mut text);
            }
            Instruction {
                address: format!("{:016x}", instruction.ip()),
                bytes: hex_bytes(raw.unwrap_or(&[])),
                text,
            }
        })
        .collect()
}

/// The listings that explain a finding: the code at RIP, and for a write the
/// victim's code before and after.
pub(crate) fn listings(record: &Record, page: Option<&[u8; 4096]>) -> Vec<Listing> {
    let mut out = Vec::new();
    let mut add = |title, bytes: &[u8], address, most| {
        let instructions = disassemble(bytes, address, most);
        if !instructions.is_empty() {
            out.push(Listing {
                title,
                instructions,
            });
        }
    };
    let rip = unhex(&record.rip).unwrap_or(0);
    let executed = record.write.is_none();
    let code = record.code.as_deref().and_then(unhex_bytes);
    match page {
        Some(page) if executed && covers_rip(record) => {
            add("Code at RIP", &page[offset(rip)..], rip, INSTRUCTIONS);
        }
        _ => add("Code at RIP", &code.unwrap_or_default(), rip, 4),
    }
    let (Some(write), Some(old), Some(new)) = (&record.write, &record.old, &record.new) else {
        return out;
    };
    let victim = record.victim.address.as_deref().or(record.gla.as_deref());
    let address = victim.and_then(unhex).unwrap_or(u64::from(write.offset));
    let old = unhex_bytes(old).unwrap_or_default();
    let new = unhex_bytes(new).unwrap_or_default();
    // The page was kept after the write: what lies around the written bytes lets
    // the first instruction decode from its beginning, when that is known, and
    // the last as it would have run.
    let start = offset(u64::from(write.offset));
    let lead = lead(record).filter(|lead| *lead <= start);
    let (head, tail) = page.map_or((&[][..], &[][..]), |page| {
        let end = (start + new.len()).min(4096);
        let head = &page[start - lead.unwrap_or(0)..start];
        (head, &page[end..(end + 32).min(4096)])
    });
    let address = address.wrapping_sub(head.len() as u64);
    add("Before", &[head, &old, tail].concat(), address, 8);
    add("After", &[head, &new, tail].concat(), address, 8);
    out
}

/// Bytes from the victim's export to the first that changed, if they are few: an
/// inline hook often keeps the first byte of the function by chance.
fn lead(record: &Record) -> Option<usize> {
    const MOST: u64 = 15;
    let distance = record.victim.export_offset.as_deref().and_then(unhex)?;
    usize::try_from(distance).ok().filter(|_| distance <= MOST)
}

fn offset(address: u64) -> usize {
    usize::try_from(address & 0xfff).unwrap_or(0)
}

/// The page is the one that RIP points into (not the next one, into which the
/// instruction crosses).
fn covers_rip(record: &Record) -> bool {
    let rip = unhex(&record.rip);
    let gla = record.gla.as_deref().map_or(rip, unhex);
    rip.map(|a| a >> 12) == gla.map(|a| a >> 12)
}

/// Listings as text.
pub(crate) fn listing_text(listings: &[Listing]) -> String {
    let mut out = String::new();
    for listing in listings {
        // Writing to a String cannot fail; nor below.
        let _ = writeln!(out, "\n{}", listing.title);
        for i in &listing.instructions {
            let _ = writeln!(out, "  {}  {:<30}  {}", i.address, i.bytes, i.text);
        }
    }
    out
}

/// Where in the page the interest lies.
pub(crate) fn focus(record: &Record) -> usize {
    match &record.write {
        Some(write) => offset(u64::from(write.offset)),
        None => offset(unhex(&record.gpa).unwrap_or(0)),
    }
}

/// A dump of 256 bytes around `focus`, or of the whole page.
pub(crate) fn dump(page: &[u8; 4096], focus: usize, full: bool) -> String {
    let rows = 4096 / 16;
    let range = if full {
        0..rows
    } else {
        let first = (focus / 16).saturating_sub(4).min(rows - 16);
        first..first + 16
    };
    let mut out = String::from("\nPage\n");
    for (row, bytes) in page.chunks_exact(16).enumerate() {
        if !range.contains(&row) {
            continue;
        }
        let _ = write!(out, "  {:03x} ", row * 16);
        for byte in bytes {
            let _ = write!(out, " {byte:02x}");
        }
        let text: String = bytes
            .iter()
            .map(|b| char::from(*b))
            .map(|c| {
                if c.is_ascii_graphic() || c == ' ' {
                    c
                } else {
                    '.'
                }
            })
            .collect();
        let _ = writeln!(out, "  |{text}|");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Written;
    use crate::record::tests::{hook, unbacked};

    fn page() -> Box<[u8; 4096]> {
        let mut page = Box::new([0x90; 4096]);
        page[0x10..0x1a].copy_from_slice(&[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8]);
        page[0x1a..0x1c].copy_from_slice(&[0xff, 0xe0]);
        page[0x44..0x49].copy_from_slice(&[0xe9, 1, 2, 3, 4]);
        page
    }

    #[test]
    fn the_code_that_ran() {
        let listings = listings(&Record::from(&unbacked()), Some(&page()));
        let first: Vec<_> = listings[0].instructions[..3]
            .iter()
            .map(|i| (i.address.as_str(), i.text.as_str()))
            .collect();
        assert_eq!(
            first,
            [
                ("ffff900000001010", "mov rax, 0x807060504030201"),
                ("ffff90000000101a", "jmp rax"),
                ("ffff90000000101c", "nop"),
            ]
        );
        assert_eq!(listings.len(), 1);
    }

    #[test]
    fn a_hook_before_and_after() {
        let text = listing_text(&listings(&Record::from(&hook()), Some(&page())));
        assert_eq!(text, include_str!("../snapshots/hook-listing.txt"));
    }

    #[test]
    fn a_hook_that_keeps_the_first_byte_is_listed_from_the_function() {
        let mut record = Record::from(&hook());
        record.write = Some(Written {
            offset: 0x45,
            length: 4,
        });
        record.victim.address = Some("0xfffff80010001045".into());
        record.victim.export_offset = Some("0x1".into());
        (record.old, record.new) = (Some("11223344".into()), Some("01020304".into()));
        let listings = listings(&record, Some(&page()));
        let [before, after] = &listings[listings.len() - 2..] else {
            panic!("two listings");
        };
        assert_eq!(before.instructions[0].bytes, "e911223344");
        assert_eq!(after.instructions[0].text, "jmp 0xfffff8001403124a");
    }

    #[test]
    fn without_a_page_the_bytes_at_rip_do() {
        let listings = listings(&Record::from(&unbacked()), None);
        assert_eq!(listings[0].instructions.len(), 3);
    }

    #[test]
    fn dumps_stay_inside_the_page() {
        let page = page();
        assert_eq!(dump(&page, 0, true).lines().count(), 2 + 256);
        for focus in [0, 0x44, 0xfff] {
            let text = dump(&page, focus, false);
            assert_eq!(text.lines().count(), 2 + 16);
            assert!(
                text.contains(&format!("\n  {:03x} ", focus & !0xf)),
                "{focus:#x}"
            );
        }
        assert!(dump(&page, 0x44, false).contains("  040  90 90 90 90 e9 01 02 03 04"));
    }
}
