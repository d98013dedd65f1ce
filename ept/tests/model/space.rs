//! The address space against a plain map of pages.

use std::collections::BTreeMap;

use ept::addr::{Gpa, Hpa, PageSize};
use ept::entry::{Access, EptFormat, NestedEntry, NptFormat, Soft};
use ept::flush::Flush;
use ept::memtype::{MSR_DEF_TYPE, MSR_PHYS_BASE0, MemoryType, MtrrState};
use ept::pool::Pool;
use ept::space::{Leaf, MapError, PageCounts, Space};
use ept::table::Table;
use ept::wx::PageState;

use crate::rng::{Rng, scaled};
use crate::walker::{Memory, walk_ept};

const PHYS_BITS: u8 = 36;
const MB: u64 = 1 << 20;
const GB: u64 = 1 << 30;
const TABLES_AT: u64 = 0x3_0000_0000;

fn mtrr() -> MtrrState {
    let wb = 0x0606_0606_0606_0606;
    MtrrState::new(
        0x50a,
        0xc06,
        [wb, wb, 0, 0x0505_0505_0505_0505, 0, 0, 0, 0, 0, 0, 0],
        &[(0xc000_0000, 0xf_c000_0800), (0, 0), (0, 0)],
        PHYS_BITS,
    )
}

fn space<F: NestedEntry>(
    format: F,
    mtrr: &MtrrState,
    tables: usize,
    has_1g: bool,
) -> (Space<'_, F>, Memory<'static>) {
    let mut memory = Memory::new();
    // Two chunks with a gap, as an allocator gives them.
    let half = tables / 2;
    let (low, low_tables) = memory.add(TABLES_AT, half);
    let (high, high_tables) = memory.add(TABLES_AT + 64 * MB, tables - half);
    let chunks: [(Hpa, &[Table]); 2] = [(low, low_tables), (high, high_tables)];
    let pool = Pool::new(&chunks).unwrap();
    (
        Space::new(format, pool, mtrr, PHYS_BITS, has_1g).unwrap(),
        memory,
    )
}

fn soft(state: PageState) -> Soft {
    Soft {
        state,
        ..Soft::default()
    }
}

fn recount<F: NestedEntry>(space: &Space<'_, F>) -> PageCounts {
    let mut counts = PageCounts::default();
    let (mut small, mut medium) = (Vec::new(), Vec::new());
    for leaf in space.leaves() {
        let pages = leaf.size.pages();
        let slot = match leaf.soft.state {
            _ if leaf.is_hidden() => &mut counts.hidden,
            PageState::Writable => &mut counts.writable,
            PageState::Executable => &mut counts.executable,
            PageState::Stepping => &mut counts.stepping,
            PageState::Exempt => &mut counts.exempt,
        };
        *slot += pages;
        if leaf.size == PageSize::Size4K {
            small.push(leaf.gpa.as_u64() / (2 * MB));
        }
        if leaf.size != PageSize::Size1G {
            medium.push(leaf.gpa.as_u64() / GB);
        }
    }
    small.dedup();
    medium.dedup();
    counts.split_2m = small.len() as u64;
    counts.split_1g = medium.len() as u64;
    counts
}

