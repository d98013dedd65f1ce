//! The handle of the exit path against the space's own methods.

use ept::addr::{Gpa, Hpa};
use ept::entry::{Access, EptFormat, NestedEntry, NptFormat, Soft};
use ept::flush::Flush;
use ept::memtype::MtrrState;
use ept::pool::Pool;
use ept::space::Space;
use ept::wx::PageState;

use crate::rng::{Rng, scaled};
use crate::walker::Memory;

const MB: u64 = 1 << 20;
const GB: u64 = 1 << 30;
const STATES: [PageState; 4] = [
    PageState::Writable,
    PageState::Executable,
    PageState::Stepping,
    PageState::Exempt,
];

fn space<F: NestedEntry>(format: F) -> Space<'static, F> {
    let mtrr: &MtrrState = Box::leak(Box::new(MtrrState::new(0, 0x806, [0; 11], &[], 40)));
    let mut memory = Memory::new();
    let chunks: Vec<_> = (0..4)
        .map(|i| memory.add(0x3_0000_0000 + i * 0x10_0000, 48))
        .collect();
    Space::new(format, Pool::new(&chunks).unwrap(), mtrr, 40, true).unwrap()
}

fn soft(state: PageState) -> Soft {
    Soft {
        state,
        ..Soft::default()
    }
}

#[test]
fn what_is_no_plain_small_page_is_not_found() {
    let space = space(EptFormat { mbec: true });
    let large = Gpa::new(5 * GB);
    assert!(space.find(large).is_none());
    let _ = space.ensure(large).unwrap();
    assert!(space.find(large).is_none());
    let _ = space.set_state(large, soft(PageState::Executable)).unwrap();
    assert!(space.find(large).is_some());
    // Hidden, and shown again.
    let _ = space.remap(large, Hpa::new(0x9000), Access::RW).unwrap();
    assert!(space.find(large).is_none());
    let identity = Hpa::identity(large);
    let _ = space.remap(large, identity, Access::RW).unwrap();
    assert!(space.find(large).is_some());
    // Absent entries of a table that is there.
    let _ = space
        .set_access(large, Access::empty(), Soft::default())
        .unwrap();
    assert!(space.find(large).is_none());
    for gpa in [0, 1 << 40, 1 << 48, (1 << 52) + 5 * GB, u64::MAX] {
        assert!(space.find(Gpa::new(gpa)).is_none(), "{gpa:#x}");
    }
}

/// More regions than are remembered, visited in turn: each time the right page.
#[test]
fn each_region_is_found_however_many_there_are() {
    let space = space(EptFormat { mbec: true });
    // 64 MB apart, 2 MB apart, and more than one table of the pool's chunks.
    let regions: Vec<_> = (0..60)
        .map(|i| GB + i * 2 * MB)
        .chain((0..60).map(|i| 2 * GB + i * 128 * MB))
        .collect();
    for (i, &gpa) in regions.iter().enumerate() {
        let note = Soft {
            state: PageState::Executable,
            bounces: u8::try_from(i).unwrap(),
            code: i % 2 == 0,
        };
        let _ = space.set_state(Gpa::new(gpa + 0x3000), note).unwrap();
    }
    for _ in 0..3 {
        for &gpa in &regions {
            for offset in [0x3000, 0x4000] {
                let gpa = Gpa::new(gpa + offset + 0x123);
                let slot = space.find(gpa).unwrap();
                let leaf = space.lookup(gpa).unwrap();
                assert_eq!(slot.gpa(), leaf.gpa);
                assert_eq!(slot.soft(), leaf.soft);
                assert_eq!(slot.state(), leaf.soft.state);
                assert_eq!(slot.access(), leaf.access);
            }
        }
    }
}

/// The same changes by slots in one space and by `set_state` in another.
fn twins<F: NestedEntry + Copy>(format: F, seed: u64) {
    let (by_slot, by_name) = (space(format), space(format));
    let mut rng = Rng::new(seed);
    let places = [GB, GB + 0x1000, GB + 4 * MB, 3 * GB];
    for gpa in places {
        for space in [&by_slot, &by_name] {
            let _ = space.split(Gpa::new(gpa)).unwrap();
        }
    }
    for _ in 0..200 {
        let gpa = Gpa::new(places[rng.below(places.len())]);
        let state = STATES[rng.below(4)];
        let bounces = u8::try_from(rng.below(3)).unwrap();
        let before = by_slot.generation();
        let mut slot = by_slot.find(gpa).unwrap();
        let was = slot.soft();
        let new = Soft {
            state,
            bounces,
            ..was
        };
        if rng.chance(2) {
            let flush = slot.exchange(state, bounces);
            let change = by_name.set_state(gpa, new).unwrap();
            assert_eq!(flush, change.flush, "{:?} {state:?}", was.state);
            // A path built before is stale if anything changed.
            assert_eq!(by_slot.generation() != before, was != new);
        } else {
            let (turn, flush) = slot.close();
            let closed = Soft {
                state: PageState::Stepping,
                ..was
            };
            let change = by_name.set_state(gpa, closed).unwrap();
            assert_eq!(flush, change.flush);
            assert_eq!(by_slot.lookup(gpa), by_name.lookup(gpa));
            assert_ne!(by_slot.generation(), before);
            if rng.chance(3) {
                let held = turn.hold();
                assert_eq!(held.state(), PageState::Stepping);
                assert_eq!(held.soft(), closed);
            } else {
                turn.open(state, bounces);
                let change = by_name.set_state(gpa, new).unwrap();
                assert!(change.flush <= Flush::Relaxed);
            }
        }
        assert_eq!(by_slot.lookup(gpa), by_name.lookup(gpa), "seed {seed}");
        assert_eq!(by_slot.count_pages(), by_name.count_pages(), "seed {seed}");
    }
}

#[test]
fn a_slot_changes_what_the_space_would() {
    for seed in 0..u64::from(scaled(40)) {
        for mbec in [false, true] {
            twins(EptFormat { mbec }, seed);
        }
        for gmet in [false, true] {
            twins(NptFormat { gmet }, seed);
        }
    }
}

/// The frame, the type and the mark of code are not the slot's to change.
#[test]
fn a_turn_keeps_what_it_is_not_about() {
    let registers = [(5 * GB, 0xff_ffe0_0800)];
    let mtrr = MtrrState::new(0x501, 0x806, [0; 11], &registers, 40);
    let (base, tables) = Memory::new().add(0x3_0000_0000, 16);
    let pool = Pool::new(&[(base, tables)]).unwrap();
    let space = Space::new(EptFormat { mbec: true }, pool, &mtrr, 40, true).unwrap();
    let gpa = Gpa::new(5 * GB + 0x7000);
    let note = Soft {
        state: PageState::Executable,
        bounces: 7,
        code: true,
    };
    let before = space.set_state(gpa, note).unwrap().new;
    let (turn, flush) = space.find(gpa).unwrap().close();
    assert_eq!(flush, Flush::Revoked);
    assert_eq!(space.lookup(gpa).unwrap().soft.bounces, 7);
    turn.open(PageState::Writable, 255);
    let after = space.lookup(gpa).unwrap();
    assert_eq!(
        (after.hpa, after.mt, after.size),
        (before.hpa, before.mt, before.size)
    );
    let expected = Soft {
        state: PageState::Writable,
        bounces: 255,
        code: true,
    };
    assert_eq!(after.soft, expected);
    assert_eq!(after.access, space.rights(PageState::Writable));
}
