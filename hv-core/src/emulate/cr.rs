//! Writes to CR0 and CR4 that touch a bit which VMX operation owns.
//!
//! Of CR0 that is NE, of CR4 VMXE and SMXE. A write exits only when it would change
//! such a bit; the guest then gets what it would get on a processor without VMX:
//! NE as it likes (in its shadow), #GP for VMXE and SMXE. Pure. Intel SDM vol. 3, "Changes
//! to Instruction Behavior in VMX Non-Root Operation" and vol. 2, "MOV—Move
//! to/from Control Registers".

/// An access to a control register, from the exit qualification (Intel SDM
/// vol. 3, "Exit Qualification for Control-Register Accesses").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// MOV to a control register from a general register.
    Write {
        /// 0, 3, 4 or 8.
        register: u8,
        /// General register, in encoding order.
        source: u8,
    },
    /// MOV from a control register.
    Read {
        /// 3 or 8.
        register: u8,
        /// General register, in encoding order.
        target: u8,
    },
    /// CLTS.
    ClearTaskSwitched,
    /// LMSW with its 16-bit operand.
    LoadMachineStatus(u16),
}

/// Decodes the qualification.
#[must_use]
pub const fn decode(qualification: u64) -> Access {
    let register = (qualification & 15) as u8;
    let general = (qualification >> 8 & 15) as u8;
    match qualification >> 4 & 3 {
        0 => Access::Write {
            register,
            source: general,
        },
        1 => Access::Read {
            register,
            target: general,
        },
        2 => Access::ClearTaskSwitched,
        _ => Access::LoadMachineStatus((qualification >> 16 & 0xFFFF) as u16),
    }
}

const PE: u64 = 1;
const TS: u64 = 1 << 3;
const NW: u64 = 1 << 29;
const CD: u64 = 1 << 30;
const PG: u64 = 1 << 31;
const CR4_VMXE: u64 = 1 << 13;
const CR4_SMXE: u64 = 1 << 14;

/// Bits of CR4 whose change exits.
pub const CR4_OWNED: u64 = CR4_VMXE | CR4_SMXE;
const CR4_PAE: u64 = 1 << 5;
const CR4_PCIDE: u64 = 1 << 17;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// CR0.CD and CR0.NW.
pub const CACHE_BITS: u64 = CD | NW;
const WP: u64 = 1 << 16;
const CR4_CET: u64 = 1 << 23;

/// The state on which a write to CR0 is judged.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// CR0 as the guest sees it.
    pub cr0: u64,
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// CS.L = 1.
    pub cs_long: bool,
}

/// A legal write to CR0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewCr0 {
    /// The value, as the guest will see it.
    pub cr0: u64,
    /// EFER after it (LMA follows paging).
    pub efer: u64,
}

/// Judges a write to CR0 in 64-bit or legacy mode; `None` is #GP(0).
#[must_use]
pub const fn write_cr0(facts: &Facts, value: u64) -> Option<NewCr0> {
    if value >> 32 != 0
        || (value & PG != 0 && value & PE == 0)
        || (value & NW != 0 && value & CD == 0)
        || (value & WP == 0 && facts.cr4 & CR4_CET != 0)
    {
        return None;
    }
    // Reserved bits of the low half are ignored, ET reads as 1.
    let cr0 = value & 0xE005_003F | 1 << 4;
    let was = facts.cr0 & PG != 0;
    let is = cr0 & PG != 0;
    let mut efer = facts.efer;
    if !was && is && efer & EFER_LME != 0 {
        if facts.cr4 & CR4_PAE == 0 || facts.cs_long {
            return None;
        }
        efer |= EFER_LMA;
    }
    if was && !is {
        if efer & EFER_LMA != 0 && facts.cs_long || facts.cr4 & CR4_PCIDE != 0 {
            return None;
        }
        efer &= !EFER_LMA;
    }
    Some(NewCr0 { cr0, efer })
}

/// CR0 after LMSW: it sets or clears MP, EM and TS and can set PE but not clear
/// it.
#[must_use]
pub const fn load_machine_status(cr0: u64, operand: u16) -> u64 {
    cr0 & !0xE | operand as u64 & 0xF
}

/// CR0 after CLTS.
#[must_use]
pub const fn clear_task_switched(cr0: u64) -> u64 {
    cr0 & !TS
}

