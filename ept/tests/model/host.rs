//! Machines as they are and as they change: memory beyond what the firmware
//! announced, devices far above RAM, every width of a physical address, a reserve
//! of tables that runs out.

use ept::addr::{Gpa, Hpa, PageSize};
use ept::entry::{Access, EptFormat, NestedEntry, NptFormat, Soft};
use ept::flush::Flush;
use ept::memtype::{MSR_PHYS_BASE0, MemoryType, MtrrState};
use ept::pool::Pool;
use ept::space::{MapError, Space};
use ept::wx::PageState;

use crate::walker::{Memory, walk_ept};

const GB: u64 = 1 << 30;
const MB: u64 = 1 << 20;
const CODE: Soft = Soft {
    state: PageState::Executable,
    bounces: 0,
    code: true,
};

/// Uncacheable by default, RAM up to `ram` write-back, one range to spare.
fn mtrr(phys_bits: u8, ram: u64) -> &'static MtrrState {
    assert!(ram.is_power_of_two());
    let mask = (1_u64 << phys_bits) - ram;
    let ranges = [(6, mask | 0x800), (0, 0)];
    let state = MtrrState::new(2, 0x800, [0; 11], &ranges, phys_bits);
    Box::leak(Box::new(state))
}

fn space<F: NestedEntry>(
    format: F,
    mtrr: &'static MtrrState,
    tables: usize,
) -> (Space<'static, F>, Memory<'static>) {
    let mut memory = Memory::new();
    let chunk = memory.add(0x10_0000, tables);
    let pool = Pool::new(&[chunk]).unwrap();
    let space = Space::new(format, pool, mtrr, mtrr.phys_bits(), true).unwrap();
    (space, memory)
}

/// From 36 to 52 bits: the first and the last page, each boundary of RAM, and a
/// device at the top are mapped one to one with the right type and legal bits.
#[test]
fn every_width_is_reached_by_the_processors_walk() {
    for phys_bits in 36..=52_u8 {
        let ram = 16 * GB;
        let mtrr = mtrr(phys_bits, ram);
        let (space, memory) = space(EptFormat { mbec: true }, mtrr, 32);
        let top = 1_u64 << phys_bits.min(48);
        assert_eq!(space.limit(), Gpa::new(top));
        for (gpa, expected) in [
            (0, MemoryType::Wb),
            (ram - 1, MemoryType::Wb),
            (ram, MemoryType::Uc),
            (top - 256 * MB, MemoryType::Uc),
            (top - 1, MemoryType::Uc),
        ] {
            let leaf = space.ensure(Gpa::new(gpa)).unwrap();
            assert_eq!(leaf.mt, expected, "{phys_bits} {gpa:#x}");
            let bits = u32::from(phys_bits);
            let seen = walk_ept(&memory, space.root(), Gpa::new(gpa), true, bits).unwrap();
            assert_eq!(seen.base, seen.frame);
            assert_eq!(seen.bytes, PageSize::Size1G.bytes());
            assert_eq!(seen.memory_type, u64::from(expected.bits()));
            assert!(!seen.rights.contains(Access::EXEC_KERNEL));
        }
        for gpa in [top, top + GB, u64::MAX] {
            assert_eq!(space.ensure(Gpa::new(gpa)), Err(MapError::OutOfReach));
            assert_eq!(
                space.set_state(Gpa::new(gpa), CODE),
                Err(MapError::OutOfReach)
            );
            assert_eq!(space.vacate(Gpa::new(gpa)), Flush::None);
        }
    }
}

/// The guest finds memory that was added, makes it write-back, and runs code
/// there. What was touched before keeps nothing of its old type.
#[test]
fn added_memory_gets_its_type_and_its_code() {
    let mtrr = mtrr(40, 16 * GB);
    let (space, _) = space(EptFormat { mbec: true }, mtrr, 32);
    let all = Gpa::new(0)..space.limit();
    let _ = space.fill(Gpa::new(0)..Gpa::new(16 * GB)).unwrap();
    let added = Gpa::new(64 * GB + 0x7000);
    let device = Gpa::new(128 * GB);
    assert_eq!(space.lookup(added), None);
    assert_eq!(space.ensure(added).unwrap().mt, MemoryType::Uc);
    assert_eq!(space.ensure(device).unwrap().mt, MemoryType::Uc);
    let before = space.count_pages();

    assert!(mtrr.write(MSR_PHYS_BASE0 + 2, (64 * GB) | 6));
    assert!(mtrr.write(MSR_PHYS_BASE0 + 3, ((1 << 40) - 16 * GB) | 0x800));
    let done = space.retype(all.clone());
    assert_eq!((done.flush, done.degraded), (Flush::Revoked, 0));
    assert_eq!(space.lookup(added).unwrap().mt, MemoryType::Wb);
    assert_eq!(space.lookup(device).unwrap().mt, MemoryType::Uc);
    assert_eq!(space.retype(all).flush, Flush::None);
    // Only the touched gigabyte was there to change.
    assert_eq!(space.count_pages(), before);
    let next = space.ensure(Gpa::new(79 * GB)).unwrap();
    assert_eq!((next.mt, next.size), (MemoryType::Wb, PageSize::Size1G));

    let change = space.set_state(added, CODE).unwrap();
    assert_eq!(change.flush, Flush::Revoked);
    assert_eq!(change.new.mt, MemoryType::Wb);
    assert!(change.new.access.contains(Access::EXEC_KERNEL));
    assert_eq!(space.count_pages().executable, 1);
}