#[test]
fn fills_lazily_with_the_largest_leaf_of_one_type() {
    let mtrr = mtrr();
    for has_1g in [false, true] {
        let (space, _) = space(EptFormat { mbec: true }, &mtrr, 64, has_1g);
        assert_eq!(space.lookup(Gpa::new(0x1234)), None);
        let leaf = space.ensure(Gpa::new(5 * GB + 0x1234)).unwrap();
        assert_eq!(
            leaf.size,
            if has_1g {
                PageSize::Size1G
            } else {
                PageSize::Size2M
            }
        );
        assert_eq!(leaf.hpa, Hpa::identity(leaf.gpa));
        assert_eq!(leaf.access, Access::RW | Access::EXEC_USER);
        assert_eq!(leaf.mt, MemoryType::Wb);
        assert_eq!(space.lookup(Gpa::new(5 * GB)), Some(leaf));
        let used = space.pool().used();
        assert_eq!(space.ensure(Gpa::new(5 * GB + 0x1000)), Ok(leaf));
        assert_eq!(space.pool().used(), used);
        // The first megabyte has several types and gets 4 KB leaves.
        let video = space.ensure(Gpa::new(0xa_0000)).unwrap();
        assert_eq!((video.size, video.mt), (PageSize::Size4K, MemoryType::Uc));
        let rom = space.ensure(Gpa::new(0xc_0000)).unwrap();
        assert_eq!((rom.size, rom.mt), (PageSize::Size4K, MemoryType::Wp));
        assert_eq!(
            space.ensure(Gpa::new(0xfee0_0000)).unwrap().mt,
            MemoryType::Uc
        );
        // Up to the last page of the address width, and not beyond.
        let top = (1_u64 << PHYS_BITS) - 1;
        assert!(space.ensure(Gpa::new(top)).is_ok());
        assert_eq!(space.ensure(Gpa::new(top + 1)), Err(MapError::OutOfReach));
        assert_eq!(space.ensure(Gpa::new(u64::MAX)), Err(MapError::OutOfReach));
        assert_eq!(space.lookup(Gpa::new(u64::MAX)), None);
        for gpa in [top + 1, top + 1 + 5 * GB, u64::MAX] {
            assert_eq!(space.frame(Gpa::new(gpa)), None);
        }
        assert_eq!(space.count_pages(), recount(&space));
    }
}

#[test]
fn all_widths_are_covered_to_their_end() {
    let mtrr = mtrr();
    for phys_bits in 36..=52_u8 {
        let mut memory = Memory::new();
        let (base, tables) = memory.add(TABLES_AT, 16);
        let chunks: [(Hpa, &[Table]); 1] = [(base, tables)];
        let pool = Pool::new(&chunks).unwrap();
        let space = Space::new(NptFormat { gmet: false }, pool, &mtrr, phys_bits, true).unwrap();
        let reach = phys_bits.min(48);
        for gpa in [
            (1_u64 << reach) - 1,
            1 << (reach - 1),
            512 * GB % (1 << reach),
        ] {
            let leaf = space.ensure(Gpa::new(gpa)).unwrap();
            assert!((leaf.gpa.as_u64()..leaf.gpa.as_u64() + leaf.size.bytes()).contains(&gpa));
        }
        assert_eq!(
            space.ensure(Gpa::new(1 << reach)),
            Err(MapError::OutOfReach)
        );
    }
}

#[test]
fn a_split_keeps_what_the_large_leaf_said() {
    let mtrr = mtrr();
    let (space, _) = space(EptFormat { mbec: false }, &mtrr, 64, true);
    let gpa = Gpa::new(6 * GB + 7 * 2 * MB + 0x3000);
    let whole = space.ensure(gpa).unwrap();
    assert_eq!(whole.size, PageSize::Size1G);
    let used = space.pool().used();
    assert_eq!(space.split(gpa), Ok(Flush::Revoked));
    assert_eq!(space.pool().used(), used + 2);
    assert_eq!(space.split(gpa), Ok(Flush::None));
    let mut mapped = 0;
    for leaf in space.leaves() {
        assert_eq!(leaf.hpa, Hpa::identity(leaf.gpa));
        assert_eq!((leaf.access, leaf.mt), (whole.access, whole.mt));
        assert_eq!(leaf.gpa.as_u64(), 6 * GB + mapped);
        mapped += leaf.size.bytes();
    }
    assert_eq!(mapped, GB);
    assert_eq!(space.lookup(gpa).unwrap().size, PageSize::Size4K);
    // Filling and splitting at once puts no large leaf in place, not even for a
    // moment, and asks for nothing.
    assert_eq!(space.split(Gpa::new(9 * GB)), Ok(Flush::Relaxed));
    assert_eq!(
        space.lookup(Gpa::new(9 * GB)).unwrap().size,
        PageSize::Size4K
    );
    assert_eq!(
        space.lookup(Gpa::new(10 * GB - 1)).unwrap().size,
        PageSize::Size2M
    );
}

