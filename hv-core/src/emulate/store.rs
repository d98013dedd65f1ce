//! Simple stores: MOV of a register or a constant to memory.
//!
//! An instruction that writes a page of code would cost two exits and a private
//! path. The stores that such pages see most are plain MOVs, and those can be
//! carried out here: what is stored is known before it is stored, so it is even
//! reported first. Everything else is left to the step.
//!
//! Pure: bytes and registers in, the store out. 64-bit code with flat segments
//! only. Intel SDM vol. 2, "Instruction Format" and "MOV—Move".

use super::operand::{self, Address, register, signed};

/// A decoded store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Store {
    /// Linear address of the first byte.
    pub address: u64,
    /// What is stored, in the low `size` bytes.
    pub value: u64,
    /// 1, 2, 4 or 8.
    pub size: u8,
    /// Length of the instruction in bytes.
    pub length: u8,
}

/// Decodes the instruction at `rip`. `bytes` are its first bytes, as many as can
/// be read; `gprs` the general registers in encoding order. `None` when it is no
/// simple store, or not all of it can be read.
#[must_use]
pub fn decode(bytes: &[u8], rip: u64, gprs: &[u64; 16]) -> Option<Store> {
    let mut at = 0;
    let mut next = || {
        let byte = bytes.get(at).copied();
        at += 1;
        byte.map(u64::from)
    };
    let mut opcode = next()?;
    let narrow = opcode == 0x66;
    if narrow {
        opcode = next()?;
    }
    let mut rex = 0;
    if opcode & 0xF0 == 0x40 {
        rex = opcode;
        opcode = next()?;
    }
    let wide = rex & 8 != 0;
    let size: u8 = match opcode {
        0x88 | 0xC6 => 1,
        0x89 | 0xC7 if wide => 8,
        0x89 | 0xC7 if narrow => 2,
        0x89 | 0xC7 => 4,
        _ => return None,
    };
    let modrm = next()?;
    let middle = modrm >> 3 & 7;
    let constant = opcode & 0x40 != 0;
    if constant && middle != 0 {
        return None;
    }
    let operand = operand::address(modrm, rex, gprs, &mut next)?;
    let value = if constant {
        signed(&mut next, size.min(4))?
    } else {
        let number = middle | rex << 1 & 8;
        if size == 1 && rex == 0 && number >= 4 {
            // AH, CH, DH, BH.
            register(gprs, number - 4)? >> 8
        } else {
            register(gprs, number)?
        }
    };
    let length = u8::try_from(at).ok().filter(|length| *length <= 15)?;
    let address = match operand {
        Address::Linear(address) => address,
        Address::FromNext(offset) => offset.wrapping_add(rip.wrapping_add(length.into())),
    };
    let value = if size == 8 {
        value
    } else {
        value & ((1 << (8 * size)) - 1)
    };
    Some(Store {
        address,
        value,
        size,
        length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic, OpKind, Register};
    use proptest::prelude::*;

    const RIP: u64 = 0xFFFF_8000_0012_3FF8;

    fn registers() -> [u64; 16] {
        core::array::from_fn(|index| 0x1111_2222_3333_0000 + 0x0101_0000_0711 * index as u64)
    }

    fn value_of(register: Register) -> u64 {
        let gprs = registers();
        let full = gprs[register.full_register().number()];
        match register {
            Register::AH | Register::CH | Register::DH | Register::BH => full >> 8 & 0xFF,
            _ if register.size() == 8 => full,
            _ => full & ((1 << (8 * register.size())) - 1),
        }
    }

    /// What a disassembler says of the same bytes.
    fn expected(bytes: &[u8]) -> Option<Store> {
        let mut decoder = Decoder::with_ip(64, bytes, RIP, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid()
            || instruction.mnemonic() != Mnemonic::Mov
            || instruction.op0_kind() != OpKind::Memory
            || !matches!(
                instruction.code(),
                Code::Mov_rm8_r8
                    | Code::Mov_rm16_r16
                    | Code::Mov_rm32_r32
                    | Code::Mov_rm64_r64
                    | Code::Mov_rm8_imm8
                    | Code::Mov_rm16_imm16
                    | Code::Mov_rm32_imm32
                    | Code::Mov_rm64_imm32
            )
        {
            return None;
        }
        let size = u8::try_from(instruction.memory_size().size()).ok()?;
        let value = if instruction.op1_kind() == OpKind::Register {
            value_of(instruction.op1_register())
        } else {
            instruction.immediate(1)
        };
        let value = if size == 8 {
            value
        } else {
            value & ((1 << (8 * size)) - 1)
        };
        let address = instruction.virtual_address(0, 0, |register, _, _| match register {
            Register::CS | Register::DS | Register::ES | Register::SS => Some(0),
            other => Some(value_of(other)),
        })?;
        Some(Store {
            address,
            value,
            size,
            length: u8::try_from(instruction.len()).ok()?,
        })
    }

    #[test]
    fn every_form_is_decoded() {
        let cases: &[&[u8]] = &[
            &[0x88, 0x05, 0x10, 0, 0, 0],                   // mov [rip+16], al
            &[0x88, 0x27],                                  // mov [rdi], ah
            &[0x40, 0x88, 0x27],                            // mov [rdi], spl
            &[0x66, 0x89, 0x4C, 0x24, 0x08],                // mov [rsp+8], cx
            &[0x89, 0x14, 0x85, 0, 0, 0, 0x80],             // mov [rax*4-2G], edx
            &[0x4C, 0x89, 0xBC, 0xFE, 0, 1, 0, 0],          // mov [rsi+rdi*8+256], r15
            &[0xC6, 0x00, 0x90],                            // mov byte [rax], 90h
            &[0x66, 0xC7, 0x45, 0xFE, 0xEB, 0xFE],          // mov word [rbp-2], FEEBh
            &[0xC7, 0x05, 0, 0, 0, 0, 1, 2, 3, 4],          // mov dword [rip], …
            &[0x49, 0xC7, 0x45, 0, 0xFF, 0xFF, 0xFF, 0xFF], // mov qword [r13], -1
            &[0x41, 0x89, 0x04, 0x24],                      // mov [r12], eax
            &[0x42, 0x89, 0x04, 0x20],                      // mov [rax+r12], eax
        ];
        for bytes in cases {
            let store = decode(bytes, RIP, &registers());
            assert!(store.is_some(), "{bytes:x?}");
            assert_eq!(store, expected(bytes), "{bytes:x?}");
        }
    }

    #[test]
    fn what_is_not_all_there_is_left_alone() {
        assert_eq!(decode(&[], RIP, &registers()), None);
        assert_eq!(decode(&[0xC7, 0x05, 0, 0], RIP, &registers()), None);
        for bytes in [
            [0x89, 0xC0, 0x90, 0x90], // a register, not memory
            [0xC7, 0x08, 0x00, 0x00], // XBEGIN's group
            [0xF0, 0x89, 0x00, 0x90], // LOCK
            [0x65, 0x89, 0x00, 0x90], // GS
            [0x67, 0x89, 0x00, 0x90], // 32-bit address
            [0x48, 0x66, 0x89, 0x00], // a REX that does not count
        ] {
            assert_eq!(decode(&bytes, RIP, &registers()), None, "{bytes:x?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn whatever_is_decoded_is_what_the_disassembler_says(
            prefix in prop::sample::select(&[0x90_u8, 0x66, 0x48, 0x41, 0x4F, 0x44][..]),
            opcode in prop::sample::select(&[0x88_u8, 0x89, 0xC6, 0xC7, 0x8B, 0x00, 0xF0][..]),
            rest: [u8; 13],
        ) {
            let mut bytes = std::vec![prefix, opcode];
            if prefix == 0x90 {
                bytes.remove(0);
            }
            bytes.extend(rest);
            let store = decode(&bytes, RIP, &registers());
            // Nothing that is decoded is decoded otherwise, and no plain form is
            // missed.
            prop_assert_eq!(store, expected(&bytes));
        }
    }
}
