//! Where an instruction writes: the linear address, for processors that tell only
//! the physical one (AMD).
//!
//! No opcode is known here. An instruction writes its memory operand, what RDI
//! points to, or the top of the stack; which of them it was, the caller finds out by
//! translating them: one leads to the address that has faulted. So nothing wrong
//! can come of an instruction that is taken for another one.
//!
//! Pure: bytes and registers in. 64-bit code with flat segments only. Intel SDM
//! vol. 2, "Instruction Format"; AMD APM vol. 3, "Instruction Encoding".

/// A little-endian number of some bytes, sign-extended.
pub(super) fn signed(next: &mut impl FnMut() -> Option<u64>, bytes: u8) -> Option<u64> {
    let mut value = 0;
    for index in 0..bytes {
        value |= next()? << (8 * index);
    }
    let unused = 64 - 8 * u32::from(bytes);
    #[expect(clippy::cast_possible_wrap, reason = "sign extension is meant")]
    #[expect(clippy::cast_sign_loss, reason = "sign extension is meant")]
    Some(((value << unused) as i64 >> unused) as u64)
}

/// A general register by its number.
#[expect(clippy::cast_possible_truncation, reason = "four bits")]
pub(super) fn register(gprs: &[u64; 16], number: u64) -> Option<u64> {
    gprs.get(usize::from(number as u8 & 15)).copied()
}

/// The address of a memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Address {
    /// All of it.
    Linear(u64),
    /// From the next instruction on.
    FromNext(u64),
}

/// Reads what follows a ModRM byte: SIB and displacement. `None` when the operand is
/// a register, or not all of it can be read.
pub(super) fn address(
    modrm: u64,
    rex: u64,
    gprs: &[u64; 16],
    next: &mut impl FnMut() -> Option<u64>,
) -> Option<Address> {
    let (mode, low) = (modrm >> 6, modrm & 7);
    let base = match (mode, low) {
        (3, _) => return None,
        (_, 4) => {
            let sib = next()?;
            let (scale, index, base) = (
                sib >> 6,
                sib >> 3 & 7 | rex << 2 & 8,
                sib & 7 | rex << 3 & 8,
            );
            let scaled = if index == 4 {
                0
            } else {
                register(gprs, index)? << scale
            };
            if base & 7 == 5 && mode == 0 {
                scaled.wrapping_add(signed(next, 4)?)
            } else {
                scaled.wrapping_add(register(gprs, base)?)
            }
        }
        (0, 5) => return Some(Address::FromNext(signed(next, 4)?)),
        _ => register(gprs, low | rex << 3 & 8)?,
    };
    let displacement = match mode {
        1 => signed(next, 1)?,
        2 => signed(next, 4)?,
        _ => 0,
    };
    Some(Address::Linear(base.wrapping_add(displacement)))
}

/// Finds the address that the instruction at `rip` has faulted at among those that
/// it may write: the one that `is_it` accepts. `bytes` are its first bytes, `gprs`
/// the general registers in encoding order, RSP as before the instruction.
#[must_use]
pub fn find(bytes: &[u8], rip: u64, gprs: &[u64; 16], is_it: impl Fn(u64) -> bool) -> Option<u64> {
    const RSP: u64 = 4;
    const RDI: u64 = 7;
    let operand = operand(bytes, gprs);
    let explicit = operand.into_iter().flat_map(|(operand, end)| {
        // How long the constant is that follows, the opcode would tell.
        [0_u64, 1, 2, 4].map(|constant| match operand {
            Address::Linear(address) => address,
            Address::FromNext(offset) => rip
                .wrapping_add(end)
                .wrapping_add(constant)
                .wrapping_add(offset),
        })
    });
    let pushed = [8, 2].map(|size| Some(register(gprs, RSP)?.wrapping_sub(size)));
    let implicit = [register(gprs, RDI), pushed[0], pushed[1]];
    explicit
        .chain(implicit.into_iter().flatten())
        .find(|address| is_it(*address))
}