#[test]
fn broken_before_made() {
    let mtrr = mtrr();
    let (space, _) = space(EptFormat { mbec: true }, &mtrr, 64, true);
    let gpa = Gpa::new(6 * GB + 0x3000);
    let _ = space.ensure(gpa).unwrap();
    assert_eq!(space.vacate(gpa), Flush::Revoked);
    assert_eq!(space.lookup(gpa), None);
    assert_eq!(space.vacate(gpa), Flush::None);
    assert_eq!(space.split(gpa), Ok(Flush::Relaxed));
    assert_eq!(space.lookup(gpa).unwrap().size, PageSize::Size4K);
    // A small leaf has nothing to break.
    assert_eq!(space.vacate(gpa), Flush::None);
    assert_eq!(space.vacate(Gpa::new(u64::MAX)), Flush::None);
    assert_eq!(space.count_pages(), recount(&space));
}

#[test]
fn write_and_kernel_execution_need_an_exemption() {
    let mtrr = mtrr();
    let (space, _) = space(EptFormat { mbec: true }, &mtrr, 64, true);
    let gpa = Gpa::new(0x20_0000);
    let both = Access::RW | Access::EXEC_KERNEL;
    for state in [
        PageState::Writable,
        PageState::Executable,
        PageState::Stepping,
    ] {
        assert_eq!(
            space.set_access(gpa, both, soft(state)),
            Err(MapError::WriteAndExecute)
        );
    }
    assert_eq!(
        space.remap(gpa, Hpa::new(0x5000), both),
        Err(MapError::WriteAndExecute)
    );
    assert_eq!(space.lookup(gpa), None);
    let change = space
        .set_access(gpa, both, soft(PageState::Exempt))
        .unwrap();
    assert!(change.new.access.is_writable_and_executable());
    assert_eq!(space.count_pages().exempt, 1);
}

#[test]
fn tokens_say_what_must_be_flushed() {
    let mtrr = mtrr();
    let (space, _) = space(EptFormat { mbec: true }, &mtrr, 64, true);
    let gpa = Gpa::new(0x40_0000);
    let set = |state| space.set_state(gpa, soft(state)).unwrap().flush;
    let _ = space.split(gpa).unwrap();
    assert_eq!(set(PageState::Writable), Flush::None);
    assert_eq!(set(PageState::Stepping), Flush::Revoked);
    assert_eq!(set(PageState::Executable), Flush::Relaxed);
    assert_eq!(set(PageState::Writable), Flush::Revoked);
    assert_eq!(set(PageState::Exempt), Flush::Relaxed);
    assert_eq!(set(PageState::Executable), Flush::Revoked);
    // The note alone is nothing that a processor caches.
    let marked = Soft {
        state: PageState::Executable,
        bounces: 3,
        code: true,
    };
    let change = space.set_state(gpa, marked).unwrap();
    assert_eq!(change.flush, Flush::None);
    assert_eq!(change.old.soft.bounces, 0);
    assert_eq!(space.lookup(gpa).unwrap().soft, marked);
    // Another frame, even with the same rights.
    let rights = space.lookup(gpa).unwrap().access;
    let change = space.remap(gpa, Hpa::new(0x7000), rights).unwrap();
    assert_eq!(change.flush, Flush::Revoked);
    assert!(change.new.is_hidden());
    assert_eq!(space.count_pages().hidden, 1);
    let back = space.remap(gpa, Hpa::identity(gpa), rights).unwrap();
    assert_eq!(back.flush, Flush::Revoked);
    assert_eq!(space.count_pages().hidden, 0);
    assert_eq!(
        space.remap(gpa, Hpa::new(1 << PHYS_BITS), rights),
        Err(MapError::OutOfReach)
    );
}

