//! A finding as the tool knows it: the JSON object of `watch --json` and of the
//! log, schema 1.
//!
//! Made from the driver's structure or read back from a log line. Addresses and
//! offsets are hexadecimal strings, because JSON numbers end at 2^53; absent
//! parts are null. Fields are only ever added; what an older or newer log lacks
//! is read as null.

use crate::time::rfc3339;
use detector::event::GPR_RSP;
use detector::wire::{Finding, FindingFlags, ImageChange, Place};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Version of the object.
pub(crate) const SCHEMA: u32 = 1;

/// A finding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) schema: u32,
    pub(crate) seq: u64,
    pub(crate) kind: String,
    pub(crate) severity: String,
    pub(crate) core: u32,
    pub(crate) time: String,
    pub(crate) rip: String,
    pub(crate) gla: Option<String>,
    pub(crate) gpa: String,
    pub(crate) cpl: u8,
    pub(crate) cr3: String,
    pub(crate) actor: Site,
    pub(crate) victim: Site,
    pub(crate) return_address: Option<String>,
    pub(crate) old: Option<String>,
    pub(crate) new: Option<String>,
    pub(crate) sha256: Option<String>,
    pub(crate) count: u64,
    #[serde(rename = "return", default)]
    pub(crate) returns: Site,
    #[serde(default)]
    pub(crate) mitre: Option<String>,
    #[serde(default)]
    pub(crate) process: Option<u64>,
    #[serde(default)]
    pub(crate) rsp: Option<String>,
    #[serde(default)]
    pub(crate) rflags: Option<String>,
    #[serde(default)]
    pub(crate) tsc: Option<u64>,
    #[serde(default)]
    pub(crate) write: Option<Written>,
    #[serde(default)]
    pub(crate) code: Option<String>,
    #[serde(default)]
    pub(crate) registers: Option<Registers>,
    #[serde(default)]
    pub(crate) flags: Vec<String>,
    #[serde(default)]
    pub(crate) timeline: Vec<Image>,
    /// The unloaded module that lay where there is none now.
    #[serde(default)]
    pub(crate) earlier: Option<Image>,
}

/// Where an address lies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Site {
    pub(crate) module: Option<String>,
    pub(crate) section: Option<String>,
    /// From the module's base.
    pub(crate) offset: Option<String>,
    #[serde(default)]
    pub(crate) export: Option<String>,
    /// From the export.
    #[serde(default)]
    pub(crate) export_offset: Option<String>,
    #[serde(default)]
    pub(crate) address: Option<String>,
    #[serde(default)]
    pub(crate) base: Option<String>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Written {
    /// In its page.
    pub(crate) offset: u32,
    /// Bytes in all; `old` and `new` may hold fewer.
    pub(crate) length: u32,
}

/// An image that came or went shortly before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Image {
    pub(crate) change: String,
    pub(crate) time: String,
    /// Milliseconds before the finding.
    pub(crate) before_ms: u64,
    pub(crate) name: String,
    pub(crate) base: String,
    pub(crate) size: u32,
}

/// `0x` and hexadecimal digits.
pub(crate) fn hex(value: u64) -> String {
    format!("{value:#x}")
}

/// Hexadecimal digits, two a byte.
pub(crate) fn hex_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// The number behind `hex`.
pub(crate) fn unhex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The bytes behind `hex_bytes`.
pub(crate) fn unhex_bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    digits
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