/// Device memory in the middle of RAM's gigabyte: a leaf never spans two types,
/// and what is asked for is all that is split.
#[test]
fn a_device_in_ram_splits_no_more_than_it_must() {
    let mtrr = mtrr(36, 16 * GB);
    let hole = 3 * GB + 512 * MB;
    assert!(mtrr.write(MSR_PHYS_BASE0 + 2, hole));
    assert!(mtrr.write(MSR_PHYS_BASE0 + 3, ((1 << 36) - 4 * MB) | 0x800));
    let (space, _) = space(EptFormat { mbec: false }, mtrr, 16);
    let _ = space.fill(Gpa::new(0)..Gpa::new(4 * GB)).unwrap();
    for (gpa, mt) in [
        (hole - 1, MemoryType::Wb),
        (hole, MemoryType::Uc),
        (hole + 4 * MB - 1, MemoryType::Uc),
        (hole + 4 * MB, MemoryType::Wb),
    ] {
        let leaf = space.lookup(Gpa::new(gpa)).unwrap();
        assert_eq!((leaf.mt, leaf.size), (mt, PageSize::Size2M), "{gpa:#x}");
    }
    let counts = space.count_pages();
    assert_eq!((counts.split_1g, counts.split_2m), (1, 0));
}

/// AMD's processor applies the MTRRs itself: entries carry no type and nothing
/// is split for one.
#[test]
fn where_entries_have_no_type_a_device_splits_nothing() {
    let mtrr = mtrr(40, 16 * GB);
    assert!(mtrr.write(MSR_PHYS_BASE0 + 2, 3 * GB));
    assert!(mtrr.write(MSR_PHYS_BASE0 + 3, ((1 << 40) - 4096) | 0x800));
    let (space, _) = space(NptFormat { gmet: false }, mtrr, 16);
    let leaf = space.ensure(Gpa::new(3 * GB)).unwrap();
    assert_eq!((leaf.size, leaf.mt), (PageSize::Size1G, MemoryType::Wb));
    let done = space.retype(Gpa::new(0)..space.limit());
    assert_eq!((done.flush, done.degraded), (Flush::None, 0));
}

/// The reserve runs out: what was watched stays watched, each page that is not
/// is counted, devices can still be reached, and nothing was half done.
#[test]
fn an_exhausted_reserve_is_a_counted_loss() {
    let mtrr = mtrr(40, 64 * GB);
    let (space, memory) = space(EptFormat { mbec: true }, mtrr, 40);
    let (mut watched, mut lost, mut pages) = (0_u64, 0_u64, 0_u64);
    for i in 0..60 {
        let gpa = Gpa::new(GB + i * 2 * MB + 0x3000);
        match space.set_state(gpa, CODE) {
            Ok(_) => watched += 1,
            Err(error) => {
                assert_eq!(error, MapError::PoolExhausted);
                let change = space.exempt_whole(gpa).unwrap();
                assert_eq!(change.flush, Flush::Relaxed);
                lost += 1;
                pages += change.new.size.pages();
            }
        }
    }
    assert!(watched > 10 && lost > 10);
    let counts = space.count_pages();
    assert_eq!((counts.executable, counts.exempt), (watched, pages));
    assert_eq!(pages, lost * PageSize::Size2M.pages());
    for i in 0..60 {
        let gpa = Gpa::new(GB + i * 2 * MB + 0x3000);
        let seen = walk_ept(&memory, space.root(), gpa, true, 40).unwrap();
        let exempt = seen.rights == Access::all();
        assert_eq!(exempt, seen.bytes != PageSize::Size4K.bytes());
    }
    let device = space.ensure(Gpa::new(900 * GB)).unwrap();
    assert_eq!(
        (device.mt, device.hpa),
        (MemoryType::Uc, Hpa::new(900 * GB))
    );
    // A type that needs a split which cannot be had: uncacheable, and counted.
    while space.pool().claim().is_some() {}
    assert!(mtrr.write(MSR_PHYS_BASE0 + 2, (900 * GB + 4096) | 1));
    assert!(mtrr.write(MSR_PHYS_BASE0 + 3, ((1 << 40) - 4096) | 0x800));
    let ram = space.ensure(Gpa::new(GB)).unwrap();
    let done = space.retype(Gpa::new(0)..space.limit());
    assert_eq!(done.degraded, 1);
    let device = space.lookup(Gpa::new(900 * GB + 4096)).unwrap();
    assert_eq!(device.mt, MemoryType::Uc);
    assert_eq!(space.ensure(Gpa::new(GB)).unwrap(), ram);
}