#[test]
fn a_hidden_page_has_the_type_of_the_frame_that_is_shown() {
    let mtrr = mtrr();
    let (space, _) = space(EptFormat { mbec: true }, &mtrr, 64, true);
    let (ram, device) = (0x40_0000, 0xfee0_0000);
    let shown = |gpa: u64, hpa: u64| {
        let change = space
            .remap(Gpa::new(gpa), Hpa::new(hpa), Access::RW)
            .unwrap();
        assert_eq!(change.new, space.lookup(Gpa::new(gpa)).unwrap());
        change.new.mt
    };
    assert_eq!(shown(ram, device), MemoryType::Uc);
    assert_eq!(shown(device, ram), MemoryType::Wb);
    assert_eq!(space.count_pages().hidden, 2);
    // Offsets in the page are dropped.
    assert_eq!(shown(ram + 0x123, 0x9456), MemoryType::Wb);
    assert_eq!(space.lookup(Gpa::new(ram)).unwrap().hpa, Hpa::new(0x9000));
    let all = Gpa::new(0)..space.limit();
    assert_eq!(space.retype(all).flush, Flush::None);
}

#[test]
fn types_follow_the_registers() {
    let mtrr = mtrr();
    let (space, _) = space(EptFormat { mbec: true }, &mtrr, 64, true);
    let all = Gpa::new(0)..space.limit();
    let _ = space.fill(Gpa::new(0)..Gpa::new(8 * GB)).unwrap();
    let code = Gpa::new(5 * GB + 0x7000);
    let _ = space.set_state(code, soft(PageState::Executable)).unwrap();
    assert_eq!(space.retype(all.clone()).flush, Flush::None);
    // A frame buffer of 16 MB becomes write-combining in the middle of RAM.
    assert!(mtrr.write(MSR_PHYS_BASE0 + 2, (6 * GB + 0x0600_0000) | 1));
    assert!(mtrr.write(MSR_PHYS_BASE0 + 3, 0xf_ff00_0800));
    let retyped = space.retype(all.clone());
    assert_eq!((retyped.flush, retyped.degraded), (Flush::Revoked, 0));
    for leaf in space.leaves() {
        assert_eq!(leaf.mt, mtrr.type_of(leaf.gpa), "{:?}", leaf.gpa);
        let last = Gpa::new(leaf.gpa.as_u64() + leaf.size.bytes() - 1);
        assert_eq!(leaf.mt, mtrr.type_of(last), "{last:?}");
    }
    let buffer = space.lookup(Gpa::new(6 * GB + 0x0600_0000)).unwrap();
    assert_eq!((buffer.mt, buffer.size), (MemoryType::Wc, PageSize::Size2M));
    let kept = space.lookup(code).unwrap();
    assert_eq!(kept.soft.state, PageState::Executable);
    assert_eq!(space.retype(all.clone()).flush, Flush::None);
    // All off: everything is uncacheable.
    assert!(mtrr.write(MSR_DEF_TYPE, 0));
    // In two parts: neither reaches into the other.
    let middle = Gpa::new(5 * GB);
    assert_eq!(space.retype(all.start..middle).flush, Flush::Revoked);
    for leaf in space.leaves() {
        assert_eq!(leaf.mt == mtrr.type_of(leaf.gpa), leaf.gpa < middle);
    }
    assert_eq!(space.retype(middle..all.end).flush, Flush::Revoked);
    assert!(space.leaves().all(|leaf| leaf.mt == MemoryType::Uc));
    assert_eq!(space.count_pages(), recount(&space));
}

/// One range becomes two of the same type: nothing changes but the size of the
/// leaves, and that is a reason to flush as well.
#[test]
fn a_split_for_types_is_flushed() {
    let one = [(6, 0xf_c000_0800), (0, 0)];
    let mtrr = MtrrState::new(0x502, 0x800, [0; 11], &one, PHYS_BITS);
    let (space, _) = space(EptFormat { mbec: false }, &mtrr, 64, true);
    let whole = space.ensure(Gpa::new(0)).unwrap();
    assert_eq!((whole.size, whole.mt), (PageSize::Size1G, MemoryType::Wb));
    let halves = [6, 0xf_e000_0800, 0x2000_0006, 0xf_e000_0800];
    for (msr, value) in (MSR_PHYS_BASE0..).zip(halves) {
        assert!(mtrr.write(msr, value));
    }
    assert_eq!(
        space.retype(Gpa::new(0)..Gpa::new(GB)).flush,
        Flush::Revoked
    );
    assert!(space.leaves().all(|leaf| leaf.mt == MemoryType::Wb));
    assert_eq!(space.leaves().count(), 512);
}

