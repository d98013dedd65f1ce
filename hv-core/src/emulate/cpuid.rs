//! CPUID as the guest is to see it.
//!
//! Everything is passed through but for two kinds of bits: those that mirror
//! control registers, which in root mode would show root mode's (OSXSAVE,
//! OSPKE), and those that offer VMX, which is in use, and SMX, whose GETSEC always
//! exits (the allow-list in `docs/`). Pure. Intel SDM vol. 2, "CPUID—CPU Identification".

const VMX: u32 = 1 << 5;
const SMX: u32 = 1 << 6;
const OSXSAVE: u32 = 1 << 27;
const OSPKE: u32 = 1 << 4;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_PKE: u64 = 1 << 22;

/// ECX of a leaf as the guest sees it, from ECX as root mode sees it and the
/// guest's CR4.
#[inline]
#[must_use]
pub const fn guest_ecx(leaf: u32, subleaf: u32, ecx: u32, cr4: u64) -> u32 {
    match leaf {
        1 => {
            let ecx = ecx & !(VMX | SMX | OSXSAVE);
            if cr4 & CR4_OSXSAVE != 0 {
                ecx | OSXSAVE
            } else {
                ecx
            }
        }
        7 if subleaf == 0 => {
            let ecx = ecx & !OSPKE;
            if cr4 & CR4_PKE != 0 { ecx | OSPKE } else { ecx }
        }
        _ => ecx,
    }
}

/// Whether [`guest_ecx`] can change anything for this leaf.
#[inline]
#[must_use]
pub const fn is_adjusted(leaf: u32) -> bool {
    leaf == 1 || leaf == 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_follow_the_guest() {
        assert!(is_adjusted(1) && is_adjusted(7));
        assert_eq!(guest_ecx(1, 0, u32::MAX, 0), !0x0800_0060);
        assert_eq!(guest_ecx(1, 0, 0, 1 << 18), 0x0800_0000);
        assert_eq!(guest_ecx(1, 0, u32::MAX, u64::MAX), !0x60);
        assert_eq!(guest_ecx(7, 0, u32::MAX, 0), !0x10);
        assert_eq!(guest_ecx(7, 0, 0, 1 << 22), 0x10);
        assert_eq!(guest_ecx(7, 0, u32::MAX, u64::MAX), u32::MAX);
        assert_eq!(guest_ecx(7, 1, 0x10, 0), 0x10, "another subleaf");
    }

    #[test]
    fn nothing_else_changes() {
        for leaf in [0, 2, 4, 0xB, 0xD, 0x14, 0x4000_0000, 0x8000_0001] {
            assert!(!is_adjusted(leaf));
            assert_eq!(guest_ecx(leaf, 0, 0x5A5A_5A5A, 0), 0x5A5A_5A5A);
        }
    }
}
