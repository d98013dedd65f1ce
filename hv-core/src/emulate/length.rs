//! Lengths of the instructions that exit, where the processor does not tell them:
//! AMD processors without NRIP save, and exits that do not save it.
//!
//! Only what can be intercepted is known here. The bytes are the guest's and may
//! have been changed since the processor looked at them, so they are compared with
//! the kind of instruction that the exit code names: what does not fit has no
//! length, and the guest tries again. A prefix that does not belong is no reason
//! to doubt: the processor has taken the instruction for what it is. LOCK is one,
//! as it makes #UD of all of these but MOV to and from CR0, where it means CR8.
//!
//! Pure. AMD APM vol. 3, "Instruction Encoding" and "Opcode and Operand Encodings";
//! for LOCK MOV CR0 vol. 2, "CR8 (Task Priority Register, TPR)".

/// The longest instruction.
const MOST: usize = 15;

/// Size of the code that the instruction is part of: CS.L and CS.D.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, and segments with L = 0 and D = 0.
    Bits16,
    /// Segments with L = 0 and D = 1.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// Which instruction an exit tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// RDPMC.
    Rdpmc,
    /// CPUID.
    Cpuid,
    /// XSETBV.
    Xsetbv,
    /// HLT.
    Hlt,
    /// INVD.
    Invd,
    /// WBINVD, or WBNOINVD, which is WBINVD with a prefix.
    Wbinvd,
    /// What reads this control register: MOV, and for CR0 also SMSW.
    ReadCr(u8),
    /// What writes this control register: MOV, and for CR0 also CLTS and LMSW.
    WriteCr(u8),
    /// IRET of any operand size.
    Iret,
    /// INT n.
    Int,
    /// INT1, also called ICEBP.
    Int1,
    /// INT3, the form without a number.
    Int3,
    /// INTO.
    Into,
    /// VMRUN.
    Vmrun,
    /// VMMCALL, or VMGEXIT, which is VMMCALL with a prefix and outside of encrypted
    /// guests nothing else.
    Vmmcall,
    /// VMLOAD.
    Vmload,
    /// VMSAVE.
    Vmsave,
    /// STGI.
    Stgi,
    /// CLGI.
    Clgi,
    /// SKINIT.
    Skinit,
    /// INVLPGA.
    Invlpga,
}

/// The length of the instruction at the beginning of `bytes`, 1 to 15. `None` when
/// it is none of this kind, when not all of it is there, or when it is too long.
#[must_use]
pub fn length(kind: Kind, size: CodeSize, bytes: &[u8]) -> Option<u8> {
    let mut code = Code {
        bytes: bytes.get(..MOST).unwrap_or(bytes),
        at: 0,
    };
    let prefixes = Prefixes::skip(&mut code, size);
    let opcode = code.next()?;
    let fits = if opcode == 0x0F {
        two_bytes(kind, prefixes, &mut code)?
    } else {
        !prefixes.lock && one_byte(kind, size, opcode, &mut code)?
    };
    if fits {
        u8::try_from(code.at).ok()
    } else {
        None
    }
}

/// The bytes and how many of them have been read.
struct Code<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Code<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn skip(&mut self, count: u8) -> Option<()> {
        for _ in 0..count {
            self.next()?;
        }
        Some(())
    }
}

/// What the prefixes say, as far as a length depends on it.
#[derive(Clone, Copy)]
struct Prefixes {
    /// The REX prefix that counts, or 0.
    rex: u8,
    /// LOCK.
    lock: bool,
    /// An operand's address has 16 bits.
    short_address: bool,
}

impl Prefixes {
    /// Reads the prefixes: legacy ones in any number and order; a REX counts only
    /// right before the opcode.
    fn skip(code: &mut Code<'_>, size: CodeSize) -> Self {
        let mut prefixes = Self {
            rex: 0,
            lock: false,
            short_address: size == CodeSize::Bits16,
        };
        while let Some(byte) = code.peek() {
            let mut rex = 0;
            match byte {
                0x26 | 0x2E | 0x36 | 0x3E | 0x64 | 0x65 | 0x66 | 0xF2 | 0xF3 => {}
                0x67 => prefixes.short_address = size == CodeSize::Bits32,
                0xF0 => prefixes.lock = true,
                0x40..=0x4F if size == CodeSize::Bits64 => rex = byte,
                _ => break,
            }
            prefixes.rex = rex;
            code.at += 1;
        }
        prefixes
    }
}