#[test]
fn exhaustion_changes_nothing_and_leaves_a_way_on() {
    let mtrr = mtrr();
    for tables in 1..40 {
        let (space, memory) = space(EptFormat { mbec: true }, &mtrr, tables, true);
        let mut failed = 0_u64;
        for i in 0..40_u64 {
            let gpa = Gpa::new(4 * GB + i * 3 * 2 * MB);
            let before = (space.lookup(gpa), space.table_bytes(), space.count_pages());
            match space.set_state(gpa, soft(PageState::Executable)) {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error, MapError::PoolExhausted);
                    let after = (space.lookup(gpa), space.table_bytes(), space.count_pages());
                    assert_eq!(before, after);
                    failed += 1;
                    if let Ok(change) = space.exempt_whole(gpa) {
                        assert!(change.flush <= Flush::Relaxed);
                        let leaf = space.lookup(gpa).unwrap();
                        assert_eq!(leaf.access, Access::all());
                        assert_eq!(leaf.soft.state, PageState::Exempt);
                    }
                }
            }
        }
        assert!(failed > 0 || tables > 35);
        assert_eq!(space.count_pages(), recount(&space));
        // Splits leave something for missing mappings.
        if tables >= 16 {
            assert!(space.pool().available() >= 1);
            assert!(space.ensure(Gpa::new(0xfee0_0000)).is_ok());
        }
        let _ = walk_ept(&memory, space.root(), Gpa::new(4 * GB), true, 36);
        // Mixed types without tables: uncacheable rather than wrong.
        if tables < 8 {
            let _ = space.ensure(Gpa::new(20 * GB));
            assert!(mtrr.write(MSR_PHYS_BASE0 + 2, 20 * GB));
            assert!(mtrr.write(MSR_PHYS_BASE0 + 3, 0xf_ffe0_0800));
            while space.pool().claim().is_some() {}
            let retyped = space.retype(Gpa::new(20 * GB)..Gpa::new(21 * GB));
            if let Some(leaf) = space.lookup(Gpa::new(20 * GB)) {
                assert_eq!(leaf.mt, MemoryType::Uc);
                assert!(retyped.degraded == 1 || leaf.size != PageSize::Size1G);
            }
            assert!(mtrr.write(MSR_PHYS_BASE0 + 3, 0));
        }
    }
    let empty = Pool::new(&[]).unwrap();
    assert!(matches!(
        Space::new(NptFormat { gmet: true }, empty, &mtrr, 36, true),
        Err(MapError::PoolExhausted)
    ));
}

#[test]
fn splits_leave_the_reserve_and_fills_take_the_last_table() {
    let mtrr = mtrr();
    for (tables, reserve) in [(7, 0), (8, 1), (64, 8), (200, 16)] {
        let (space, _) = space(EptFormat { mbec: true }, &mtrr, tables, true);
        let done = (0..512).map_while(|i| space.split(Gpa::new(4 * GB + i * 2 * MB)).ok());
        assert!(done.count() > 0);
        assert_eq!(space.pool().available(), reserve);
    }
    // Three below the root, for a page of the first megabyte.
    for (tables, taken) in [(3, Err(MapError::PoolExhausted)), (4, Ok(0))] {
        let (space, _) = space(EptFormat { mbec: true }, &mtrr, tables, true);
        let video = space.ensure(Gpa::new(0xa_0000));
        assert_eq!(video.map(|_| space.pool().available()), taken);
    }
}

