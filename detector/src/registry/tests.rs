//! The snapshot against a naive model, and against hostile bytes.

use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;
use std::string::String;

const CODE: u32 = 0x6000_0020;
const DATA: u32 = 0xC000_0040;
const INIT: u32 = 0x6200_0020;

fn section(name: &str, rva: u32, size: u32, characteristics: u32) -> Section {
    let mut padded = [0; 8];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    Section {
        name: padded,
        rva,
        size,
        characteristics,
    }
}

fn spec(name: &str, base: u64, size: u32) -> ModuleSpec<'_> {
    ModuleSpec {
        name,
        base,
        size,
        load_order: 0,
        load_time: 0,
        since: 0,
        initialized: true,
    }
}

fn usual() -> [Section; 4] {
    [
        section(".text", 0x1000, 0x1801, CODE),
        section(".data", 0x3000, 0x10, DATA),
        section("INIT", 0x4000, 0x1000, INIT),
        section(".longnam", 0x5000, 0x1000, DATA),
    ]
}

#[allow(clippy::unnecessary_wraps)] // the builder's callback
fn identity(va: u64) -> Option<u64> {
    Some((va & 0xffff_ffff) >> 12)
}

fn two_modules() -> Vec<u8> {
    let mut builder = Builder::new(7);
    let later = ModuleSpec {
        load_order: 3,
        load_time: 4,
        since: 5,
        ..spec("later.sys", 0xffff_f800_2000_0000, 0x6000)
    };
    builder.module(&later, usual(), identity).unwrap();
    let first = ModuleSpec {
        initialized: false,
        ..spec("ntoskrnl.exe", 0xffff_f800_1000_0000, 0x6000)
    };
    builder.module(&first, usual(), identity).unwrap();
    builder.finish().unwrap()
}

#[test]
fn addresses_are_found_with_section_rights_and_liveness() {
    let bytes = two_modules();
    let view = View::new(&bytes).unwrap();
    assert_eq!(view.generation(), 7);
    assert_eq!(view.module_count(), 2);
    assert_eq!(view.module(0).unwrap().name, b"ntoskrnl.exe");
    assert_eq!(view.module(1).unwrap().name, b"later.sys");
    assert_eq!(view.module(2), None);

    let expected = Module {
        name: b"later.sys",
        base: 0xffff_f800_2000_0000,
        size: 0x6000,
        load_order: 3,
        load_time: 4,
        since: 5,
        initialized: true,
        first_section: 4,
        section_count: 4,
    };
    assert_eq!(view.module(1), Some(expected));
    assert!(!view.module(0).unwrap().initialized);

    let hit = view.by_address(0xffff_f800_1000_2ffe).unwrap();
    assert_eq!((hit.module, hit.section, hit.offset), (0, Some(0), 0x2ffe));
    assert!(hit.executable && hit.live && !hit.discardable);
    let data = view.by_address(0xffff_f800_2000_3000).unwrap();
    assert_eq!((data.module, data.section), (1, Some(5)));
    assert!(!data.executable && data.live);
    assert_eq!(view.section(5).unwrap().name(), b".data");

    let init_loading = view.by_address(0xffff_f800_1000_4000).unwrap();
    assert!(init_loading.executable && init_loading.discardable && init_loading.live);
    let init_gone = view.by_address(0xffff_f800_2000_4000).unwrap();
    assert!(init_gone.executable && init_gone.discardable && !init_gone.live);

    let headers = view.by_address(0xffff_f800_1000_0fff).unwrap();
    assert_eq!((headers.section, headers.executable), (None, false));
    assert_eq!(view.by_address(0xffff_f800_1000_6000), None);
    assert_eq!(view.by_address(0xffff_f800_0fff_ffff), None);
    assert_eq!(view.by_address(0), None);
    assert_eq!(view.by_address(u64::MAX), None);
}