/// The opcodes of one byte.
fn one_byte(kind: Kind, size: CodeSize, opcode: u8, code: &mut Code<'_>) -> Option<bool> {
    Some(match (kind, opcode) {
        (Kind::Hlt, 0xF4) | (Kind::Iret, 0xCF) | (Kind::Int1, 0xF1) | (Kind::Int3, 0xCC) => true,
        (Kind::Into, 0xCE) => size != CodeSize::Bits64,
        (Kind::Int, 0xCD) => {
            code.skip(1)?;
            true
        }
        _ => false,
    })
}

/// The opcodes after 0FH.
fn two_bytes(kind: Kind, prefixes: Prefixes, code: &mut Code<'_>) -> Option<bool> {
    let opcode = code.next()?;
    if let (Kind::ReadCr(register), 0x20) | (Kind::WriteCr(register), 0x22) = (kind, opcode) {
        // The mode of the ModRM byte does not count: it is a register always.
        let number = code.next()? >> 3 & 7 | prefixes.rex << 1 & 8;
        let number = match (prefixes.lock, number) {
            (true, 0) => 8,
            (false, 0 | 2 | 3 | 4 | 8) => number,
            _ => return None,
        };
        return Some(number == register);
    }
    if prefixes.lock {
        return Some(false);
    }
    if opcode == 0x01 {
        return group_7(kind, prefixes, code);
    }
    Some(matches!(
        (kind, opcode),
        (Kind::WriteCr(0), 0x06)
            | (Kind::Invd, 0x08)
            | (Kind::Wbinvd, 0x09)
            | (Kind::Wrmsr, 0x30)
            | (Kind::Rdmsr, 0x32)
            | (Kind::Rdpmc, 0x33)
            | (Kind::Cpuid, 0xA2)
    ))
}

/// The opcodes after 0F01H, told from each other by the ModRM byte.
fn group_7(kind: Kind, prefixes: Prefixes, code: &mut Code<'_>) -> Option<bool> {
    let modrm = code.next()?;
    Some(match (kind, modrm) {
        (Kind::Xsetbv, 0xD1)
        | (Kind::Vmrun, 0xD8)
        | (Kind::Vmmcall, 0xD9)
        | (Kind::Vmload, 0xDA)
        | (Kind::Vmsave, 0xDB)
        | (Kind::Stgi, 0xDC)
        | (Kind::Clgi, 0xDD)
        | (Kind::Skinit, 0xDE)
        | (Kind::Invlpga, 0xDF) => true,
        (Kind::ReadCr(0), _) if modrm >> 3 & 7 == 4 => operand(modrm, prefixes, code)?,
        (Kind::WriteCr(0), _) if modrm >> 3 & 7 == 6 => operand(modrm, prefixes, code)?,
        _ => false,
    })
}