/// The memory operand, if the instruction has a ModRM byte, and how many bytes of the
/// instruction end with it.
fn operand(bytes: &[u8], gprs: &[u64; 16]) -> Option<(Address, u64)> {
    let mut at = 0_u64;
    let mut rest = bytes.iter();
    let mut next = || {
        at += 1;
        rest.next().copied().map(u64::from)
    };
    let mut byte = next()?;
    // Not FS, GS and 32-bit addresses.
    while matches!(byte, 0x66 | 0xF0 | 0xF2 | 0xF3 | 0x26 | 0x2E | 0x36 | 0x3E) {
        byte = next()?;
    }
    let mut rex = 0;
    match byte {
        0xC5 => rex = !next()? >> 5 & 4,
        0xC4 => {
            rex = !next()? >> 5 & 7;
            next()?;
        }
        _ => {
            if byte & 0xF0 == 0x40 {
                rex = byte;
                byte = next()?;
            }
            if byte == 0x0F && matches!(next()?, 0x38 | 0x3A) {
                next()?;
            }
        }
    }
    if matches!(byte, 0xC4 | 0xC5) {
        next()?;
    }
    let modrm = next()?;
    let operand = address(modrm, rex, gprs, &mut next)?;
    Some((operand, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, OpAccess, Register};
    use proptest::prelude::*;
    use std::vec::Vec;

    const RIP: u64 = 0xFFFF_8000_0012_3FF8;

    fn registers() -> [u64; 16] {
        core::array::from_fn(|index| 0x1111_2222_3333_0000 + 0x0101_0000_0711 * index as u64)
    }

    /// The addresses that a disassembler says are written, by an instruction that
    /// this file covers.
    fn written(bytes: &[u8]) -> Vec<u64> {
        let mut decoder = Decoder::with_ip(64, bytes, RIP, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return Vec::new();
        }
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&instruction);
        info.used_memory()
            .iter()
            .filter(|used| {
                matches!(
                    used.access(),
                    OpAccess::Write
                        | OpAccess::ReadWrite
                        | OpAccess::CondWrite
                        | OpAccess::ReadCondWrite
                )
            })
            .filter_map(|used| {
                used.virtual_address(0, |register, _, _| match register {
                    Register::CS | Register::DS | Register::ES | Register::SS | Register::RIP => {
                        Some(0)
                    }
                    other if other.is_gpr64() => registers().get(other.number()).copied(),
                    _ => None,
                })
            })
            .collect()
    }

    #[test]
    fn every_way_to_write_is_found() {
        let cases: &[&[u8]] = &[
            &[0x48, 0x01, 0x05, 0x10, 0, 0, 0],          // add [rip+16], rax
            &[0x80, 0x0D, 0x10, 0, 0, 0, 0x01],          // or byte [rip+16], 1
            &[0x81, 0x05, 0x10, 0, 0, 0, 1, 2, 3, 4],    // add dword [rip+16], …
            &[0xF0, 0x4F, 0x0F, 0xB1, 0x44, 0x8D, 0x20], // lock cmpxchg [r13+r9*4+32], r8
            &[0xF0, 0x48, 0x0F, 0xC7, 0x0E],             // lock cmpxchg16b [rsi]
            &[0x0F, 0x11, 0x07],                         // movups [rdi], xmm0
            &[0xC5, 0xF8, 0x11, 0x04, 0x8E],             // vmovups [rsi+rcx*4], xmm0
            &[0xC4, 0xC1, 0x78, 0x11, 0x40, 0x08],       // vmovups [r8+8], xmm0
            &[0x0F, 0x38, 0xF1, 0x03],                   // movbe [rbx], eax
            &[0x66, 0x0F, 0x3A, 0x14, 0x03, 0x02],       // pextrb [rbx], xmm0, 2
            &[0x50],                                     // push rax
            &[0x66, 0x50],                               // push ax
            &[0xE8, 0, 0, 0, 0],                         // call
            &[0xF3, 0xAA],                               // rep stosb
            &[0x48, 0xA5],                               // movsq
        ];
        for bytes in cases {
            let written = written(bytes);
            assert!(!written.is_empty(), "{bytes:x?}");
            for address in written {
                let found = find(bytes, RIP, &registers(), |candidate| candidate == address);
                assert_eq!(found, Some(address), "{bytes:x?}");
            }
        }
    }

    #[test]
    fn nothing_is_found_but_what_is_accepted() {
        assert_eq!(
            find(&[0x48, 0x01, 0x03], RIP, &registers(), |_| false),
            None
        );
        assert_eq!(find(&[], RIP, &registers(), |address| address == 0), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Whatever a disassembler says is written, in forms without FS, GS, 32-bit
        /// addresses and EVEX, is found.
        #[test]
        fn all_operands_of_common_instructions(
            prefix in prop::sample::select(&[0x90_u8, 0x66, 0x48, 0x41, 0x4F, 0x44, 0xF0][..]),
            opcode in prop::sample::select(
                &[0x00_u8, 0x01, 0x09, 0x29, 0x31, 0x80, 0x81, 0x83, 0x86, 0x87, 0x88, 0x89,
                  0xC0, 0xC1, 0xC6, 0xC7, 0xD1, 0xD3, 0xF6, 0xF7, 0xFE][..]),
            rest: [u8; 13],
        ) {
            let mut bytes = std::vec![prefix, opcode];
            if prefix == 0x90 {
                bytes.remove(0);
            }
            bytes.extend(rest);
            for address in written(&bytes) {
                let found = find(&bytes, RIP, &registers(), |candidate| candidate == address);
                prop_assert_eq!(found, Some(address));
            }
        }
    }
}
