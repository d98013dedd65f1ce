//! One test a question, and what may not be asked.

use super::*;
use crate::registry::{Builder, ModuleSpec, Section};
use alloc::vec::Vec;

const BASE: u64 = 0xffff_f800_1000_0000;

/// .text at 0x1000 (2 pages), .data at 0x3000, INIT at 0x4000; frames are
/// 0x100 + page, and the second page of .text is not resident.
fn snapshot(initialized: bool) -> Vec<u8> {
    let section = |name: &[u8; 8], rva, size, characteristics| Section {
        name: *name,
        rva,
        size,
        characteristics,
    };
    let spec = ModuleSpec {
        name: "victim.sys",
        base: BASE,
        size: 0x5000,
        load_order: 0,
        load_time: 0,
        since: 2,
        initialized,
    };
    let sections = [
        section(b".text\0\0\0", 0x1000, 0x2000, 0x6000_0020),
        section(b".data\0\0\0", 0x3000, 0x1000, 0xC000_0040),
        section(b"INIT\0\0\0\0", 0x4000, 0x1000, 0x6200_0020),
    ];
    let mut builder = Builder::new(4);
    let frame = |va: u64| {
        let page = (va - BASE) >> 12;
        (page != 2).then_some(0x100 + page)
    };
    builder.module(&spec, sections, frame).unwrap();
    builder.finish().unwrap()
}

fn kernel(rip: u64, gpa: u64) -> FetchFacts {
    FetchFacts {
        rip,
        gla: rip,
        gpa,
        cpl: 0,
        long_mode: true,
        mbec: true,
        left: false,
        content: Content::Unknown,
        questions: Questions::all(),
    }
}

fn judge(facts: FetchFacts) -> FetchVerdict {
    let bytes = snapshot(true);
    fetch(&View::new(&bytes).unwrap(), &facts)
}

#[test]
fn module_code_in_its_frame_is_allowed() {
    assert_eq!(judge(kernel(BASE + 0x1010, 0x10_1010)), FetchVerdict::Allow);
}

#[test]
fn code_in_no_module_is_unbacked() {
    let expected = FetchVerdict::Report(Kind::UnbackedExecution);
    for rip in [BASE - 1, BASE + 0x5000, 0x7ff0_1000, 0] {
        assert_eq!(judge(kernel(rip, 0x9000_0000)), expected);
    }
}

#[test]
fn both_pages_of_a_crossing_instruction_are_asked() {
    let expected = FetchVerdict::Report(Kind::UnbackedExecution);
    let out_of_module = FetchFacts {
        gla: BASE + 0x5000,
        ..kernel(BASE + 0x4fff, 0x9000_0000)
    };
    assert_eq!(judge(out_of_module), expected);
    let into_module = FetchFacts {
        gla: BASE,
        ..kernel(BASE - 1, 0x10_0000)
    };
    assert_eq!(judge(into_module), expected);
}

#[test]
fn user_mode_gets_no_verdict() {
    let user = FetchFacts {
        cpl: 3,
        ..kernel(0x7ff0_1000, 0x9000_0000)
    };
    assert_eq!(judge(user), FetchVerdict::Allow);
    for cpl in [1, 2] {
        let expected = FetchVerdict::Report(Kind::UnbackedExecution);
        assert_eq!(judge(FetchFacts { cpl, ..user }), expected);
    }
}

#[test]
fn only_a_starting_core_may_run_outside_without_long_mode() {
    let starting = FetchFacts {
        long_mode: false,
        ..kernel(0x8000, 0x8000)
    };
    assert_eq!(judge(starting), FetchVerdict::Allow);
    let elsewhere = FetchFacts {
        gpa: 0x10_0000,
        ..starting
    };
    assert_eq!(
        judge(elsewhere),
        FetchVerdict::Report(Kind::UnbackedExecution)
    );
}