/// Reads what follows a ModRM byte: SIB and displacement. Always true.
fn operand(modrm: u8, prefixes: Prefixes, code: &mut Code<'_>) -> Option<bool> {
    let (mode, low) = (modrm >> 6, modrm & 7);
    let displacement = if prefixes.short_address {
        match (mode, low) {
            (0, 6) | (2, _) => 2,
            (1, _) => 1,
            _ => 0,
        }
    } else {
        let base = if mode != 3 && low == 4 {
            code.next()? & 7
        } else {
            low
        };
        match (mode, base) {
            (0, 5) | (2, _) => 4,
            (1, _) => 1,
            _ => 0,
        }
    };
    code.skip(displacement)?;
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};
    use proptest::prelude::*;
    use std::vec::Vec;

    use CodeSize::{Bits16, Bits32, Bits64};

    fn all_kinds() -> impl Iterator<Item = Kind> {
        [
            Kind::Rdmsr,
            Kind::Wrmsr,
            Kind::Rdpmc,
            Kind::Cpuid,
            Kind::Xsetbv,
            Kind::Hlt,
            Kind::Invd,
            Kind::Wbinvd,
            Kind::Iret,
            Kind::Int,
            Kind::Int1,
            Kind::Int3,
            Kind::Into,
            Kind::Vmrun,
            Kind::Vmmcall,
            Kind::Vmload,
            Kind::Vmsave,
            Kind::Stgi,
            Kind::Clgi,
            Kind::Skinit,
            Kind::Invlpga,
        ]
        .into_iter()
        .chain((0..16).map(Kind::ReadCr))
        .chain((0..16).map(Kind::WriteCr))
    }

    /// What a disassembler says of the same bytes.
    enum Said {
        /// An instruction of a kind that is known here.
        Known(Kind, usize),
        /// Another instruction.
        Other,
        /// None.
        Invalid,
    }

    fn control_register(register: Register) -> Option<u8> {
        let number = register as usize - Register::CR0 as usize;
        u8::try_from(number).ok()
    }

    fn disassemble(size: CodeSize, bytes: &[u8]) -> Said {
        let bits = match size {
            Bits16 => 16,
            Bits32 => 32,
            Bits64 => 64,
        };
        let mut decoder = Decoder::with_ip(bits, bytes, 0x1000, DecoderOptions::AMD);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return Said::Invalid;
        }
        let kind = match instruction.mnemonic() {
            Mnemonic::Rdmsr => Kind::Rdmsr,
            Mnemonic::Wrmsr => Kind::Wrmsr,
            Mnemonic::Rdpmc => Kind::Rdpmc,
            Mnemonic::Cpuid => Kind::Cpuid,
            Mnemonic::Xsetbv => Kind::Xsetbv,
            Mnemonic::Hlt => Kind::Hlt,
            Mnemonic::Invd => Kind::Invd,
            Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => Kind::Wbinvd,
            Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => Kind::Iret,
            Mnemonic::Int => Kind::Int,
            Mnemonic::Int1 => Kind::Int1,
            Mnemonic::Int3 => Kind::Int3,
            Mnemonic::Into => Kind::Into,
            Mnemonic::Vmrun => Kind::Vmrun,
            Mnemonic::Vmmcall | Mnemonic::Vmgexit => Kind::Vmmcall,
            Mnemonic::Vmload => Kind::Vmload,
            Mnemonic::Vmsave => Kind::Vmsave,
            Mnemonic::Stgi => Kind::Stgi,
            Mnemonic::Clgi => Kind::Clgi,
            Mnemonic::Skinit => Kind::Skinit,
            Mnemonic::Invlpga => Kind::Invlpga,
            Mnemonic::Clts | Mnemonic::Lmsw => Kind::WriteCr(0),
            Mnemonic::Smsw => Kind::ReadCr(0),
            Mnemonic::Mov if instruction.op0_kind() == OpKind::Register => {
                let to = instruction.op0_register();
                let from = match instruction.op1_kind() {
                    OpKind::Register => instruction.op1_register(),
                    _ => Register::None,
                };
                if to.is_cr() {
                    Kind::WriteCr(control_register(to).unwrap())
                } else if from.is_cr() {
                    Kind::ReadCr(control_register(from).unwrap())
                } else {
                    return Said::Other;
                }
            }
            _ => return Said::Other,
        };
        Said::Known(kind, instruction.len())
    }

    const LEGACY: [u8; 11] = [
        0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3,
    ];

    /// The bytes without the prefixes that neither change the length nor belong to
    /// the instruction, and how many there were.
    fn without_idle_prefixes(size: CodeSize, bytes: &[u8]) -> (Vec<u8>, usize) {
        let is_rex = |byte: u8| size == Bits64 && byte & 0xF0 == 0x40;
        let count = bytes
            .iter()
            .take_while(|byte| LEGACY.contains(byte) || is_rex(**byte))
            .count();
        let (prefixes, rest) = bytes.split_at(count);
        let mut kept: Vec<u8> = prefixes
            .iter()
            .enumerate()
            .filter(|(index, byte)| {
                !matches!(**byte, 0x66 | 0xF2 | 0xF3) && (index + 1 == count || !is_rex(**byte))
            })
            .map(|(_, byte)| *byte)
            .collect();
        let dropped = count - kept.len();
        kept.extend(rest);
        (kept, dropped)
    }

    fn expected(size: CodeSize, bytes: &[u8]) -> Option<(Kind, u8)> {
        let (kind, length) = match disassemble(size, bytes) {
            Said::Known(kind, length) => (kind, length),
            Said::Other => return None,
            Said::Invalid => {
                let (kept, dropped) = without_idle_prefixes(size, bytes);
                match disassemble(size, &kept) {
                    Said::Known(kind, length) if length + dropped <= 15 => (kind, length + dropped),
                    _ => return None,
                }
            }
        };
        Some((kind, u8::try_from(length).unwrap()))
    }

    fn agree(size: CodeSize, bytes: &[u8]) {
        let expected = expected(size, bytes);
        for kind in all_kinds() {
            let wanted = expected
                .filter(|(found, _)| *found == kind)
                .map(|(_, length)| length);
            assert_eq!(
                length(kind, size, bytes),
                wanted,
                "{kind:?} in {size:?}: {bytes:02x?}"
            );
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn awkward_encodings() {
        let cases: &[(CodeSize, Kind, &[u8], Option<u8>)] = &[
            (Bits64, Kind::Rdmsr, &[0x0F, 0x32], Some(2)),
            // A REX before a legacy prefix does not count, but is there.
            (Bits64, Kind::Rdmsr, &[0x48, 0x66, 0x0F, 0x32], Some(4)),
            (Bits64, Kind::ReadCr(8), &[0x44, 0x0F, 0x20, 0xC0], Some(4)),
            (Bits64, Kind::ReadCr(0), &[0x44, 0x0F, 0x20, 0xC0], None),
            (
                Bits64,
                Kind::ReadCr(0),
                &[0x44, 0x66, 0x0F, 0x20, 0xC0],
                Some(5),
            ),
            (
                Bits64,
                Kind::ReadCr(0),
                &[0x44, 0x40, 0x0F, 0x20, 0xC0],
                Some(5),
            ),
            // 40H to 4FH are INC and DEC elsewhere.
            (Bits32, Kind::Rdmsr, &[0x48, 0x0F, 0x32], None),
            (Bits16, Kind::Rdmsr, &[0x48, 0x0F, 0x32], None),
            // CR8 without REX.
            (Bits32, Kind::WriteCr(8), &[0xF0, 0x0F, 0x22, 0xC0], Some(4)),
            (Bits64, Kind::WriteCr(8), &[0xF0, 0x0F, 0x22, 0xC0], Some(4)),
            (Bits64, Kind::WriteCr(0), &[0xF0, 0x0F, 0x22, 0xC0], None),
            (Bits64, Kind::WriteCr(8), &[0xF0, 0x0F, 0x22, 0xD8], None),
            (
                Bits64,
                Kind::WriteCr(8),
                &[0xF0, 0x44, 0x0F, 0x22, 0xC0],
                None,
            ),
            (Bits64, Kind::Rdmsr, &[0xF0, 0x0F, 0x32], None),
            (Bits64, Kind::Hlt, &[0xF0, 0xF4], None),
            // The mode of a MOV to a control register is not looked at.
            (Bits64, Kind::WriteCr(4), &[0x0F, 0x22, 0x24, 0x25], Some(3)),
            (Bits64, Kind::WriteCr(0), &[0x0F, 0x22, 0x80], Some(3)),
            (Bits64, Kind::WriteCr(0), &[0x0F, 0x06], Some(2)),
            (Bits64, Kind::WriteCr(4), &[0x0F, 0x06], None),
            // LMSW: register, [rax], [rip+disp32], SIB without and with a
            // displacement, disp8, disp32.
            (Bits64, Kind::WriteCr(0), &[0x0F, 0x01, 0xF0], Some(3)),
            (Bits64, Kind::WriteCr(0), &[0x0F, 0x01, 0x30], Some(3)),
            (
                Bits64,
                Kind::WriteCr(0),
                &[0x0F, 0x01, 0x35, 1, 2, 3, 4],
                Some(7),
            ),
            (Bits64, Kind::WriteCr(0), &[0x0F, 0x01, 0x34, 0x24], Some(4)),
            (
                Bits64,
                Kind::WriteCr(0),
                &[0x0F, 0x01, 0x34, 0x25, 1, 2, 3, 4],
                Some(8),
            ),
            (
                Bits64,
                Kind::WriteCr(0),
                &[0x0F, 0x01, 0x74, 0x25, 1],
                Some(5),
            ),
            (
                Bits64,
                Kind::WriteCr(0),
                &[0x0F, 0x01, 0xB4, 0x25, 1, 2, 3, 4],
                Some(8),
            ),
            // A base of R13 is encoded like RBP: the displacement is there.
            (
                Bits64,
                Kind::WriteCr(0),
                &[0x41, 0x0F, 0x01, 0x34, 0x25, 1, 2, 3, 4],
                Some(9),
            ),
            // 67H: 32-bit addresses of the same form in 64-bit code, 16-bit ones
            // in 32-bit code, 32-bit ones in 16-bit code.
            (
                Bits64,
                Kind::WriteCr(0),
                &[0x67, 0x0F, 0x01, 0x35, 1, 2, 3, 4],
                Some(8),
            ),
            (
                Bits32,
                Kind::WriteCr(0),
                &[0x67, 0x0F, 0x01, 0x36, 1, 2],
                Some(6),
            ),
            (
                Bits32,
                Kind::WriteCr(0),
                &[0x67, 0x0F, 0x01, 0xB4, 1, 2],
                Some(6),
            ),
            (Bits32, Kind::WriteCr(0), &[0x67, 0x0F, 0x01, 0x35], Some(4)),
            (Bits16, Kind::WriteCr(0), &[0x0F, 0x01, 0x36, 1, 2], Some(5)),
            (
                Bits16,
                Kind::WriteCr(0),
                &[0x67, 0x0F, 0x01, 0x34, 0x25, 1, 2, 3, 4],
                Some(9),
            ),
            (Bits64, Kind::ReadCr(0), &[0x0F, 0x01, 0xE0], Some(3)),
            (Bits64, Kind::ReadCr(0), &[0x0F, 0x01, 0x60, 1], Some(4)),
            (Bits64, Kind::WriteCr(0), &[0x0F, 0x01, 0x38], None), // INVLPG
            // Prefixes that make another mnemonic of the same instruction.
            (Bits64, Kind::Wbinvd, &[0xF3, 0x0F, 0x09], Some(3)),
            (Bits64, Kind::Vmmcall, &[0xF3, 0x0F, 0x01, 0xD9], Some(4)),
            (Bits64, Kind::Xsetbv, &[0x66, 0x0F, 0x01, 0xD1], Some(4)),
            (Bits64, Kind::Iret, &[0x48, 0xCF], Some(2)),
            (Bits16, Kind::Iret, &[0x66, 0xCF], Some(2)),
            (Bits64, Kind::Int, &[0xCD, 0x2E], Some(2)),
            (Bits64, Kind::Int3, &[0xCD, 0x03], None),
            (Bits64, Kind::Into, &[0xCE], None),
            (Bits32, Kind::Into, &[0xCE], Some(1)),
            // Not all there.
            (Bits64, Kind::Rdmsr, &[], None),
            (Bits64, Kind::Rdmsr, &[0x66], None),
            (Bits64, Kind::Rdmsr, &[0x0F], None),
            (Bits64, Kind::Int, &[0xCD], None),
            (Bits64, Kind::WriteCr(0), &[0x0F, 0x22], None),
            (Bits64, Kind::WriteCr(0), &[0x0F, 0x01, 0x34], None),
            (Bits64, Kind::WriteCr(0), &[0x0F, 0x01, 0x35, 1, 2, 3], None),
            // Not of this kind.
            (Bits64, Kind::Rdmsr, &[0x0F, 0x30], None),
            (Bits64, Kind::Vmmcall, &[0x0F, 0x01, 0xC1], None),
            (Bits64, Kind::Rdmsr, &[0x90], None),
        ];
        for (size, kind, bytes, wanted) in cases {
            assert_eq!(
                length(*kind, *size, bytes),
                *wanted,
                "{kind:?} in {size:?}: {bytes:02x?}"
            );
            agree(*size, bytes);
        }
    }

    #[test]
    fn fifteen_bytes_are_the_most() {
        for (prefixes, wanted) in [(12, Some(14)), (13, Some(15)), (14, None), (15, None)] {
            let mut bytes = std::vec![0x2E; prefixes];
            bytes.extend([0x0F, 0x32, 0x90, 0x90]);
            assert_eq!(length(Kind::Rdmsr, Bits64, &bytes), wanted);
            agree(Bits64, &bytes);
        }
        // The limit is met within the displacement.
        let mut bytes = std::vec![0x2E; 8];
        bytes.extend([0x0F, 0x01, 0x35, 1, 2, 3, 4]);
        assert_eq!(length(Kind::WriteCr(0), Bits64, &bytes), Some(15));
        bytes.insert(0, 0x2E);
        assert_eq!(length(Kind::WriteCr(0), Bits64, &bytes), None);
        assert_eq!(length(Kind::Rdmsr, Bits64, &[0x66; 64]), None);
    }

    /// Every opcode of one and of two bytes and every ModRM byte after 0F01H,
    /// 0F20H and 0F22H, without prefixes and with each one.
    #[test]
    fn every_opcode() {
        for size in [Bits16, Bits32, Bits64] {
            let prefixes = LEGACY.into_iter().chain([0x40, 0x44, 0x4F]).map(Some);
            for prefix in prefixes.chain([None]) {
                for first in 0..=0xFF {
                    let mut bytes: Vec<u8> = prefix.into_iter().collect();
                    bytes.extend([first, 0x25, 1, 2, 3, 4, 5, 6, 7, 8]);
                    agree(size, &bytes);
                    bytes.truncate(usize::from(prefix.is_some()));
                    bytes.extend([0x0F, first, 0x25, 1, 2, 3, 4, 5, 6, 7, 8]);
                    agree(size, &bytes);
                    for opcode in [0x01, 0x20, 0x22] {
                        bytes.truncate(usize::from(prefix.is_some()));
                        bytes.extend([0x0F, opcode, first, 0x25, 1, 2, 3, 4, 5, 6]);
                        agree(size, &bytes);
                    }
                }
            }
        }
    }

    fn prefix() -> impl Strategy<Value = u8> {
        prop_oneof![
            3 => prop::sample::select(&LEGACY[..]),
            1 => 0x40..=0x4F_u8,
        ]
    }

    fn opcode() -> impl Strategy<Value = Vec<u8>> {
        let known: &[&[u8]] = &[
            &[0x0F, 0x32],
            &[0x0F, 0x30],
            &[0x0F, 0x33],
            &[0x0F, 0xA2],
            &[0x0F, 0x06],
            &[0x0F, 0x08],
            &[0x0F, 0x09],
            &[0x0F, 0x20],
            &[0x0F, 0x22],
            &[0x0F, 0x01],
            &[0x0F, 0x01, 0xD1],
            &[0x0F, 0x01, 0xD8],
            &[0x0F, 0x01, 0xD9],
            &[0x0F, 0x01, 0xDA],
            &[0x0F, 0x01, 0xDB],
            &[0x0F, 0x01, 0xDC],
            &[0x0F, 0x01, 0xDD],
            &[0x0F, 0x01, 0xDE],
            &[0x0F, 0x01, 0xDF],
            &[0xF4],
            &[0xCC],
            &[0xCD],
            &[0xCE],
            &[0xCF],
            &[0xF1],
        ];
        prop_oneof![
            8 => prop::sample::select(known).prop_map(<[u8]>::to_vec),
            // LMSW and SMSW in all their forms.
            4 => any::<u8>().prop_map(|modrm| std::vec![0x0F, 0x01, modrm | 0x20]),
            1 => any::<u8>().prop_map(|byte| std::vec![0x0F, byte]),
            1 => any::<u8>().prop_map(|byte| std::vec![byte]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]

        #[test]
        fn lengths_are_what_a_disassembler_says(
            size in prop::sample::select(&[Bits16, Bits32, Bits64][..]),
            prefixes in prop_oneof![
                4 => prop::collection::vec(prefix(), 0..4),
                1 => prop::collection::vec(prefix(), 4..17),
            ],
            opcode in opcode(),
            rest in prop::collection::vec(any::<u8>(), 0..10),
        ) {
            let mut bytes = prefixes;
            bytes.extend(opcode);
            bytes.extend(rest);
            agree(size, &bytes);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn noise_is_nothing_else(
            size in prop::sample::select(&[Bits16, Bits32, Bits64][..]),
            bytes in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            agree(size, &bytes);
        }
    }
}