#[test]
fn frames_of_live_code_only() {
    let bytes = two_modules();
    let view = View::new(&bytes).unwrap();
    let frames: Vec<_> = view.frames().map(|f| f.pfn).collect();
    // ntoskrnl is still initialising, so its INIT section is live.
    assert_eq!(frames, [0x1_0001, 0x1_0002, 0x1_0004, 0x2_0001, 0x2_0002]);
    let expected = FrameHit {
        module: 1,
        section: 4,
        rva: 0x2000,
    };
    assert_eq!(view.by_frame(0x2_0002), Some(expected));
    assert_eq!(view.by_frame(0x2_0004), None);
    assert_eq!(view.by_frame(0x1_0003), None, "between two frames");
    assert_eq!(view.frame_of(4, 0x2ff0), Some(0x2_0002));
    assert_eq!(view.frame_of(4, 0x3000), None);
    assert_eq!(view.frame_of(5, 0x3000), None);
    assert_eq!(view.frame_of(99, 0), None);
}

#[test]
fn a_page_that_is_not_resident_has_no_frame() {
    let mut builder = Builder::new(1);
    let only_second = |va: u64| (va & 0xf000 == 0x2000).then_some(9);
    builder
        .module(&spec("a", 0x10_0000, 0x6000), usual(), only_second)
        .unwrap();
    let bytes = builder.finish().unwrap();
    let view = View::new(&bytes).unwrap();
    assert_eq!(view.frame_count(), 1);
    assert_eq!(view.frame_of(0, 0x1000), None);
    assert_eq!(view.frame_of(0, 0x2000), Some(9));
}

#[test]
fn a_module_that_overlaps_or_wraps_is_refused_and_leaves_no_trace() {
    let mut builder = Builder::new(1);
    let first = spec("a", 0x10_0000, 0x6000);
    builder.module(&first, usual(), identity).unwrap();
    for (base, size) in [
        (0x10_5fff, 1),
        (0xf_ffff, 2),
        (0x10_0000, 0x6000),
        (0xf_0000, 0xff_0000),
        (u64::MAX, 2),
        (0x20_0000, 0),
    ] {
        let refused = builder.module(&spec("b", base, size), usual(), identity);
        assert_eq!(refused, Err(BuildError::Range), "{base:#x}");
    }
    let adjacent = spec("c", 0x10_6000, 0x1000);
    builder.module(&adjacent, [], identity).unwrap();
    let bytes = builder.finish().unwrap();
    let view = View::new(&bytes).unwrap();
    assert_eq!((view.module_count(), view.section_count()), (2, 4));
}

#[test]
fn a_module_with_too_many_sections_leaves_no_trace() {
    let mut builder = Builder::new(1);
    let many = (0..0xffff).map(|rva| section("s", rva, 1, CODE));
    let huge = spec("huge", 0x1000_0000, 0x100_0000);
    let refused = builder.module(&huge, many, identity);
    assert_eq!(refused, Err(BuildError::TooMany));
    let fine = spec("fine", 0x1000_0000, 0x6000);
    builder.module(&fine, usual(), identity).unwrap();
    let bytes = builder.finish().unwrap();
    let view = View::new(&bytes).unwrap();
    assert_eq!((view.section_count(), view.frame_count()), (4, 2));
    assert_eq!(view.frame_of(0, 0x2000), Some(0x1_0002));
}

#[test]
fn hostile_sections_are_clipped() {
    let mut builder = Builder::new(1);
    let sections = [
        section("out", 0x9000, 0x1000, CODE),
        section("wide", 0x1000, u32::MAX, CODE),
        section("inner", 0x2000, 0x1000, DATA),
    ];
    builder
        .module(&spec("a", 0x10_0000, 0x3800), sections, identity)
        .unwrap();
    let bytes = builder.finish().unwrap();
    let view = View::new(&bytes).unwrap();
    assert_eq!(view.section_count(), 2);
    assert_eq!(view.section(0).unwrap().size, 0x1000);
    assert_eq!(view.section(1).unwrap().size, 0x1000);
    assert_eq!(view.frame_count(), 1);
}

