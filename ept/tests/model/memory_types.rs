//! Memory types against an oracle that asks each range about each address.

use ept::addr::{Gpa, PageSize};
use ept::memtype::{MSR_DEF_TYPE, MSR_FIXED, MSR_PHYS_BASE0, MemoryType, MtrrState};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::rng::{Rng, scaled};

#[derive(Clone, Debug)]
struct Registers {
    cap: u64,
    def_type: u64,
    fixed: [u64; 11],
    variable: Vec<(u64, u64)>,
    phys_bits: u8,
}

impl Registers {
    fn state(&self) -> MtrrState {
        MtrrState::new(
            self.cap,
            self.def_type,
            self.fixed,
            &self.variable,
            self.phys_bits,
        )
    }

    /// The rule of the manual, one byte at a time: Intel SDM volume 3, "MTRR
    /// Precedences".
    fn oracle(&self, address: u64) -> u64 {
        if self.def_type >> 11 & 1 == 0 {
            return 0;
        }
        if address < 0x10_0000 && self.def_type >> 10 & 1 == 1 && self.cap >> 8 & 1 == 1 {
            // Ranges of 64 KB, then of 16 KB, then of 4 KB, eight a register.
            let mut start = 0;
            for number in 0..88 {
                start += match number {
                    0..8 => 0x1_0000,
                    8..24 => 0x4000,
                    _ => 0x1000,
                };
                if address < start {
                    return u64::from(self.fixed[number / 8].to_le_bytes()[number % 8]);
                }
            }
        }
        let width = (1_u64 << self.phys_bits) - 1;
        let announced = usize::from((self.cap & 0xff) as u8);
        let mut result = None;
        for (base, mask) in self.variable.iter().take(announced) {
            let mask_bits = mask & width & !0xfff;
            if mask >> 11 & 1 == 1 && address & mask_bits == base & mask_bits {
                let mt = base & 0xff;
                result = Some(match (result, mt) {
                    (None, mt) => mt,
                    (Some(other), mt) if other == mt => mt,
                    (Some(4), 6) | (Some(6), 4) => 4,
                    _ => 0,
                });
            }
        }
        result.unwrap_or(self.def_type & 0xff)
    }

    /// Addresses where something may change: the ends of each range, and the
    /// addresses that differ from it in one bit of its mask.
    fn edges(&self) -> Vec<u64> {
        let width = (1_u64 << self.phys_bits) - 1;
        let mut edges = vec![
            0, 0x7_ffff, 0x8_0000, 0x9_ffff, 0xa_0000, 0xb_ffff, 0xc_0000, 0xf_ffff, 0x10_0000,
            0x20_0000, width,
        ];
        for (base, mask) in &self.variable {
            let start = base & !0xfff & width;
            let bytes = 1_u64 << (mask & width & !0xfff).trailing_zeros().min(47);
            edges.extend([
                start,
                start.wrapping_sub(1) & width,
                (start + bytes - 1) & width,
                (start + bytes) & width,
            ]);
        }
        edges
    }
}

const TYPES: [u64; 5] = [0, 1, 4, 5, 6];

/// Registers drawn from `seed`, with `count` variable ranges. Plain draws and
/// not one strategy for each field: that keeps 100,000 cases in seconds.
fn draw(seed: u64, count: usize) -> Registers {
    let mut rng = Rng::new(seed);
    let mt = |rng: &mut Rng| TYPES[rng.below(TYPES.len())];
    let phys_bits = [36_u8, 39, 40, 46, 48, 52][rng.below(6)];
    let all = mt(&mut rng) * 0x0101_0101_0101_0101;
    let mixed = rng.chance(2);
    let fixed = [(); 11].map(|()| {
        if mixed {
            (0..8).fold(0, |value, _| value << 8 | mt(&mut rng))
        } else {
            // One type throughout, as the variable ranges may say as well.
            all
        }
    });
    let (no_fixed, no_fe, disabled) = (rng.chance(10), rng.chance(10), rng.chance(10));
    let def_type = mt(&mut rng) | u64::from(!no_fe) << 10 | u64::from(!disabled) << 11;
    let width = (1_u64 << phys_bits) - 1;
    let variable = (0..count)
        .map(|_| {
            // Mostly around the sizes of leaves.
            let order = [12, 20, 28][rng.below(3)] + rng.below(12);
            let order = order.min(usize::from(phys_bits) - 1);
            let mut mask = width & !((1 << order) - 1);
            if rng.chance(10) {
                // "Discontiguous" masks are legal.
                mask &= rng.next() | 0xffff_ff00_0000_0000;
            }
            // Mostly low, so that ranges meet.
            let place = match rng.below(4) {
                0 => rng.next() << 8,
                _ => rng.next() & 0x3_ffff_ffff,
            };
            let base = place & mask & width & !0xfff;
            let valid = !rng.chance(8);
            (
                base | mt(&mut rng),
                (mask & !0xfff) | u64::from(valid) << 11,
            )
        })
        .collect();
    Registers {
        cap: count as u64 | u64::from(!no_fixed) << 8,
        def_type,
        fixed,
        variable,
        phys_bits,
    }
}