#[test]
fn data_and_discarded_sections_and_headers() {
    let report = FetchVerdict::Report;
    let data = kernel(BASE + 0x3000, 0x10_3000);
    assert_eq!(judge(data), report(Kind::NonexecSectionExecution));
    assert_eq!(
        judge(kernel(BASE + 0x10, 0x10_0010)),
        report(Kind::NonexecSectionExecution)
    );
    let init = kernel(BASE + 0x4000, 0x10_4000);
    assert_eq!(judge(init), report(Kind::DiscardedSectionExecution));
    let loading = snapshot(false);
    let view = View::new(&loading).unwrap();
    assert_eq!(fetch(&view, &init), FetchVerdict::Allow);
    let only_first = FetchFacts {
        questions: Questions::MODULE,
        ..data
    };
    assert_eq!(judge(only_first), FetchVerdict::Allow);
}

#[test]
fn the_frame_must_be_the_loaders() {
    let remapped = FetchVerdict::Report(Kind::RemappedExecution);
    assert_eq!(judge(kernel(BASE + 0x1010, 0x9000_0010)), remapped);
    // Not resident before: any frame that is nobody else's will do.
    assert_eq!(
        judge(kernel(BASE + 0x2000, 0x9000_0000)),
        FetchVerdict::Allow
    );
    assert_eq!(judge(kernel(BASE + 0x2000, 0x10_1000)), remapped);
}

#[test]
fn changed_content_is_reported() {
    let facts = |content| FetchFacts {
        content,
        ..kernel(BASE + 0x1010, 0x10_1010)
    };
    assert_eq!(judge(facts(Content::Same)), FetchVerdict::Allow);
    assert_eq!(
        judge(facts(Content::Changed)),
        FetchVerdict::Report(Kind::ModifiedCodeExecution)
    );
}

#[test]
fn writes_are_judged_by_frame() {
    let bytes = snapshot(true);
    let view = View::new(&bytes).unwrap();
    let judge = |gpa, own_page| {
        write(
            &view,
            &WriteFacts {
                rip: 0,
                gpa,
                own_page,
            },
        )
    };
    let hit = judge(0x10_1abc, false);
    assert_eq!(hit.kind(), Some(Kind::ModuleCodeWrite));
    assert!(matches!(hit, WriteVerdict::ModuleCode(h) if h.rva == 0x1000));
    assert_eq!(judge(0x10_1abc, true), hit);
    assert_eq!(judge(0x10_3000, false), WriteVerdict::NotCode);
    // The frame of a discarded section belongs to somebody else by now.
    assert_eq!(judge(0x10_4000, false), WriteVerdict::NotCode);
    let own = judge(0x9000_0000, true);
    assert_eq!(own.kind(), Some(Kind::SelfModifyingPage));
}

#[test]
fn a_section_about_to_be_discarded_is_live_only_where_it_was_loaded() {
    let loading = snapshot(false);
    let view = View::new(&loading).unwrap();
    let elsewhere = FetchFacts {
        questions: Questions::MODULE | Questions::SECTION,
        ..kernel(BASE + 0x4010, 0x9000_0010)
    };
    let discarded = FetchVerdict::Report(Kind::DiscardedSectionExecution);
    assert_eq!(fetch(&view, &elsewhere), discarded);
    let reused = FetchFacts {
        gpa: 0x10_4010,
        left: true,
        ..elsewhere
    };
    assert_eq!(fetch(&view, &reused), discarded);
    let in_place = FetchFacts {
        left: false,
        ..reused
    };
    assert_eq!(fetch(&view, &in_place), FetchVerdict::Allow);
    // Ordinary code at another frame is another question's affair.
    let text = FetchFacts {
        questions: elsewhere.questions,
        left: true,
        ..kernel(BASE + 0x1010, 0x9000_0010)
    };
    assert_eq!(fetch(&view, &text), FetchVerdict::Allow);
}

/// A write to the first page of victim.sys, as the snapshot of generation 4 knew
/// it.
fn code_write(in_place: bool) -> Event {
    let bytes = snapshot(true);
    let mut event = Event::new(Kind::ModuleCodeWrite);
    event.rip = 0xffff_9000_0000_0000;
    event.gpa = 0x10_1123;
    annotate(&View::new(&bytes).unwrap(), &mut event);
    if in_place {
        event.mark(Flags::IN_PLACE);
    }
    event
}