#[test]
fn a_long_name_is_cut_at_a_character() {
    let mut builder = Builder::new(1);
    let name: String = "ä".repeat(40);
    builder
        .module(&spec(&name, 0x1000, 0x1000), [], identity)
        .unwrap();
    let bytes = builder.finish().unwrap();
    let name = View::new(&bytes).unwrap().module(0).unwrap().name;
    assert_eq!(core::str::from_utf8(name).unwrap().chars().count(), 31);
}

#[test]
fn a_snapshot_is_reserved_at_once() {
    let bytes = two_modules();
    assert_eq!(bytes.capacity(), bytes.len());
}

#[test]
fn an_empty_or_truncated_or_foreign_snapshot_is_refused() {
    let bytes = two_modules();
    for length in 0..bytes.len() {
        assert!(View::new(&bytes[..length]).is_none(), "{length}");
    }
    let mut foreign = bytes.clone();
    foreign[0] ^= 1;
    assert!(View::new(&foreign).is_none());
    let mut newer = bytes.clone();
    newer[8] += 1;
    assert!(View::new(&newer).is_none());
    let empty = Builder::new(3).finish().unwrap();
    assert_eq!(View::new(&empty).unwrap().by_address(0x1000), None);
    assert_eq!(View::EMPTY.by_frame(0), None);
}

fn exercise(bytes: &[u8], probes: &[u64]) {
    let Some(view) = View::new(bytes) else {
        return;
    };
    for probe in probes {
        let _ = view.by_address(*probe);
        let _ = view.by_frame(*probe);
        let low = u16::try_from(probe & 0xffff).unwrap();
        let _ = view.module(low);
        let _ = view.section(low).map(|s| s.name().len());
        let _ = view.frame_of(low, u32::try_from(probe >> 32).unwrap());
    }
    for index in 0..16 {
        if let Some(module) = view.module(index) {
            let _ = view.by_address(module.base);
            let _ = view.by_address(module.base.wrapping_add(u64::from(module.size)));
        }
        for offset in [0, 0x1000, u32::MAX] {
            let _ = view.frame_of(index, offset);
        }
    }
    let _ = view.frames().take(64).last();
}

#[derive(Clone, Debug)]
struct Plan {
    gap: u32,
    pages: u32,
    initialized: bool,
    sections: Vec<(u32, u32, u32)>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let characteristics = prop::sample::select(std::vec![CODE, DATA, INIT, 0x4000_0040]);
    let section = (0..12u32, 1..4u32, characteristics);
    (
        0..3u32,
        1..14u32,
        any::<bool>(),
        prop::collection::vec(section, 0..5),
    )
        .prop_map(|(gap, pages, initialized, sections)| Plan {
            gap,
            pages,
            initialized,
            sections,
        })
}