fn registers() -> impl Strategy<Value = Registers> {
    (any::<u64>(), 0_usize..12).prop_map(|(seed, count)| draw(seed, count))
}

fn run(count: u32, test: impl Fn(Registers) -> Result<(), TestCaseError>) {
    let config = Config {
        cases: count,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config).run(&registers(), test).unwrap();
}

#[test]
fn one_address_is_as_the_oracle_says() {
    run(scaled(100_000), |registers| {
        let state = registers.state();
        let edges = registers.edges();
        let mut rng = Rng::new(registers.def_type ^ edges.iter().sum::<u64>());
        for _ in 0..8 {
            let address = edges[rng.below(edges.len())];
            prop_assert_eq!(
                u64::from(state.type_of(Gpa::new(address)).bits()),
                registers.oracle(address),
                "{:#x}",
                address
            );
        }
        Ok(())
    });
}

#[test]
fn a_page_of_one_type_has_that_type_everywhere() {
    run(scaled(20_000), |registers| {
        let state = registers.state();
        let edges = registers.edges();
        let mut rng = Rng::new(registers.def_type ^ edges.iter().sum::<u64>());
        for &edge in &edges {
            for size in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
                let base = edge & !(size.bytes() - 1);
                let Some(mt) = state.type_of_range(Gpa::new(edge), size) else {
                    prop_assert_ne!(size, PageSize::Size4K);
                    continue;
                };
                let inside = edges
                    .iter()
                    .copied()
                    .filter(|e| e - (e & (size.bytes() - 1)) == base);
                let random = (0..8).map(|_| base | rng.next() & (size.bytes() - 1));
                for address in inside.chain(random) {
                    prop_assert_eq!(
                        u64::from(mt.bits()),
                        registers.oracle(address),
                        "{:#x} in {:?} at {:#x}",
                        address,
                        size,
                        base
                    );
                }
            }
        }
        Ok(())
    });
}

/// All 512 pages of a 2 MB page. `None` must have a reason: two types, or two
/// ranges that both end inside the page.
#[test]
fn a_page_is_split_for_a_reason_only() {
    run(scaled(1_000), |registers| {
        let state = registers.state();
        for edge in registers.edges() {
            let base = edge & !0x1f_ffff;
            let first = registers.oracle(base);
            let uniform = (0..512).all(|page| registers.oracle(base + page * 4096) == first);
            let inside = registers
                .variable
                .iter()
                .filter(|(_, mask)| mask >> 11 & 1 == 1 && mask & 0x1f_f000 != 0)
                .count();
            match state.type_of_range(Gpa::new(base), PageSize::Size2M) {
                Some(mt) => {
                    prop_assert!(uniform, "{base:#x}");
                    prop_assert_eq!(u64::from(mt.bits()), first);
                }
                // Below 1 MB the variable ranges do not count, but are asked.
                None => prop_assert!(!uniform || inside >= 2 || base == 0, "{base:#x}"),
            }
        }
        Ok(())
    });
}

const WB8: u64 = 0x0606_0606_0606_0606;
const UC8: u64 = 0;

/// Fixed ranges as firmware leaves them: RAM to 640 KB, video memory, ROMs.
const FIRMWARE_FIXED: [u64; 11] = [
    WB8,
    WB8,
    UC8,
    0x0505_0505_0505_0505,
    UC8,
    UC8,
    UC8,
    0x0505_0505_0505_0505,
    0x0505_0505_0505_0505,
    0x0505_0505_0505_0505,
    0x0505_0505_0505_0505,
];

/// A name, the registers, and types of some addresses worked out by hand.
type Dump = (&'static str, Registers, &'static [(u64, MemoryType)]);