/// What is left of a machine that stops watching with the guest mode execute trap:
/// leaves are made user mode's as they stand, whatever their size.
#[test]
fn a_leaf_that_is_given_up_untrapped_is_user_modes() {
    let mtrr = mtrr();
    let (space, _) = space(NptFormat { gmet: true }, &mtrr, 64, false);
    let code = Gpa::new(4 * GB + 0x3000);
    let soft = Soft {
        state: PageState::Executable,
        ..Soft::default()
    };
    let _ = space.set_state(code, soft).unwrap();
    let large = Gpa::new(4 * GB + 4 * MB);
    assert_eq!(space.exempt_whole(large).unwrap().flush, Flush::Revoked);
    for (gpa, size) in [(code, PageSize::Size4K), (large, PageSize::Size2M)] {
        let change = space.exempt_untrapped(gpa).unwrap();
        assert_eq!(change.flush, Flush::Revoked, "the kernel's fetch is gone");
        let leaf = space.lookup(gpa).unwrap();
        assert_eq!((leaf.size, leaf.soft.state), (size, PageState::Exempt));
        assert_eq!(leaf.access, Access::RW | Access::EXEC_USER);
    }
    assert_eq!(space.count_pages(), recount(&space));
}

/// What a page should be, kept in the plainest way.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Page {
    hpa: u64,
    access: Access,
    soft: Soft,
}

fn page_of(leaf: &Leaf, gpa: Gpa) -> Page {
    let offset = gpa.page_base().as_u64() - leaf.gpa.as_u64();
    Page {
        hpa: leaf.hpa.as_u64() + offset,
        access: leaf.access,
        soft: leaf.soft,
    }
}

/// The rights as the format can express them.
fn expressed<F: Format>(format: &F, mut access: Access) -> Access {
    if !access.is_empty() {
        access |= Access::READ;
    }
    if !format.separates_user_fetches() {
        access.set(Access::EXEC_USER, access.contains(Access::EXEC_KERNEL));
    }
    if format.has_one_owner() && access.contains(Access::EXEC_KERNEL) {
        access.remove(Access::EXEC_USER);
    }
    access
}

/// A format, with what the model must know of it.
trait Format: NestedEntry + Copy {
    /// One bit says whether the kernel or user mode may execute.
    fn has_one_owner(&self) -> bool;
}

impl Format for EptFormat {
    fn has_one_owner(&self) -> bool {
        false
    }
}

impl Format for NptFormat {
    fn has_one_owner(&self) -> bool {
        self.gmet
    }
}