/// Whether a write to CR4 that exited is legal: VMX and SMX are not offered, so
/// VMXE and SMXE are reserved bits. (A start with either set is refused, and all
/// other bits are judged by the processor.)
#[must_use]
pub const fn permits_cr4(value: u64) -> bool {
    value & CR4_OWNED == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Facts = Facts {
        cr0: 0x8005_0033,
        cr4: 0x20,
        efer: 0xD01,
        cs_long: true,
    };

    #[test]
    fn qualifications_are_decoded() {
        assert_eq!(
            decode(0x0304),
            Access::Write {
                register: 4,
                source: 3
            }
        );
        assert_eq!(
            decode(0x0413),
            Access::Read {
                register: 3,
                target: 4
            }
        );
        assert_eq!(decode(0x20), Access::ClearTaskSwitched);
        assert_eq!(decode(0x1_0030), Access::LoadMachineStatus(1));
        // What is not asked for is ignored.
        assert_eq!(
            decode(!0x37),
            Access::Write {
                register: 8,
                source: 15
            }
        );
        assert_eq!(decode(u64::MAX), Access::LoadMachineStatus(0xFFFF));
    }

    #[test]
    fn ne_is_the_guest_s_to_clear() {
        let new = write_cr0(&LONG, 0x8005_0013).unwrap();
        assert_eq!(new.cr0, 0x8005_0013);
        assert_eq!(new.efer, 0xD01);
    }

    #[test]
    fn illegal_values_fault() {
        for value in [
            1 << 32,
            PG,
            1 << 63 | 0x8005_0033,
            NW | 0x8005_0033,
            0x0005_0033,
        ] {
            assert_eq!(write_cr0(&LONG, value), None, "{value:#x}");
        }
        // Without write protection there are no shadow stacks.
        let cet = Facts {
            cr4: 0x80_0020,
            ..LONG
        };
        assert_eq!(write_cr0(&cet, 0x8004_0033), None);
        assert!(write_cr0(&LONG, 0x8004_0033).is_some());
    }

    #[test]
    fn paging_turns_long_mode_on_and_off() {
        let off = Facts {
            cr0: 0x11,
            cr4: 0x20,
            efer: 0x901,
            cs_long: false,
        };
        assert_eq!(write_cr0(&off, 0x8000_0011).unwrap().efer, 0xD01);
        let on = Facts {
            cr0: 0x8000_0011,
            efer: 0xD01,
            ..off
        };
        assert_eq!(write_cr0(&on, 0x11).unwrap().efer, 0x901);
        assert_eq!(write_cr0(&Facts { cr4: 0, ..off }, 0x8000_0011), None);
    }

    /// Each combination of what a write to CR0 depends on, with the numbers of the
    /// manual.
    #[test]
    fn every_write_to_cr0_is_judged_as_the_manual_says() {
        let choose = |number: u32, bits: &[u32]| {
            bits.iter().enumerate().fold(0_u64, |value, (at, bit)| {
                value | u64::from(number >> at & 1) << bit
            })
        };
        let is = |value: u64, bit: u32| value >> bit & 1 == 1;
        // PE, TS, a reserved bit, WP, NW, CD, PG, and one of the upper half.
        let values = [0, 3, 6, 16, 29, 30, 31, 32];
        for number in 0..1 << 15 {
            let value = choose(number, &values);
            let facts = Facts {
                cr0: choose(number >> 8, &[31]),
                cr4: choose(number >> 9, &[5, 17, 23]),
                efer: choose(number >> 12, &[8, 10]),
                cs_long: number >> 14 == 1,
            };
            let (was, on) = (is(facts.cr0, 31), is(value, 31));
            let illegal = is(value, 32)
                || on && !is(value, 0)
                || is(value, 29) && !is(value, 30)
                || is(facts.cr4, 23) && !is(value, 16);
            let into = !was && on && is(facts.efer, 8);
            let out = was && !on;
            let refused = into && (!is(facts.cr4, 5) || facts.cs_long)
                || out && (is(facts.cr4, 17) || is(facts.efer, 10) && facts.cs_long);
            let efer = match (into, out) {
                (true, _) => facts.efer | 1 << 10,
                (_, true) => facts.efer & !(1 << 10),
                _ => facts.efer,
            };
            let expected = NewCr0 {
                cr0: value & !(1 << 6) | 1 << 4,
                efer,
            };
            let judged = write_cr0(&facts, value);
            let expected = (!illegal && !refused).then_some(expected);
            assert_eq!(judged, expected, "{facts:x?} {value:#x}");
        }
        // Reserved bits of the lower half are ignored, all others are taken.
        let all = write_cr0(&LONG, 0xFFFF_FFFF).unwrap();
        assert_eq!(all.cr0, 0xE005_003F);
    }

    #[test]
    fn lmsw_cannot_leave_protected_mode() {
        assert_eq!(load_machine_status(0x8005_0031, 0xFFF0), 0x8005_0031);
        assert_eq!(load_machine_status(0x8005_0030, 0xFFFF), 0x8005_003F);
        assert_eq!(load_machine_status(0x8005_0031, 1), 0x8005_0031);
        assert_eq!(load_machine_status(0x8005_0033, 0), 0x8005_0031);
        assert_eq!(load_machine_status(0x10, 1), 0x11);
        assert_eq!(clear_task_switched(0x8005_003B), 0x8005_0033);
    }

    #[test]
    fn vmxe_is_reserved() {
        assert_eq!(CR4_OWNED, 0x6000);
        assert_eq!(CACHE_BITS, 0x6000_0000);
        assert!(permits_cr4(0x0035_06F8 & !0x6000));
        assert!(!permits_cr4(0x2000));
        assert!(!permits_cr4(0x4000));
    }
}