/// What firmware of several makes leaves behind.
#[expect(clippy::too_many_lines, reason = "a table")]
fn dumps() -> [Dump; 5] {
    use MemoryType::{Uc, Wb, Wc, Wp, Wt};
    [
        (
            "virtual machine firmware: write-back by default, a hole below 4 GB",
            Registers {
                cap: 0x508,
                def_type: 0xc06,
                fixed: FIRMWARE_FIXED,
                variable: vec![
                    (0x8000_0000, 0xff_8000_0800),
                    (0, 0),
                    (0, 0),
                    (0, 0),
                    (0, 0),
                    (0, 0),
                    (0, 0),
                    (0, 0),
                ],
                phys_bits: 40,
            },
            &[
                (0, Wb),
                (0x9_ffff, Wb),
                (0xa_0000, Uc),
                (0xc_0000, Wp),
                (0xc_8000, Uc),
                (0xf_ffff, Wp),
                (0x10_0000, Wb),
                (0x7fff_ffff, Wb),
                (0x8000_0000, Uc),
                (0xffff_ffff, Uc),
                (0x1_0000_0000, Wb),
                (0xff_ffff_ffff, Wb),
            ],
        ),
        (
            "desktop of 16 GB: uncacheable by default, ranges added up and cut",
            Registers {
                cap: 0xd0a,
                def_type: 0xc00,
                fixed: FIRMWARE_FIXED,
                variable: vec![
                    (0x6, 0x7c_0000_0800),
                    (0x4_0000_0006, 0x7f_c000_0800),
                    (0x4_4000_0006, 0x7f_f000_0800),
                    (0xc000_0000, 0x7f_c000_0800),
                    (0xbf00_0000, 0x7f_ff00_0800),
                    (0xd000_0001, 0x7f_f000_0800),
                ],
                phys_bits: 39,
            },
            &[
                (0x100_0000, Wb),
                (0xbeff_ffff, Wb),
                (0xbf00_0000, Uc),
                (0xc000_0000, Uc),
                // UC wins over WC and WB.
                (0xd000_0000, Uc),
                (0x1_0000_0000, Wb),
                (0x3_ffff_ffff, Wb),
                (0x4_4fff_ffff, Wb),
                (0x4_5000_0000, Uc),
            ],
        ),
        (
            "server with a write-combining frame buffer and a write-through range",
            Registers {
                cap: 0xd0a,
                def_type: 0xc00,
                fixed: FIRMWARE_FIXED,
                variable: vec![
                    (0x6, 0x3fff_8000_0800),
                    (0x9000_0001, 0x3fff_f000_0800),
                    (0x4000_0004, 0x3fff_ffe0_0800),
                    (0x1_0000_0006, 0x3fff_0000_0800),
                ],
                phys_bits: 46,
            },
            &[
                (0x3fff_ffff, Wb),
                (0x4000_0000, Wt),
                (0x401f_ffff, Wt),
                (0x4020_0000, Wb),
                (0x8000_0000, Uc),
                (0x9000_0000, Wc),
                (0x9fff_ffff, Wc),
                (0x1_ffff_ffff, Wb),
                (0x2_0000_0000, Uc),
            ],
        ),
        (
            "after reset: disabled, whatever else is set",
            Registers {
                cap: 0xd0a,
                def_type: 0x406,
                fixed: [WB8; 11],
                variable: vec![(0x6, 0xf_8000_0800)],
                phys_bits: 36,
            },
            &[
                (0, Uc),
                (0xf_ffff, Uc),
                (0x10_0000, Uc),
                (0x1_0000_0000, Uc),
            ],
        ),
        (
            "no fixed ranges in use: the first megabyte like the rest",
            Registers {
                cap: 0xd0a,
                def_type: 0x806,
                fixed: FIRMWARE_FIXED,
                variable: vec![(0xfee0_0000, 0xf_ffff_f800)],
                phys_bits: 36,
            },
            &[
                (0xa_0000, Wb),
                (0xfed_ffff, Wb),
                (0xfee0_0000, Uc),
                (0xfee0_0fff, Uc),
                (0xfee0_1000, Wb),
            ],
        ),
    ]
}

