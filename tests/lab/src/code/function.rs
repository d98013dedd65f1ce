//! One function, decoded from its first to its last byte: cold paths count like
//! hot ones.

use super::image::{Function, Image};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use std::collections::BTreeSet;

/// What a function does.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Functions that it calls, jumps to, or takes the address of (first bytes).
    pub(crate) callees: BTreeSet<u32>,
    /// Imports that it calls.
    pub(crate) imports: BTreeSet<String>,
    /// Calls and jumps through registers or memory, as text.
    pub(crate) indirect: Vec<String>,
    /// Instructions on x87, MMX, YMM, ZMM or mask registers, as text.
    pub(crate) wide: Vec<String>,
    /// Instructions on XMM registers.
    pub(crate) vectors: usize,
    /// Bytes of stack, the return address of its caller included.
    pub(crate) stack: u32,
}

/// Decodes a function.
pub(crate) fn decode<'a>(image: &'a Image, function: &Function) -> Decoder<'a> {
    Decoder::with_ip(
        64,
        image.bytes(function),
        image.base() + u64::from(function.start),
        DecoderOptions::NONE,
    )
}

/// Where it goes on: after VMLAUNCH and VMRESUME, which the decoder counts among
/// the calls, with the next instruction if they fail.
pub(crate) fn flow_control(instruction: &Instruction) -> FlowControl {
    match instruction.mnemonic() {
        Mnemonic::Vmlaunch | Mnemonic::Vmresume | Mnemonic::Vmrun => FlowControl::Next,
        _ => instruction.flow_control(),
    }
}

/// Whether a register is one that root mode must leave alone altogether.
fn is_wide(register: Register) -> bool {
    register.is_ymm()
        || register.is_zmm()
        || register.is_mm()
        || register.is_st()
        || register.is_k()
}

/// The registers that an instruction names.
pub(crate) fn registers(instruction: &Instruction) -> impl Iterator<Item = Register> {
    (0..instruction.op_count())
        .filter(|&index| instruction.op_kind(index) == OpKind::Register)
        .map(|index| instruction.op_register(index))
}

impl Facts {
    /// Gathers them.
    pub(crate) fn of(image: &Image, function: &Function) -> Self {
        let mut facts = Self {
            stack: 8,
            ..Self::default()
        };
        let mut last = None;
        let mut table = false;
        for instruction in decode(image, function) {
            facts.flow(image, function, &instruction, &mut table);
            facts.registers(&instruction);
            facts.frame(&instruction);
            // Padding is not run into.
            if !matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3) {
                last = Some(instruction.flow_control());
            }
        }
        // It runs into what follows.
        if !matches!(
            last,
            Some(
                FlowControl::UnconditionalBranch
                    | FlowControl::IndirectBranch
                    | FlowControl::Return
                    | FlowControl::Exception
                    | FlowControl::Interrupt
            )
        ) && let Some(next) = image.at(function.end)
        {
            facts.callees.insert(next.start);
        }
        facts
    }

    fn flow(
        &mut self,
        image: &Image,
        function: &Function,
        instruction: &Instruction,
        table: &mut bool,
    ) {
        let rva = |address: u64| {
            address
                .checked_sub(image.base())
                .and_then(|offset| u32::try_from(offset).ok())
        };
        match flow_control(instruction) {
            FlowControl::Call
            | FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch => {
                let target = rva(instruction.near_branch_target());
                match target.and_then(|target| image.at(target)) {
                    Some(callee) if callee.start != function.start => {
                        self.callees.insert(callee.start);
                    }
                    // A branch within the function; a call of itself is recursion.
                    Some(callee) => {
                        if instruction.flow_control() == FlowControl::Call {
                            self.callees.insert(callee.start);
                        }
                    }
                    None => self.indirect.push(format!("{instruction} (no function)")),
                }
            }
            FlowControl::IndirectCall | FlowControl::IndirectBranch => {
                let slot = instruction
                    .is_ip_rel_memory_operand()
                    .then(|| rva(instruction.ip_rel_memory_address()))
                    .flatten();
                if let Some(import) = slot.and_then(|slot| image.import(slot)) {
                    self.imports.insert(import.to_owned());
                } else if let Some(callee) = slot.and_then(|slot| image.pointer(slot)) {
                    self.callees.insert(callee.start);
                } else if instruction.flow_control() == FlowControl::IndirectBranch
                    && instruction.op0_kind() == OpKind::Register
                    && *table
                {
                    // The compiler's jump table: it stays within the function.
                } else {
                    self.indirect.push(instruction.to_string());
                }
            }
            FlowControl::Next => self.address(image, instruction, rva),
            _ => {}
        }
        // `movsxd r, [table + index * 4]; add r, table; jmp r`
        *table = match instruction.mnemonic() {
            Mnemonic::Movsxd if instruction.memory_index_scale() == 4 => true,
            _ => *table && instruction.flow_control() == FlowControl::Next,
        };
    }

    /// An address that is taken: of a function, or of a table of functions, as the
    /// compiler lays them out (drop, size, alignment, methods).
    fn address(
        &mut self,
        image: &Image,
        instruction: &Instruction,
        rva: impl Fn(u64) -> Option<u32>,
    ) {
        if !instruction.is_ip_rel_memory_operand() {
            return;
        }
        let Some(place) = rva(instruction.ip_rel_memory_address()) else {
            return;
        };
        if let Some(import) = image.import(place) {
            self.imports.insert(import.to_owned());
        }
        if instruction.mnemonic() != Mnemonic::Lea {
            return;
        }
        if let Some(callee) = image.at(place).filter(|callee| callee.start == place) {
            self.callees.insert(callee.start);
        }
        let methods = (place..)
            .step_by(8)
            .skip(3)
            .map_while(|slot| image.pointer(slot));
        let drop = image.pointer(place);
        for callee in drop.into_iter().chain(methods) {
            self.callees.insert(callee.start);
        }
    }

    fn registers(&mut self, instruction: &Instruction) {
        if registers(instruction).any(is_wide) || instruction.mnemonic() == Mnemonic::Vzeroupper {
            self.wide.push(instruction.to_string());
        }
        if registers(instruction).any(Register::is_xmm) {
            self.vectors += 1;
        }
    }

    fn frame(&mut self, instruction: &Instruction) {
        let on_stack = instruction.op0_register() == Register::RSP;
        match instruction.mnemonic() {
            Mnemonic::Push => self.stack += 8,
            Mnemonic::Sub if on_stack => {
                self.stack += u32::try_from(instruction.immediate(1)).unwrap_or(u32::MAX / 2);
            }
            // Alignment to that many bytes.
            Mnemonic::And if on_stack => {
                let mask = instruction.immediate(1);
                self.stack += u32::try_from(!mask).unwrap_or(u32::MAX / 2);
            }
            _ => {}
        }
    }
}