/// Random operations; after each, all pages that were ever named are what the
/// map says and the token is strict enough for what changed; in the end the
/// counters are what a count says.
fn random_operations<F: Format>(
    format: F,
    seed: u64,
    check: impl Fn(&Space<'_, F>, &Memory<'_>, Gpa),
) {
    let mtrr = mtrr();
    let mut rng = Rng::new(seed);
    let (space, memory) = space(format, &mtrr, 48, seed.is_multiple_of(2));
    let mut model: BTreeMap<u64, Page> = BTreeMap::new();
    let places = [
        0,
        0xa_0000,
        0x1f_f000,
        2 * MB,
        5 * GB,
        5 * GB + 2 * MB,
        7 * GB,
    ];
    for _ in 0..60 {
        let gpa = Gpa::new(places[rng.below(places.len())] + rng.below(3) as u64 * 0x1000);
        let names: Vec<u64> = model.keys().copied().chain([gpa.as_u64()]).collect();
        let before: Vec<_> = names.iter().map(|&n| space.lookup(Gpa::new(n))).collect();
        let state = PageState::from_bits((rng.next() & 3) as u8);
        let note = Soft {
            state,
            bounces: (rng.next() & 0xff) as u8,
            code: rng.chance(2),
        };
        let initial = Page {
            hpa: gpa.as_u64(),
            access: expressed(&format, space.rights(PageState::Writable)),
            soft: Soft::default(),
        };
        let flush = match rng.below(6) {
            0 => space.ensure(gpa).map(|_| Flush::Relaxed),
            1 => space.split(gpa),
            2 | 3 => space.set_state(gpa, note).map(|change| {
                let page = model.entry(gpa.as_u64()).or_insert(initial);
                page.access = expressed(&format, space.rights(state));
                page.soft = note;
                change.flush
            }),
            4 => {
                let hpa = Hpa::new(0x9000 + 0x1000 * rng.below(2) as u64);
                space.remap(gpa, hpa, Access::RW).map(|change| {
                    let page = Page {
                        hpa: hpa.as_u64(),
                        access: expressed(&format, Access::RW),
                        soft: Soft::default(),
                    };
                    model.insert(gpa.as_u64(), page);
                    change.flush
                })
            }
            _ => space.fill(gpa..Gpa::new(gpa.as_u64() + 0x5000)),
        };
        let Ok(flush) = flush else {
            assert_eq!(flush, Err(MapError::PoolExhausted));
            continue;
        };
        model.entry(gpa.as_u64()).or_insert(initial);
        for name in names.iter().copied().chain([gpa.as_u64() + 0x10_0000]) {
            // The short way to a frame says what the long way says.
            let gpa = Gpa::new(name + 0x123);
            let leaf = space.lookup(gpa);
            let frame = leaf.map(|leaf| Hpa::new(page_of(&leaf, gpa).hpa));
            assert_eq!(space.frame(gpa), frame, "seed {seed} {gpa:?}");
            let _ = space.find(gpa);
            assert_eq!(space.frame(gpa), frame, "seed {seed} {gpa:?}");
        }
        for (name, before) in names.iter().zip(before) {
            let gpa = Gpa::new(*name);
            let after = space.lookup(gpa);
            if let Some(leaf) = after {
                assert_eq!(
                    Some(&page_of(&leaf, gpa)),
                    model.get(name),
                    "seed {seed} {gpa:?}"
                );
            }
            let Some(before) = before else {
                assert!(after.is_none() || flush >= Flush::Relaxed);
                continue;
            };
            let after = after.expect("a mapping vanished");
            let (was, is) = (page_of(&before, gpa), page_of(&after, gpa));
            let taken = was.hpa != is.hpa
                || before.mt != after.mt
                || before.size != after.size
                || !is.access.contains(was.access);
            assert!(!taken || flush == Flush::Revoked, "seed {seed} {gpa:?}");
            assert!(was.access == is.access || flush >= Flush::Relaxed);
            check(&space, &memory, gpa);
        }
    }
    assert_eq!(space.count_pages(), recount(&space), "seed {seed}");
}

#[test]
fn behaves_like_a_plain_map_of_pages() {
    for seed in 0..u64::from(scaled(40)) {
        for mbec in [false, true] {
            random_operations(EptFormat { mbec }, seed, |space, memory, gpa| {
                let leaf = space.lookup(gpa).unwrap();
                let seen = walk_ept(memory, space.root(), gpa, mbec, u32::from(PHYS_BITS)).unwrap();
                assert_eq!(seen.base, leaf.gpa.as_u64());
                assert_eq!(seen.bytes, leaf.size.bytes());
                assert_eq!(seen.frame, leaf.hpa.as_u64());
                assert_eq!(seen.rights, leaf.access);
                assert_eq!(seen.memory_type, u64::from(leaf.mt.bits()));
                let exempt = leaf.soft.state == PageState::Exempt;
                assert!(exempt || !seen.rights.is_writable_and_executable());
                assert!(seen.bytes == 4096 || !seen.rights.contains(Access::EXEC_KERNEL));
            });
        }
        for gmet in [false, true] {
            random_operations(NptFormat { gmet }, seed, |space, _, gpa| {
                let leaf = space.lookup(gpa).unwrap();
                let exempt = leaf.soft.state == PageState::Exempt;
                assert!(exempt || !leaf.access.is_writable_and_executable());
                assert!(
                    leaf.size == PageSize::Size4K || !leaf.access.contains(Access::EXEC_KERNEL)
                );
            });
        }
    }
}