#[test]
fn dumps_as_firmware_leaves_them() {
    use MemoryType::{Uc, Wb, Wt};
    use PageSize::{Size1G, Size2M};
    let dumps = dumps();
    for (name, registers, expected) in &dumps {
        let state = registers.state();
        for &(address, mt) in *expected {
            assert_eq!(state.type_of(Gpa::new(address)), mt, "{name}: {address:#x}");
            assert_eq!(u64::from(mt.bits()), registers.oracle(address), "{name}");
        }
    }
    let [vm, desktop, server, reset, plain] = dumps.map(|(_, registers, _)| registers.state());
    let at = Gpa::new;
    // Mixed fixed ranges: the first large page must be split.
    assert_eq!(vm.type_of_range(at(0), Size2M), None);
    assert_eq!(vm.type_of_range(at(0), Size1G), None);
    assert_eq!(vm.type_of_range(at(0x4000_0000), Size1G), Some(Wb));
    assert_eq!(vm.type_of_range(at(0x20_0000), Size2M), Some(Wb));
    assert_eq!(vm.type_of_range(at(0xc000_0000), Size1G), Some(Uc));
    assert_eq!(desktop.type_of_range(at(0x8000_0000), Size1G), None);
    assert_eq!(desktop.type_of_range(at(0xbf00_0000), Size2M), Some(Uc));
    assert_eq!(desktop.type_of_range(at(0xbee0_0000), Size2M), Some(Wb));
    assert_eq!(desktop.type_of_range(at(0x4_4000_0000), Size1G), None);
    // A write-combining range below an uncacheable one changes nothing.
    assert_eq!(desktop.type_of_range(at(0xc000_0000), Size1G), Some(Uc));
    assert_eq!(server.type_of_range(at(0x4000_0000), Size2M), Some(Wt));
    assert_eq!(server.type_of_range(at(0x4000_0000), Size1G), None);
    assert_eq!(reset.type_of_range(at(0), Size1G), Some(Uc));
    assert_eq!(plain.type_of_range(at(0), Size1G), Some(Wb));
    assert_eq!(plain.type_of_range(at(0xfee0_0000), Size2M), None);
}

#[test]
fn a_guests_write_is_followed() {
    let registers = Registers {
        cap: 0x502,
        def_type: 0xc00,
        fixed: [WB8; 11],
        variable: vec![(0x6, 0xf_8000_0800), (0, 0)],
        phys_bits: 36,
    };
    let state = registers.state();
    assert_eq!(state.type_of(Gpa::new(0x8000_0000)), MemoryType::Uc);
    assert!(state.write(MSR_PHYS_BASE0 + 2, 0x8000_0001));
    assert!(state.write(MSR_PHYS_BASE0 + 3, 0xf_8000_0800));
    assert_eq!(state.type_of(Gpa::new(0x8000_0000)), MemoryType::Wc);
    assert!(state.write(MSR_FIXED[2], 0x0101_0101_0101_0101));
    assert_eq!(state.type_of(Gpa::new(0xa_0000)), MemoryType::Wc);
    assert_eq!(state.type_of(Gpa::new(0x9_ffff)), MemoryType::Wb);
    assert!(state.write(MSR_DEF_TYPE, 0x406));
    assert_eq!(state.read(MSR_DEF_TYPE), Some(0x406));
    assert_eq!(state.type_of(Gpa::new(0xa_0000)), MemoryType::Uc);
    // A third pair was not announced; other registers are not kept here.
    for msr in [0, 0x1ff, MSR_PHYS_BASE0 + 4, 0x2fe, 0x300, 0xfe, u32::MAX] {
        assert!(!state.write(msr, 0), "{msr:#x}");
        assert_eq!(state.read(msr), None, "{msr:#x}");
    }
    assert!(state != registers.state());
    assert!(registers.state() == registers.state());
}

#[test]
fn only_the_announced_ranges_are_taken() {
    let third = 0x8000_0001;
    let mut registers = Registers {
        cap: 0x502,
        def_type: 0xc06,
        fixed: [WB8; 11],
        variable: vec![(0, 0), (0, 0), (third, 0xf_8000_0800)],
        phys_bits: 36,
    };
    for (cap, mt) in [(0x502, MemoryType::Wb), (0x503, MemoryType::Wc)] {
        registers.cap = cap;
        let state = registers.state();
        assert_eq!(state.type_of(Gpa::new(0x8000_0000)), mt);
        let announced = (cap == 0x503).then_some(third);
        assert_eq!(state.read(MSR_PHYS_BASE0 + 4), announced);
    }
}

#[test]
fn each_register_counts_when_cores_are_compared() {
    type Set = fn(&mut Registers);
    let registers = Registers {
        cap: 0x502,
        def_type: 0xc06,
        fixed: [WB8; 11],
        variable: vec![(0x6, 0xf_8000_0800), (0, 0)],
        phys_bits: 36,
    };
    for (number, set) in [
        (|r| r.cap = 0x102) as Set,
        |r| r.cap = 0x501,
        |r| r.phys_bits = 39,
        |r| r.def_type = 0xc00,
        |r| r.fixed[10] = 0,
        |r| r.variable[1].0 = 1,
        |r| r.variable[1].1 = 1,
    ]
    .into_iter()
    .enumerate()
    {
        let mut other = registers.clone();
        set(&mut other);
        assert!(other.state() != registers.state(), "{number}");
    }
}

#[test]
fn only_five_encodings_are_types() {
    for bits in 0..=255_u8 {
        let expected = [0, 1, 4, 5, 6].contains(&bits);
        let found = MemoryType::from_bits(bits);
        assert_eq!(found.map(MemoryType::bits), expected.then_some(bits));
    }
}