fn name(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Site {
    fn new(place: &Place) -> Site {
        if place.present == 0 {
            return Site::default();
        }
        let module = place.module().map(name);
        let known = module.is_some();
        let export = place.export().map(name);
        Site {
            section: place.section().map(name),
            offset: known.then(|| hex(place.offset.into())),
            export_offset: export.is_some().then(|| hex(place.export_offset.into())),
            export,
            address: Some(hex(place.address)),
            base: known.then(|| hex(place.base)),
            module,
        }
    }
}

impl Image {
    fn new(change: &ImageChange, found: u64) -> Image {
        Image {
            change: match change.change {
                ImageChange::LOADED => "loaded".to_owned(),
                _ => "unloaded".to_owned(),
            },
            time: rfc3339(change.time),
            before_ms: found.saturating_sub(change.time) / 10_000,
            name: name(change.name()),
            base: hex(change.base),
            size: change.size,
        }
    }
}

macro_rules! registers {
    ($($name:ident)*) => {
        /// The general-purpose registers, in encoding order.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub(crate) struct Registers { $(pub(crate) $name: String,)* }

        impl Registers {
            fn new(values: [u64; 16]) -> Registers {
                let [$($name,)*] = values;
                Registers { $($name: hex($name),)* }
            }

            /// Names and values in encoding order.
            pub(crate) fn named(&self) -> [(&'static str, &str); 16] {
                [$((stringify!($name), &self.$name),)*]
            }
        }
    };
}

registers! { rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 }

const FLAGS: [(FindingFlags, &str); 5] = [
    (FindingFlags::EVIDENCE, "evidence"),
    (FindingFlags::STEPPED, "stepped"),
    (FindingFlags::LONG_MODE, "long-mode"),
    (FindingFlags::AT_START, "at-start"),
    (FindingFlags::BENIGN_CLASS, "benign-class"),
];

impl From<&Finding> for Record {
    fn from(f: &Finding) -> Record {
        let has = |flag| f.flags().contains(flag);
        let kind = f.kind();
        let returns = Site::new(&f.returns);
        Record {
            schema: SCHEMA,
            seq: f.seq,
            kind: kind.map_or_else(|| format!("unknown-{}", f.kind), |k| k.as_str().to_owned()),
            severity: f.severity().as_str().to_owned(),
            core: f.core,
            time: rfc3339(f.time),
            rip: hex(f.rip),
            gla: has(FindingFlags::GLA).then(|| hex(f.gla)),
            gpa: hex(f.gpa),
            cpl: f.cpl,
            cr3: hex(f.cr3),
            actor: Site::new(&f.actor),
            victim: Site::new(&f.victim),
            return_address: returns.address.clone(),
            old: f.old().map(hex_bytes),
            new: f.new_bytes().map(hex_bytes),
            sha256: has(FindingFlags::EVIDENCE).then(|| hex_bytes(&f.sha256)),
            count: f.count,
            returns,
            mitre: kind.map(|k| k.mitre().to_owned()),
            process: (f.process != 0).then_some(f.process),
            rsp: Some(hex(f.rsp)),
            rflags: Some(hex(f.rflags)),
            tsc: Some(f.tsc),
            write: (f.write_length != 0).then_some(Written {
                offset: f.write_offset,
                length: f.write_length,
            }),
            code: (!f.code().is_empty()).then(|| hex_bytes(f.code())),
            registers: has(FindingFlags::GPRS).then(|| {
                let mut values = f.gprs;
                // The processor keeps RSP elsewhere than the other registers.
                values[GPR_RSP] = f.rsp;
                Registers::new(values)
            }),
            flags: FLAGS
                .iter()
                .filter(|(flag, _)| has(*flag))
                .map(|(_, name)| (*name).to_owned())
                .collect(),
            timeline: f.timeline().map(|c| Image::new(c, f.time)).collect(),
            earlier: f.earlier().map(|c| Image::new(c, f.time)),
        }
    }
}

impl Record {
    /// One line of JSON, printable ASCII only.
    pub(crate) fn json(&self) -> String {
        // A record holds no map with other keys than strings and no value whose
        // serialization can fail.
        crate::escape::json(&serde_json::to_string(self).unwrap_or_default())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use detector::event::Kind;
    use zerocopy::FromZeros;

    fn place(address: u64, module: &[u8], section: &[u8], export: &[u8]) -> Place {
        let mut place = Place::new_zeroed();
        place.present = 1;
        place.address = address;
        place.base = address & !0xff_ffff;
        place.offset = u32::try_from(address & 0xff_ffff).unwrap();
        place.module[..module.len()].copy_from_slice(module);
        place.module_length = u8::try_from(module.len()).unwrap();
        place.section[..section.len()].copy_from_slice(section);
        place.section_length = u8::try_from(section.len()).unwrap();
        place.export[..export.len()].copy_from_slice(export);
        place.export_length = u8::try_from(export.len()).unwrap();
        place.export_offset = 4;
        place
    }

    /// Code in pool, called from the kernel.
    pub(crate) fn unbacked() -> Finding {
        let mut f = Finding::new_zeroed();
        f.seq = 1;
        f.time = 133_800_000_001_234_567;
        f.count = 1;
        f.kind = Kind::UnbackedExecution as u16;
        f.severity = Kind::UnbackedExecution.severity() as u8;
        f.core = 2;
        f.rip = 0xffff_9000_0000_1010;
        f.gla = f.rip;
        f.gpa = 0x0123_4010;
        f.cr3 = 0x1a_d000;
        f.rsp = 0xffff_9000_0010_0000;
        f.rflags = 0x246;
        f.actor = place(f.rip, b"", b"", b"");
        f.victim = f.actor;
        f.returns = place(
            0xffff_f800_1000_1044,
            b"ntoskrnl.exe",
            b".text",
            b"IofCallDriver",
        );
        f.code = [0x90; 16];
        f.code_bytes = 3;
        f.earlier.change = ImageChange::UNLOADED;
        f.earlier.time = f.time - 20_000_000;
        f.earlier.base = 0xffff_9000_0000_0000;
        f.earlier.size = 0x5000;
        f.earlier.name[..8].copy_from_slice(b"gone.sys");
        f.earlier.name_length = 8;
        f.gprs[0] = 0xfeed;
        f.sha256 = [0xab; 32];
        f.flags = (FindingFlags::GLA | FindingFlags::EVIDENCE | FindingFlags::GPRS).bits();
        f
    }

    /// An inline hook by a driver with a hostile name, which has left again.
    pub(crate) fn hook() -> Finding {
        let mut f = unbacked();
        f.seq = 2;
        f.count = 4;
        f.kind = Kind::ModuleCodeWrite as u16;
        f.severity = Kind::ModuleCodeWrite.severity() as u8;
        f.gla = 0xffff_a000_0000_0044;
        f.actor = place(0xffff_f800_3000_1234, b"ev\x1b[2Jil.sys", b".text", b"");
        f.victim = place(
            0xffff_f800_1000_1044,
            b"ntoskrnl.exe",
            b".text",
            b"NtAddAtom",
        );
        f.returns = Place::new_zeroed();
        f.earlier = ImageChange::new_zeroed();
        f.process = 4;
        f.write_offset = 0x44;
        f.write_length = 5;
        f.write_bytes = 5;
        f.old[..5].copy_from_slice(&[0x48, 0x89, 0x5c, 0x24, 0x08]);
        f.new[..5].copy_from_slice(&[0xe9, 1, 2, 3, 4]);
        let flags = FindingFlags::GLA | FindingFlags::OLD | FindingFlags::NEW;
        f.flags = (flags | FindingFlags::STEPPED).bits();
        f.timeline[0].change = ImageChange::UNLOADED;
        f.timeline[0].time = f.time - 8_000_000;
        f.timeline[0].base = 0xffff_f800_3000_0000;
        f.timeline[0].size = 0x5000;
        f.timeline[0].name[..4].copy_from_slice(b"a\xff\nb");
        f.timeline[0].name_length = 4;
        f
    }

    #[test]
    fn the_json_object_is_frozen() {
        assert_eq!(
            Record::from(&unbacked()).json(),
            include_str!("snapshots/unbacked.json").trim_end()
        );
        assert_eq!(
            Record::from(&hook()).json(),
            include_str!("snapshots/hook.json").trim_end()
        );
    }

    #[test]
    fn a_line_reads_back_as_what_it_was() {
        for finding in [unbacked(), hook()] {
            let record = Record::from(&finding);
            let read: Record = serde_json::from_str(&record.json()).unwrap();
            assert_eq!(read, record);
        }
    }

    #[test]
    fn only_the_published_fields_are_needed_to_read_a_line() {
        let line = r#"{"schema":1,"seq":3,"kind":"tamper","severity":"high","core":0,"time":"t",
            "rip":"0x1","gla":null,"gpa":"0x2","cpl":0,"cr3":"0x3",
            "actor":{"module":null,"section":null,"offset":null},
            "victim":{"module":null,"section":null,"offset":null,"export":null},
            "return_address":null,"old":null,"new":null,"sha256":null,"count":1,"later":[1]}"#;
        let record: Record = serde_json::from_str(line).unwrap();
        assert_eq!((record.seq, record.registers), (3, None));
    }

    #[test]
    fn hostile_bytes_of_a_finding_are_rendered_somehow() {
        use zerocopy::FromBytes;
        for byte in [0, 1, 0x7f, 0xff] {
            let finding = Finding::read_from_bytes(&[byte; size_of::<Finding>()]).unwrap();
            let line = Record::from(&finding).json();
            assert!(line.bytes().all(|b| (0x20..0x7f).contains(&b)), "{byte}");
            assert!(serde_json::from_str::<Record>(&line).is_ok());
        }
    }

    #[test]
    fn hexadecimal_there_and_back() {
        assert_eq!(unhex(&hex(u64::MAX)), Some(u64::MAX));
        assert_eq!(unhex("12"), None);
        assert_eq!(unhex_bytes("00ff10"), Some(vec![0, 0xff, 0x10]));
        assert_eq!(unhex_bytes("0"), None);
        assert_eq!(unhex_bytes("+f"), None);
    }
}
