//! What the MTRRs say of an address (Intel SDM volume 3, "Memory Type Range
//! Registers (MTRRs)", with the subsections "Fixed Range MTRRs", "Variable Range
//! MTRRs" and "MTRR Precedences").

use super::checkpoint::Mtrr;

const UNCACHEABLE: u8 = 0;
const WRITE_THROUGH: u8 = 4;
const WRITE_BACK: u8 = 6;
const FIXED_END: u64 = 0x10_0000;

/// Evaluates one processor's registers.
#[derive(Debug)]
pub(crate) struct Map {
    enabled: bool,
    fixed: Option<Vec<u8>>,
    default: u8,
    variable: Vec<Range>,
}

#[derive(Debug)]
struct Range {
    base: u64,
    mask: u64,
    end: u64,
    kind: u8,
}

impl Map {
    /// From raw register values.
    pub(crate) fn new(registers: &Mtrr, physical_bits: u32) -> Self {
        let address = ((1u64 << physical_bits) - 1) & !0xFFF;
        let enabled = registers.default_type & (1 << 11) != 0;
        let fixed_enabled = enabled && registers.default_type & (1 << 10) != 0;
        // Each register holds eight ranges, lowest address in the lowest byte.
        let fixed = fixed_enabled.then(|| {
            registers
                .fixed
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        });
        let variable = registers
            .variable
            .chunks_exact(2)
            .filter(|pair| pair[1] & (1 << 11) != 0)
            .map(|pair| {
                let mask = pair[1] & address;
                let base = pair[0] & mask;
                let length = 1u64 << mask.trailing_zeros().min(physical_bits);
                Range {
                    base,
                    mask,
                    end: base + length,
                    kind: (pair[0] & 0xFF) as u8,
                }
            })
            .collect();
        Self {
            enabled,
            fixed,
            default: (registers.default_type & 0xFF) as u8,
            variable,
        }
    }

    /// The memory type of one address.
    pub(crate) fn at(&self, address: u64) -> u8 {
        if !self.enabled {
            return UNCACHEABLE;
        }
        if let Some(fixed) = self.fixed.as_ref().filter(|_| address < FIXED_END) {
            let index = match address {
                0..0x8_0000 => address >> 16,
                0x8_0000..0xC_0000 => 8 + ((address - 0x8_0000) >> 14),
                _ => 24 + ((address - 0xC_0000) >> 12),
            };
            return usize::try_from(index)
                .ok()
                .and_then(|index| fixed.get(index).copied())
                .unwrap_or(UNCACHEABLE);
        }
        let mut found: Option<u8> = None;
        for range in &self.variable {
            if address & range.mask != range.base {
                continue;
            }
            found = Some(match (found, range.kind) {
                (None, kind) => kind,
                (Some(one), other) if one == other => one,
                (Some(WRITE_THROUGH), WRITE_BACK) | (Some(WRITE_BACK), WRITE_THROUGH) => {
                    WRITE_THROUGH
                }
                // Uncacheable wins; all else is undefined by the manual, and the safe
                // answer is the same.
                _ => UNCACHEABLE,
            });
        }
        found.unwrap_or(self.default)
    }

    /// The one memory type of a whole range, if it has one.
    pub(crate) fn uniform(&self, start: u64, size: u64) -> Option<u8> {
        let end = start + size;
        let kind = self.at(start);
        let mut borders: Vec<u64> = self
            .variable
            .iter()
            .flat_map(|range| [range.base, range.end])
            .collect();
        if start < FIXED_END {
            borders.extend((0..=FIXED_END).step_by(4096));
        }
        borders
            .into_iter()
            .filter(|border| (start..end).contains(border))
            .all(|border| self.at(border) == kind)
            .then_some(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(def_type: u64, variable: &[u64], fixed: &[u64]) -> Map {
        Map::new(
            &Mtrr {
                default_type: def_type,
                variable: variable.to_vec(),
                fixed: fixed.to_vec(),
            },
            40,
        )
    }

    const VALID: u64 = 1 << 11;

    #[test]
    fn without_mtrrs_all_is_uncacheable() {
        assert_eq!(map(6, &[], &[]).at(0x1234_5000), 0);
    }

    #[test]
    fn a_hole_below_4_gib_is_found_inside_a_large_page() {
        // 0..4 GiB write-back, 3..4 GiB uncacheable over it.
        let mask = |size: u64| (((1u64 << 40) - size) & !0xFFF) | VALID;
        let map = map(VALID, &[6, mask(4 << 30), 3 << 30, mask(1 << 30)], &[]);
        assert_eq!(map.at(0x1000), 6);
        assert_eq!(map.at(3 << 30), 0);
        assert_eq!(map.at((3 << 30) - 1), 6);
        assert_eq!(map.at(5 << 30), 0);
        assert_eq!(map.uniform(2 << 30, 1 << 30), Some(6));
        assert_eq!(map.uniform(2 << 30, 2 << 30), None);
    }

    #[test]
    fn fixed_ranges_have_their_granularity() {
        let mut fixed = [0x0606_0606_0606_0606; 11];
        fixed[2] = 0; // A0000-BFFFF
        fixed[3] = 0x0505_0505_0505_0506; // C0000: write-back, C1000..: write-protect
        let map = map(VALID | 1 << 10 | 6, &[], &fixed);
        assert_eq!(map.at(0x9_FFFF), 6);
        assert_eq!(map.at(0xA_0000), 0);
        assert_eq!(map.at(0xB_FFFF), 0);
        assert_eq!(map.at(0xC_0000), 6);
        assert_eq!(map.at(0xC_1000), 5);
        assert_eq!(map.at(0x10_0000), 6);
        assert_eq!(map.uniform(0, 0x8_0000), Some(6));
        assert_eq!(map.uniform(0, 0x20_0000), None);
    }

    #[test]
    fn overlapping_ranges_follow_the_precedences() {
        let mask = |size: u64| (((1u64 << 40) - size) & !0xFFF) | VALID;
        let both =
            |a: u64, b: u64| map(VALID | 6, &[a, mask(1 << 30), b, mask(1 << 30)], &[]).at(0x1000);
        assert_eq!(both(4, 6), 4);
        assert_eq!(both(6, 4), 4);
        assert_eq!(both(0, 6), 0);
        assert_eq!(both(6, 6), 6);
    }
}
