//! Which MSRs are the hypervisor's business, and what the guest sees of them.
//!
//! As few as possible: the VMX capability MSRs (VMX is in use, and CPUID does not
//! show it), IA32_FEATURE_CONTROL (reads as "locked, VMX off", so that another
//! hypervisor says why it cannot start), and writes to the memory-type range
//! registers (the nested tables must follow). Everything else is passed through
//! by the bitmap; what the bitmap does not cover always exits and is executed
//! with a fix-up. Pure. Intel SDM vol. 3, "MSR-Bitmap Address".

use ept::memtype::{MSR_DEF_TYPE, MSR_FIXED};

/// IA32_FEATURE_CONTROL.
pub const FEATURE_CONTROL: u32 = 0x3A;
/// First VMX capability MSR, IA32_VMX_BASIC.
pub const VMX_FIRST: u32 = 0x480;
/// Last VMX capability MSR, IA32_VMX_EXIT_CTLS2.
pub const VMX_LAST: u32 = 0x493;
/// First variable-range MTRR.
const MTRR_VARIABLE: u32 = 0x200;

const LOCK: u64 = 1;
const VMX_IN_SMX: u64 = 1 << 1;
const VMX_OUTSIDE_SMX: u64 = 1 << 2;

/// What to do with an RDMSR or a WRMSR that exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Execute it; a fault becomes the guest's #GP.
    Execute,
    /// Execute it, and re-derive memory types from the written value.
    ExecuteMemoryType,
    /// The guest reads this value.
    Value(u64),
    /// #GP(0), EDX:EAX unchanged.
    GeneralProtection,
}

const fn is_vmx(index: u32) -> bool {
    index >= VMX_FIRST && index <= VMX_LAST
}

/// IA32_FEATURE_CONTROL as the guest reads it: locked, without VMX.
#[must_use]
pub const fn feature_control(actual: u64) -> u64 {
    (actual | LOCK) & !(VMX_IN_SMX | VMX_OUTSIDE_SMX)
}

/// Judges a read. `feature_control` is the register's actual value.
#[must_use]
pub const fn judge_read(index: u32, actual_feature_control: u64) -> Answer {
    if is_vmx(index) {
        Answer::GeneralProtection
    } else if index == FEATURE_CONTROL {
        Answer::Value(feature_control(actual_feature_control))
    } else {
        Answer::Execute
    }
}

/// Judges a write.
#[must_use]
pub fn judge_write(index: u32, variable_ranges: u32) -> Answer {
    if is_vmx(index) || index == FEATURE_CONTROL {
        // Read-only, or locked.
        Answer::GeneralProtection
    } else if is_memory_type(index, variable_ranges) {
        Answer::ExecuteMemoryType
    } else {
        Answer::Execute
    }
}

/// Whether an MSR is a memory-type range register.
#[must_use]
pub fn is_memory_type(index: u32, variable_ranges: u32) -> bool {
    index == MSR_DEF_TYPE
        || MSR_FIXED.contains(&index)
        || (MTRR_VARIABLE..MTRR_VARIABLE + 2 * variable_ranges).contains(&index)
}

/// The MSR bitmap: which reads and writes exit. Four parts of 1 KB: reads of low
/// MSRs, of high ones, writes of low ones, of high ones.
#[must_use]
pub fn exits(bitmap_bit: u32, variable_ranges: u32) -> bool {
    const PART: u32 = 0x2000;
    let index = bitmap_bit % PART;
    match bitmap_bit / PART {
        0 => is_vmx(index) || index == FEATURE_CONTROL,
        2 => is_vmx(index) || index == FEATURE_CONTROL || is_memory_type(index, variable_ranges),
        _ => false,
    }
}

/// Fills the bitmap page.
pub fn fill_bitmap(bitmap: &mut [u8; 4096], variable_ranges: u32) {
    for (byte, first) in bitmap.iter_mut().zip((0_u32..).step_by(8)) {
        *byte = (0..8)
            .filter(|bit| exits(first + bit, variable_ranges))
            .fold(0, |byte, bit| byte | 1 << bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmx_is_hidden_as_by_firmware() {
        assert_eq!(judge_read(0x480, 5), Answer::GeneralProtection);
        assert_eq!(judge_read(0x493, 5), Answer::GeneralProtection);
        assert_eq!(judge_read(0x3A, 5), Answer::Value(1));
        assert_eq!(judge_read(0x3A, 0xF_FF05), Answer::Value(0xF_FF01));
        assert_eq!(judge_read(0x3A, 7), Answer::Value(1));
        assert_eq!(judge_read(0x3A, 0), Answer::Value(1), "unlocked");
        assert_eq!(judge_write(0x3A, 8), Answer::GeneralProtection);
        assert_eq!(judge_write(0x480, 8), Answer::GeneralProtection);
        assert_eq!(judge_write(0x20F, 8), Answer::ExecuteMemoryType);
        assert_eq!(judge_write(0x210, 8), Answer::Execute);
        assert_eq!(judge_read(0x1B, 5), Answer::Execute);
    }

    #[test]
    fn each_bit_is_the_judgement_of_its_msr() {
        let mut bitmap = [0; 4096];
        fill_bitmap(&mut bitmap, 8);
        for index in 0..0x2000_u32 {
            let bit = |part: usize| bitmap[part * 1024 + index as usize / 8] >> (index % 8) & 1;
            let vmx = index == 0x3A || (0x480..=0x493).contains(&index);
            let types = [0x250, 0x258, 0x259, 0x2FF].contains(&index)
                || (0x200..=0x20F).contains(&index)
                || (0x268..=0x26F).contains(&index);
            assert_eq!(bit(0) == 1, vmx, "{index:#x}");
            assert_eq!(judge_read(index, 5) != Answer::Execute, vmx, "{index:#x}");
            assert_eq!(bit(2) == 1, vmx || types, "{index:#x}");
            let written = match (vmx, types) {
                (true, _) => Answer::GeneralProtection,
                (_, true) => Answer::ExecuteMemoryType,
                _ => Answer::Execute,
            };
            assert_eq!(judge_write(index, 8), written, "{index:#x}");
        }
    }

    #[test]
    fn the_bitmap_holds_what_is_judged_and_nothing_else() {
        let mut bitmap = [0; 4096];
        fill_bitmap(&mut bitmap, 8);
        let bit =
            |part: usize, index: usize| bitmap[part * 1024 + index / 8] >> (index % 8) & 1 == 1;
        assert!(bit(0, 0x480) && bit(2, 0x480) && bit(0, 0x3A) && bit(2, 0x3A));
        assert!(bit(2, 0x200) && bit(2, 0x20F) && !bit(2, 0x210) && !bit(0, 0x200));
        assert!(bit(2, 0x2FF) && bit(2, 0x250) && bit(2, 0x26F));
        assert!(
            !bit(0, 0x10) && !bit(2, 0x277),
            "TSC and PAT are the guest's"
        );
        assert!(bitmap[1024..2048].iter().all(|byte| *byte == 0));
        assert!(bitmap[3072..].iter().all(|byte| *byte == 0), "LSTAR, EFER");
    }
}