/// What the model says of an address: module base, section flags, frame.
type Model = std::collections::BTreeMap<u64, (u64, Option<(u32, u32)>, Option<u64>)>;

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512), probes: [u64; 8]) {
        exercise(&bytes, &probes);
    }

    #[test]
    fn mutated_snapshots_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24),
        probes: [u64; 8],
    ) {
        let mut bytes = two_modules();
        for (index, value) in changes {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        // Past the header's checks, so that the tables are reached.
        bytes[..12].copy_from_slice(&two_modules()[..12]);
        exercise(&bytes, &probes);
    }

    #[test]
    fn lookups_agree_with_a_page_by_page_model(plans in prop::collection::vec(plan(), 0..6), rotate in 0..6usize) {
        let mut model = Model::new();
        let mut modules = Vec::new();
        let mut base = 0xffff_f800_0000_0000_u64;
        let frame = |va: u64| !(va >> 12).is_multiple_of(5);
        let pfn = |va: u64| ((va >> 12) & 0xffff) ^ 0x2a5;
        for plan in &plans {
            base += u64::from(plan.gap) << 12;
            let mut sections = Vec::new();
            for page in 0..plan.pages {
                // The later start wins; of two that start together, the wider.
                let owner = plan.sections.iter()
                    .filter(|(start, _, _)| *start <= page)
                    .max_by_key(|(start, pages, _)| (*start, *pages))
                    .filter(|(start, pages, _)| page < start + pages)
                    .map(|(start, _, flags)| (*start, *flags));
                let va = base + (u64::from(page) << 12);
                let live = owner.is_some_and(|(_, f)| f & 0x2000_0000 != 0 && !(f & 0x0200_0000 != 0 && plan.initialized));
                let held = (live && frame(va)).then(|| pfn(va));
                model.insert(va, (base, owner, held));
            }
            for (start, pages, flags) in &plan.sections {
                sections.push(section("s", start << 12, pages << 12, *flags));
            }
            modules.push((base, plan.pages << 12, plan.initialized, sections));
            base += u64::from(plan.pages) << 12;
        }
        // Two sections of the same start and size but other rights have no
        // right answer; leave such plans out.
        let ambiguous = plans.iter().any(|p| p.sections.iter().enumerate().any(|(i, a)|
            p.sections[..i].iter().any(|b| a.0 == b.0 && a.1 == b.1 && a.2 != b.2)));
        prop_assume!(!ambiguous);
        let len = modules.len().max(1);
        modules.rotate_left(rotate % len);
        let mut builder = Builder::new(1);
        for (base, size, initialized, sections) in modules {
            let spec = ModuleSpec { initialized, ..spec("m", base, size) };
            builder.module(&spec, sections, |va| frame(va).then(|| pfn(va))).unwrap();
        }
        let bytes = builder.finish().unwrap();
        let view = View::new(&bytes).unwrap();
        let mut frames = 0;
        let mut va = 0xffff_f800_0000_0000_u64 - 0x1000;
        while va <= base {
            for probe in [va, va + 0xfff] {
                let hit = view.by_address(probe);
                let Some((base, owner, held)) = model.get(&va) else {
                    prop_assert_eq!(hit, None);
                    continue;
                };
                let hit = hit.unwrap();
                prop_assert_eq!(view.module(hit.module).unwrap().base, *base);
                prop_assert_eq!(u64::from(hit.offset), probe - base);
                prop_assert_eq!(hit.section.is_some(), owner.is_some());
                prop_assert_eq!(hit.executable, owner.is_some_and(|(_, f)| f & 0x2000_0000 != 0));
                let of = hit.section.and_then(|s| view.frame_of(s, hit.offset));
                prop_assert_eq!(of, *held);
            }
            if let Some((_, _, Some(pfn))) = model.get(&va) {
                frames += 1;
                let hit = view.by_frame(*pfn).unwrap();
                prop_assert_eq!(view.module(hit.module).unwrap().base + u64::from(hit.rva), va);
            }
            va += 0x1000;
        }
        prop_assert_eq!(view.frame_count(), frames);
        prop_assert_eq!(view.by_frame(0x10_0000), None);
    }
}

#[test]
fn sections_are_discarded_by_flag_or_by_name() {
    let section = |name: &[u8; 8], characteristics| Section {
        name: *name,
        rva: 0x1000,
        size: 0x1000,
        characteristics,
    };
    let code = 0x6000_0020;
    assert!(section(b".stuff\0\0", code | 0x0200_0000).discardable());
    assert!(section(b"INIT\0\0\0\0", code).discardable());
    assert!(section(b"INITDATA", 0xC000_0040).discardable());
    assert!(!section(b"INITKDBG", code | 0x0200_0000).discardable());
    assert!(!section(b".text\0\0\0", code).discardable());
    assert!(!section(b"XINIT\0\0\0", code).discardable());
}
