//! Which MSRs are the hypervisor's business on AMD, and what the guest sees of
//! them.
//!
//! EFER, because SVME is set and the guest's own was not; VM_CR, which reads as "SVM
//! disabled, locked", so that another hypervisor says why it cannot start; and
//! VM_HSAVE_PA, which reads as 0. Everything else is passed through by the
//! permissions map; what the map does not cover always exits and is executed with a
//! fix-up. Memory types need nothing: the processor applies the MTRRs itself. Pure.
//! AMD APM vol. 2, "MSR Intercepts" and "SVM Related MSRs".

use crate::emulate::msr::Answer;

/// EFER.
pub const EFER: u32 = 0xC000_0080;
/// VM_CR.
pub const VM_CR: u32 = 0xC001_0114;
/// SVM_KEY: unlocks VM_CR.
pub const SVM_KEY: u32 = 0xC001_0118;
/// VM_HSAVE_PA.
pub const VM_HSAVE_PA: u32 = 0xC001_0117;

/// VM_CR.R_INIT: INIT is a security exception.
pub const VM_CR_R_INIT: u64 = 1 << 1;
/// VM_CR.LOCK.
pub const VM_CR_LOCK: u64 = 1 << 3;
/// VM_CR.SVMDIS.
pub const VM_CR_SVMDIS: u64 = 1 << 4;

const fn is_ours(index: u32) -> bool {
    matches!(index, EFER | VM_CR | VM_HSAVE_PA | SVM_KEY)
}

/// Judges a read. `efer` is the guest's, `vm_cr` the value from before the launch.
#[must_use]
pub const fn judge_read(index: u32, efer: u64, vm_cr: u64) -> Answer {
    match index {
        EFER => Answer::Value(efer),
        VM_CR => Answer::Value(vm_cr | VM_CR_LOCK | VM_CR_SVMDIS),
        VM_HSAVE_PA => Answer::Value(0),
        // Write-only.
        SVM_KEY => Answer::GeneralProtection,
        _ => Answer::Execute,
    }
}

/// Fills the permissions map: two bits for each MSR, the lower one for reads, the
/// higher one for writes; 2 KB each for the MSRs from 0, from C000_0000H and from
/// C001_0000H on.
pub fn fill_map(map: &mut [u8; 8192]) {
    for (byte, first) in map.iter_mut().zip((0_u32..).step_by(4)) {
        let base = match first / 0x2000 {
            0 => 0,
            1 => 0xC000_0000,
            2 => 0xC001_0000,
            _ => continue,
        };
        *byte = (0..4)
            .filter(|slot| is_ours(base + first % 0x2000 + slot))
            .fold(0, |byte, slot| byte | 3 << (2 * slot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_holds_what_is_judged_and_nothing_else() {
        let mut map = [0; 8192];
        fill_map(&mut map);
        let bits = |part: usize, index: usize| map[part * 2048 + index / 4] >> (index % 4 * 2) & 3;
        assert_eq!(bits(1, 0x80), 3);
        assert_eq!([bits(2, 0x114), bits(2, 0x117), bits(2, 0x118)], [3; 3]);
        assert_eq!(
            bits(1, 0x82) | bits(0, 0x277) | bits(2, 0x10),
            0,
            "LSTAR, PAT"
        );
        let set: u32 = map.iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(set, 8);
    }

    #[test]
    fn svm_is_hidden_as_by_firmware() {
        assert_eq!(judge_read(VM_CR, 0, 2), Answer::Value(0x1A));
        assert_eq!(judge_read(EFER, 0xD01, 0), Answer::Value(0xD01));
        assert_eq!(judge_read(VM_HSAVE_PA, 0, 0), Answer::Value(0));
        assert_eq!(judge_read(0xC001_0010, 0, 0), Answer::Execute);
    }
}
