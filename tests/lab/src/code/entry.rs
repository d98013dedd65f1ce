//! The assembly stubs by which root mode is entered: which of the guest's vector
//! registers are safe on the stack at each call.
//!
//! Every path through a stub is walked with the set of XMM0 to XMM5 that it has
//! saved. The calling convention keeps XMM6 to XMM15, so a call is right when all
//! six are saved, or when nothing below it touches a vector register.

use super::function::{Facts, decode, flow_control, registers};
use super::image::{Function, Image};
use super::reach::Reach;
use iced_x86::{Code, FlowControl, Instruction, OpKind, Register};
use std::collections::{BTreeMap, BTreeSet};

/// XMM0 to XMM5.
const ALL: u8 = 0b11_1111;

/// What is wrong with the stub. A function named in `ends` never returns to what
/// called it.
pub(crate) fn check_stub(image: &Image, stub: &Function, ends: &[&str]) -> Vec<String> {
    let mut code: BTreeMap<u64, Instruction> = BTreeMap::new();
    let mut calls = BTreeSet::new();
    for instruction in decode(image, stub) {
        if flow_control(&instruction) == FlowControl::Call {
            calls.insert(instruction.ip());
        }
        code.insert(instruction.ip(), instruction);
    }
    let first = image.base() + u64::from(stub.start);
    let mut entries = vec![first];
    // The 32 exception stubs are one symbol: each 16 bytes one entry.
    if stub.name() == "hvdetect_exception_stubs" {
        entries = (0..32).map(|vector| first + vector * 16).collect();
    }
    let mut open: Vec<(u64, u8)> = entries.into_iter().map(|ip| (ip, 0)).collect();
    let mut seen = BTreeSet::new();
    let mut wrong = BTreeSet::new();
    while let Some((ip, saved)) = open.pop() {
        if !seen.insert((ip, saved)) {
            continue;
        }
        calls.remove(&ip);
        // Out of the stub: into another that is checked for itself.
        let Some(instruction) = code.get(&ip) else {
            continue;
        };
        let saved = match step(image, instruction, saved, ends) {
            Ok(saved) => saved,
            Err(text) => {
                wrong.insert(format!("{}: {text}", stub.name()));
                saved
            }
        };
        match flow_control(instruction) {
            FlowControl::UnconditionalBranch => {
                open.push((instruction.near_branch_target(), saved));
            }
            FlowControl::ConditionalBranch => {
                open.push((instruction.near_branch_target(), saved));
                open.push((instruction.next_ip(), saved));
            }
            FlowControl::Return | FlowControl::IndirectBranch => {}
            _ => open.push((instruction.next_ip(), saved)),
        }
    }
    // A walk that saw no call has shown nothing.
    for ip in calls {
        wrong.insert(format!(
            "{}: the call at {ip:#x} was not looked at",
            stub.name()
        ));
    }
    wrong.into_iter().collect()
}

/// The set of saved registers after an instruction.
fn step(image: &Image, instruction: &Instruction, saved: u8, ends: &[&str]) -> Result<u8, String> {
    if flow_control(instruction) == FlowControl::Call {
        let callee = instruction
            .near_branch_target()
            .checked_sub(image.base())
            .and_then(|rva| image.at(u32::try_from(rva).ok()?));
        let Some(callee) = callee else {
            return Err(format!("{instruction}: no function"));
        };
        if saved == ALL || ends.contains(&callee.name()) {
            return Ok(saved);
        }
        let below = Reach::from(image, &[callee], ends);
        // What never returns may change what it likes.
        let changes = |&(function, facts): &(&Function, &Facts)| {
            facts.vectors > 0 && !ends.contains(&function.name())
        };
        return match below.each().find(changes) {
            None => Ok(saved),
            Some((function, _)) => Err(format!(
                "calls {} with the guest's XMM registers in place, which reaches code that \
                 changes them:\n      -> {}",
                callee.name(),
                below.chain(function)
            )),
        };
    }
    let bit = |register: Register| 1u8.checked_shl(u32::try_from(register.number()).unwrap_or(99));
    match instruction.code() {
        Code::Movups_xmmm128_xmm | Code::Movaps_xmmm128_xmm
            if instruction.op0_kind() == OpKind::Memory =>
        {
            Ok(saved | bit(instruction.op1_register()).unwrap_or(0) & ALL)
        }
        Code::Movups_xmm_xmmm128 | Code::Movaps_xmm_xmmm128
            if instruction.op1_kind() == OpKind::Memory =>
        {
            match bit(instruction.op0_register()) {
                Some(bit) if saved & bit != 0 => Ok(saved & !bit),
                _ => Err(format!("{instruction}: what it had is not saved")),
            }
        }
        _ if registers(instruction).any(Register::is_vector_register) => {
            Err(format!("{instruction}: touches a vector register"))
        }
        _ => Ok(saved),
    }
}
