//! What the tables of a machine with 16 GB cost.

use ept::addr::{Gpa, PageSize};
use ept::entry::{EptFormat, Soft};
use ept::memtype::MtrrState;
use ept::pool::Pool;
use ept::space::Space;
use ept::table::Table;
use ept::wx::PageState;

use crate::walker::Memory;

const GB: u64 = 1 << 30;
const KB: u64 = 1 << 10;

/// 16 GB as a desktop has it: 3 GB below the hole, 13 GB above 4 GB, write-back
/// by default, the hole uncacheable, mixed fixed ranges.
fn mtrr() -> MtrrState {
    let wb = 0x0606_0606_0606_0606;
    MtrrState::new(
        0x508,
        0xc06,
        [wb, wb, 0, 0x0505_0505_0505_0505, 0, 0, 0, 0, 0, 0, 0],
        &[(0xc000_0000, 0x7f_c000_0800)],
        39,
    )
}

/// Fills the RAM, splits 100 scattered 2 MB regions by promoting a page in
/// each, and returns the bytes after the fill and after the splits.
fn measure(has_1g: bool) -> (u64, u64) {
    let mtrr = mtrr();
    let (base, tables) = Memory::new().add(0x10_0000, 1000);
    let chunks: [(_, &[Table]); 1] = [(base, tables)];
    let space = Space::new(
        EptFormat { mbec: true },
        Pool::new(&chunks).unwrap(),
        &mtrr,
        39,
        has_1g,
    )
    .unwrap();
    for (start, end) in [(0, 3 * GB), (4 * GB, 17 * GB)] {
        let _ = space.fill(Gpa::new(start)..Gpa::new(end)).unwrap();
    }
    let filled = space.table_bytes();
    for i in 0..100 {
        let gpa = Gpa::new(4 * GB + i * 34 * PageSize::Size2M.bytes() + 0x5000);
        let soft = Soft {
            state: PageState::Executable,
            ..Soft::default()
        };
        let _ = space.set_state(gpa, soft).unwrap();
    }
    let counts = space.count_pages();
    assert_eq!(counts.executable, 100);
    // 100 splits and the first 2 MB, whose types differ.
    assert_eq!(counts.split_2m, 101);
    (filled, space.table_bytes())
}

#[test]
fn tables_cost_one_page_a_gigabyte_and_one_a_split() {
    const UPPER: u64 = 2;
    const MIXED: u64 = 1;
    for has_1g in [false, true] {
        let (filled, split) = measure(has_1g);
        println!(
            "16 GB, 1 GB leaves {has_1g}: {} KB filled, {} KB after 100 splits",
            filled / KB,
            split / KB
        );
        assert!(filled <= (16 + UPPER + MIXED) * 4 * KB, "{filled}");
        assert!(split <= (16 + UPPER + MIXED + 100) * 4 * KB, "{split}");
        if has_1g {
            // Root, one table of 512 GB, the first gigabyte, the first 2 MB.
            assert_eq!(filled, 4 * 4 * KB);
        }
    }
}