/// A later list: the kernel, and perhaps a module with frame 0x101 at this
/// offset, known since this generation.
fn later(module: Option<(u32, u32)>) -> Vec<u8> {
    let spec = |name, base, load_order, since| ModuleSpec {
        name,
        base,
        size: 0x5000,
        load_order,
        load_time: 0,
        since,
        initialized: true,
    };
    let text = |rva| Section {
        name: *b".text\0\0\0",
        rva,
        size: 0x1000,
        characteristics: 0x6000_0020,
    };
    let mut builder = Builder::new(9);
    builder
        .module(
            &spec("ntoskrnl.exe", BASE + 0x10_0000, 0, 1),
            [text(0x1000)],
            |_| Some(1),
        )
        .unwrap();
    if let Some((rva, since)) = module {
        builder
            .module(&spec("other.sys", BASE, 7, since), [text(rva)], |_| {
                Some(0x101)
            })
            .unwrap();
    }
    builder.finish().unwrap()
}

#[test]
fn a_write_to_code_holds_as_long_as_the_code_is_there() {
    let holds = |bytes: &[u8], event: &Event| still_holds(&View::new(bytes).unwrap(), event);
    for in_place in [false, true] {
        let event = code_write(in_place);
        assert!(holds(&snapshot(true), &event), "nothing has changed");
        assert!(holds(&later(Some((0x1000, 4))), &event));
        assert_eq!(holds(&later(None), &event), in_place, "unloaded since");
        let moved = later(Some((0x2000, 4)));
        assert_eq!(holds(&moved, &event), in_place, "another page of it");
        let replaced = later(Some((0x1000, 5)));
        assert_eq!(holds(&replaced, &event), in_place, "another module");
        let mut by_loader = event;
        by_loader.rip = BASE + 0x10_0123;
        assert!(!holds(&replaced, &by_loader), "which the kernel loaded");
        assert_eq!(holds(&later(None), &by_loader), in_place);
        assert!(holds(&snapshot(true), &by_loader));
    }
    let mut other = code_write(false);
    other.kind = Kind::SelfModifyingPage as u16;
    assert!(holds(&later(None), &other));
}

#[test]
fn the_home_of_a_frame_is_its_modules_address() {
    let bytes = snapshot(true);
    let view = View::new(&bytes).unwrap();
    assert_eq!(home(&view, 0x10_1abc), Some(BASE + 0x1abc));
    assert_eq!(home(&view, 0x10_3000), None);
    let event = code_write(false);
    assert_eq!(event.victim_va, BASE + 0x1123);
    assert!(event.flags().contains(Flags::VICTIM_VA));
}

#[test]
fn code_that_its_file_marks_writable_is_known() {
    let mut builder = Builder::new(1);
    let spec = ModuleSpec {
        name: "rwx.sys",
        base: BASE,
        size: 0x3000,
        load_order: 1,
        load_time: 0,
        since: 1,
        initialized: true,
    };
    let section = |rva, characteristics| Section {
        name: *b"code\0\0\0\0",
        rva,
        size: 0x1000,
        characteristics,
    };
    let sections = [section(0x1000, 0x6000_0020), section(0x2000, 0xE000_0020)];
    builder
        .module(&spec, sections, |va| Some((va - BASE) >> 12))
        .unwrap();
    let bytes = builder.finish().unwrap();
    let view = View::new(&bytes).unwrap();
    assert!(!is_writable_code(&view, 0x1000));
    assert!(is_writable_code(&view, 0x2abc));
    assert!(!is_writable_code(&view, 0x3000));
}

#[test]
fn hints_name_actor_and_victim() {
    let bytes = snapshot(true);
    let view = View::new(&bytes).unwrap();
    let mut event = Event::new(Kind::ModuleCodeWrite);
    event.rip = BASE + 0x3004;
    event.gla = 0xffff_9000_0000_0123;
    event.gpa = 0x10_1123;
    event.mark(Flags::GLA);
    annotate(&view, &mut event);
    assert_eq!((event.actor_module, event.actor_section), (0, 1));
    assert_eq!((event.victim_module, event.victim_section), (0, 0));
    assert_eq!((event.victim_rva, event.generation), (0x1123, 4));
    event.gpa = 0x9000_0000;
    event.rip = 1;
    annotate(&view, &mut event);
    assert_eq!(event.actor_module, NO_INDEX);
    assert_eq!((event.victim_module, event.victim_rva), (NO_INDEX, 0));
}
