//! Merging, naming, delivery, and accounts that always balance.

use super::*;
use crate::registry::{Builder, ModuleSpec, Section};
use crate::wire::{Place, findings, reply};
use alloc::boxed::Box;
use proptest::prelude::*;
use std::string::String;

const NT: u64 = 0xffff_f800_1000_0000;
const SECOND: u64 = 10_000_000;

fn nt() -> Vec<u8> {
    let mut builder = Builder::new(1);
    let spec = ModuleSpec {
        name: "ntoskrnl.exe",
        base: NT,
        size: 0x4000,
        load_order: 0,
        load_time: 0,
        since: 0,
        initialized: true,
    };
    let text = Section {
        name: *b".text\0\0\0",
        rva: 0x1000,
        size: 0x2000,
        characteristics: 0x6000_0020,
    };
    let data = Section {
        name: *b".data\0\0\0",
        rva: 0x3000,
        size: 0x1000,
        characteristics: 0xC000_0040,
    };
    builder
        .module(&spec, [text, data], |va| Some(0x100 + ((va - NT) >> 12)))
        .unwrap();
    builder.finish().unwrap()
}

fn exports(base: u64, rva: u32) -> Option<ExportName> {
    (base == NT).then(|| ExportName::new(b"NtAddAtom", rva - 0x1000))
}

struct Bench {
    snapshot: Vec<u8>,
    assembler: Assembler,
}

impl Bench {
    fn new(findings: usize) -> Bench {
        Bench {
            snapshot: nt(),
            assembler: Assembler::with_limits(findings, 4).unwrap(),
        }
    }

    fn push(&mut self, event: &Event, page: Option<&Page>) -> Outcome {
        let view = View::new(&self.snapshot).unwrap();
        let outcome = self
            .assembler
            .push(event, page, 100 * SECOND, &view, &mut exports);
        assert!(self.assembler.accounts().balance());
        outcome
    }

    fn wait(
        &mut self,
        after_seq: u64,
        max: u32,
        flags: WaitFlags,
    ) -> Option<(WaitReply, Vec<Finding>)> {
        let mut request = WaitRequest::zeroed();
        request.after_seq = after_seq;
        request.max = max;
        request.flags = flags.bits();
        let mut out = std::vec![0xee; wait_reply_bytes(16)];
        let length = match self.assembler.wait(&request, State::Monitoring, &mut out) {
            Wait::Ready(length) => length,
            Wait::Park => return None,
            Wait::TooSmall => panic!("16 findings fit"),
        };
        let (head, rest) = reply::<WaitReply>(&out[..length]).unwrap();
        assert!(head.accounts.balance());
        Some((head, findings(&head, rest).unwrap().collect()))
    }

    fn all(&mut self) -> Vec<Finding> {
        self.wait(0, 0, WaitFlags::NO_WAIT).unwrap().1
    }
}

fn fetch(rip: u64) -> Event {
    let mut event = Event::new(Kind::UnbackedExecution);
    event.rip = rip;
    event.gla = rip;
    event.gpa = rip & 0xffff_ffff;
    event.mark(Flags::GLA);
    event
}

fn hook(offset: u32, old: &[u8], new: &[u8]) -> Event {
    let mut event = Event::new(Kind::ModuleCodeWrite);
    event.rip = 0xffff_9000_0000_1000;
    event.gla = 0xffff_a000_0000_0000 + u64::from(offset);
    event.gpa = 0x10_1000 + u64::from(offset);
    event.victim_rva = 0x1000 + offset;
    event.mark(Flags::GLA);
    event.record_write(
        offset,
        u32::try_from(old.len()).unwrap(),
        Some(old),
        Some(new),
    );
    event
}

fn text(name: Option<&[u8]>) -> String {
    name.map_or(String::from("-"), |n| {
        String::from_utf8_lossy(n).into_owned()
    })
}

fn show(place: &Place) -> String {
    std::format!(
        "{}!{} {} +{:#x} {:#x}",
        text(place.module()),
        text(place.export()),
        text(place.section()),
        place.offset,
        place.address
    )
}

#[test]
fn an_unbacked_fetch_is_named_hashed_and_delivered_once() {
    let mut bench = Bench::new(8);
    let mut event = fetch(0xffff_9000_0000_1000);
    event.return_address = NT + 0x1044;
    event.mark(Flags::RETURN_ADDRESS);
    let page = Box::new([0xcc; 4096]);
    assert_eq!(bench.push(&event, Some(&page)), Outcome::Found(1));
    assert_eq!(bench.wait(0, 1, WaitFlags::PEEK).unwrap().1.len(), 1);
    assert_eq!(bench.assembler.accounts().delivered, 0);
    let (head, found) = bench.wait(0, 0, WaitFlags::empty()).unwrap();
    assert_eq!((head.count, head.remaining, head.oldest_seq), (1, 0, 1));
    let finding = found[0];
    assert_eq!(
        (finding.seq, finding.count, finding.time),
        (1, 1, 100 * SECOND)
    );
    assert_eq!(show(&finding.actor), "-!- - +0x0 0xffff900000001000");
    assert_eq!(show(&finding.victim), "-!- - +0x0 0xffff900000001000");
    assert_eq!(
        show(&finding.returns),
        "ntoskrnl.exe!NtAddAtom .text +0x1044 0xfffff80010001044"
    );
    assert_eq!(finding.returns.export_offset, 0x44);
    let hash: [u8; 32] = Sha256::digest([0xcc; 4096]).into();
    assert_eq!(finding.sha256, hash);
    assert!(
        finding
            .flags()
            .contains(FindingFlags::EVIDENCE | FindingFlags::GLA)
    );
    assert_eq!(finding.old(), None);
    // Still kept for another reader, but nothing new for this one.
    assert!(bench.wait(1, 0, WaitFlags::empty()).is_none());
    assert_eq!(bench.all().len(), 1);
    assert_eq!(bench.assembler.accounts().delivered, 1);
    let undelivered = WaitFlags::NO_WAIT | WaitFlags::UNDELIVERED;
    assert_eq!(bench.wait(0, 0, undelivered).unwrap().1.len(), 0);
}

#[test]
fn a_write_through_an_alias_names_the_module_of_the_frame() {
    let mut bench = Bench::new(8);
    let mut event = hook(0x44, &[0x48, 0x89], &[0xeb, 0xfe]);
    event.stack[..3].copy_from_slice(&[5, NT + 0x3001, NT + 0x2001]);
    event.stack_words = 3;
    event.return_address = 5;
    event.mark(Flags::RETURN_ADDRESS);
    bench.push(&event, None);
    let finding = bench.all()[0];
    assert_eq!(
        show(&finding.victim),
        "ntoskrnl.exe!NtAddAtom .text +0x1044 0xfffff80010001044"
    );
    assert_eq!(finding.gla, 0xffff_a000_0000_0044);
    assert_eq!(finding.returns.address, NT + 0x2001);
    assert_eq!(finding.old().unwrap(), [0x48, 0x89]);
    assert_eq!(finding.new_bytes().unwrap(), [0xeb, 0xfe]);
    assert_eq!(bench.assembler.accounts().no_evidence, 1);
    assert!(!finding.flags().contains(FindingFlags::EVIDENCE));
}

#[test]
fn repeats_are_counted_read_or_not() {
    let mut bench = Bench::new(8);
    let event = fetch(0xffff_9000_0000_1000);
    assert_eq!(bench.push(&event, None), Outcome::Found(1));
    assert_eq!(bench.push(&event, None), Outcome::Merged(1));
    // Another instruction of the same page.
    let mut beside = event;
    beside.rip += 2;
    assert_eq!(bench.push(&beside, None), Outcome::Merged(1));
    // The same page, run from an alias.
    let mut alias = event;
    alias.rip += 0x10_0000;
    assert_eq!(bench.push(&alias, None), Outcome::Found(2));
    let mut kind = event;
    kind.kind = Kind::RemappedExecution as u16;
    assert_eq!(bench.push(&kind, None), Outcome::Found(3));
    assert_eq!(bench.all()[0].count, 3);
    let mut often = event;
    often.count = 5;
    assert_eq!(bench.push(&often, None), Outcome::Merged(1));
    assert_eq!(bench.all()[0].count, 8);
    let accounts = bench.assembler.accounts();
    assert_eq!((accounts.produced, accounts.merged), (10, 7));
    kind.count = 3;
    kind.gpa += 0x1000;
    assert_eq!(bench.push(&kind, None), Outcome::Found(4));
    assert_eq!(bench.assembler.accounts().merged, 9);
    bench.all();
    assert!(
        bench.wait(4, 0, WaitFlags::empty()).is_none(),
        "nothing new"
    );
    bench.assembler.begin();
    assert_eq!(bench.push(&event, None), Outcome::Found(5), "a new start");
}

#[test]
fn other_code_in_the_same_page_is_told_a_few_times() {
    let mut bench = Bench::new(16);
    let event = fetch(0xffff_9000_0000_1000);
    for index in 1..=8_u8 {
        let page = Box::new([index; 4096]);
        let seq = u64::from(index);
        assert_eq!(bench.push(&event, Some(&page)), Outcome::Found(seq));
        assert_eq!(bench.push(&event, Some(&page)), Outcome::Merged(seq));
        assert_eq!(bench.push(&event, None), Outcome::Merged(seq));
    }
    assert_eq!(
        bench.push(&event, Some(&Box::new([1; 4096]))),
        Outcome::Merged(1),
        "known from before"
    );
    assert_eq!(
        bench.push(&event, Some(&Box::new([9; 4096]))),
        Outcome::Merged(8),
        "enough"
    );
}

#[test]
fn a_page_without_evidence_is_told_again_with_it() {
    let mut bench = Bench::new(8);
    let event = fetch(0xffff_9000_0000_1000);
    assert_eq!(bench.push(&event, None), Outcome::Found(1));
    let page = Box::new([1; 4096]);
    assert_eq!(bench.push(&event, Some(&page)), Outcome::Found(2));
    assert_eq!(bench.push(&event, Some(&page)), Outcome::Merged(2));
}

#[test]
fn a_page_that_writes_itself_is_told_once() {
    let mut bench = Bench::new(8);
    let mut event = hook(0x10, b"ab", b"AB");
    event.kind = Kind::SelfModifyingPage as u16;
    event.gpa = 0x9000_0010;
    assert_eq!(bench.push(&event, None), Outcome::Found(1));
    bench.all();
    event.record_write(0x800, 1, Some(b"x"), Some(b"y"));
    event.rip += 0x5000;
    let page = Box::new([7; 4096]);
    assert_eq!(bench.push(&event, Some(&page)), Outcome::Merged(1));
    event.gpa += 0x1000;
    assert_eq!(bench.push(&event, Some(&page)), Outcome::Found(2));
}

#[test]
fn code_that_is_meant_to_be_written_is_told_once() {
    let mut bench = Bench::new(8);
    let mut builder = Builder::new(1);
    let spec = ModuleSpec {
        name: "rwx.sys",
        base: NT,
        size: 0x3000,
        load_order: 1,
        load_time: 0,
        since: 0,
        initialized: true,
    };
    let section = |rva, characteristics| Section {
        name: *b"code\0\0\0\0",
        rva,
        size: 0x1000,
        characteristics,
    };
    let sections = [section(0x1000, 0xE000_0020), section(0x2000, 0x6000_0020)];
    builder
        .module(&spec, sections, |va| Some(0x100 + ((va - NT) >> 12)))
        .unwrap();
    bench.snapshot = builder.finish().unwrap();
    let mut event = hook(0x10, b"ab", b"AB");
    event.victim_rva = 0x1010;
    assert_eq!(bench.push(&event, None), Outcome::Found(1));
    let mut far = hook(0x800, b"x", b"y");
    far.victim_rva = 0x1800;
    far.rip = NT + 0x2000;
    assert_eq!(bench.push(&far, None), Outcome::Merged(1));
    // The other section is not meant to be written.
    for (offset, expected) in [(0x10, 2), (0x800, 3)] {
        let mut event = hook(offset, b"ab", b"AB");
        event.gpa += 0x1000;
        event.victim_rva = 0x2000;
        assert_eq!(bench.push(&event, None), Outcome::Found(expected));
    }
}

#[test]
fn a_frame_of_another_module_is_another_finding() {
    let mut bench = Bench::new(8);
    let mut event = hook(0x44, b"a", b"b");
    event.victim_va = NT + 0x1044;
    event.mark(Flags::VICTIM_VA);
    assert_eq!(bench.push(&event, None), Outcome::Found(1));
    assert_eq!(bench.push(&event, None), Outcome::Merged(1));
    // Another address, as root mode saw it.
    let mut other = event;
    other.victim_va += 0x1000;
    other.mark(Flags::IN_PLACE);
    assert_eq!(bench.push(&other, None), Outcome::Found(2));
    // Its module goes, and another one comes to the same place.
    bench
        .assembler
        .image(Change::Unloaded, SECOND, "x.sys", NT + 0x10_0000, 0x4000);
    assert_eq!(bench.push(&event, None), Outcome::Merged(1));
    bench
        .assembler
        .image(Change::Loaded, SECOND, "ntoskrnl.exe", NT, 0x4000);
    assert_eq!(bench.push(&event, None), Outcome::Merged(1));
    bench
        .assembler
        .image(Change::Unloaded, SECOND, "ntoskrnl.exe", NT, 0x4000);
    assert_eq!(bench.push(&event, None), Outcome::Found(3));
    // What acted from it is told anew as well; what lies in no module is not.
    let mut by = hook(0x800, b"a", b"b");
    by.gpa += 0x1000;
    by.victim_rva += 0x1000;
    by.rip = NT + 0x1000;
    assert_eq!(bench.push(&by, None), Outcome::Found(4));
    let pool = fetch(0xffff_9000_0000_1000);
    assert_eq!(bench.push(&pool, None), Outcome::Found(5));
    bench
        .assembler
        .image(Change::Unloaded, SECOND, "ntoskrnl.exe", NT, 0x4000);
    assert_eq!(bench.push(&by, None), Outcome::Found(6));
    bench
        .assembler
        .image(Change::Unloaded, SECOND, "none", 0, 0x4000);
    assert_eq!(bench.push(&pool, None), Outcome::Merged(5));
}

#[test]
fn too_many_new_findings_at_once_are_counted() {
    let mut bench = Bench::new(1000);
    let pages = 0..bucket::BURST + 10;
    let outcomes: Vec<_> = pages
        .map(|page| bench.push(&fetch(0xffff_9000_0000_0000 + (page << 12)), None))
        .collect();
    let found = outcomes.iter().filter(|o| matches!(o, Outcome::Found(_)));
    assert_eq!(found.count() as u64, bucket::BURST);
    assert_eq!(outcomes.last(), Some(&Outcome::Limited));
    assert_eq!(bench.assembler.accounts().rate_limited, 10);
    // Repeats need no token.
    let first = fetch(0xffff_9000_0000_0000);
    assert_eq!(bench.push(&first, None), Outcome::Merged(1));
    bench.assembler.begin();
    assert!(matches!(bench.push(&first, None), Outcome::Found(_)));
}

#[test]
fn a_write_to_a_module_that_had_gone_is_counted_as_stale() {
    let mut bench = Bench::new(8);
    let mut event = hook(0x44, &[0x48], &[0xeb]);
    event.gpa = 0x77_7044;
    event.victim_rva = 0x1044;
    assert_eq!(bench.push(&event, None), Outcome::Stale);
    assert_eq!(bench.assembler.accounts().stale, 1);
    // Written while it was there, then unloaded: kept, and named by the list of
    // unloads.
    let gone = 0xffff_f800_3000_0000;
    let assembler = &mut bench.assembler;
    assembler.image(Change::Unloaded, 99 * SECOND, "gone.sys", gone, 0x5000);
    event.mark(Flags::IN_PLACE | Flags::VICTIM_VA);
    event.victim_va = gone + 0x1044;
    event.victim_module = 3;
    assert_eq!(bench.push(&event, None), Outcome::Found(1));
    let finding = bench.all()[0];
    assert_eq!(
        show(&finding.victim),
        "gone.sys!- - +0x1044 0xfffff80030001044"
    );
}

#[test]
fn a_victim_is_named_by_what_is_known_of_it() {
    let mut bench = Bench::new(16);
    // Somebody else's memory now, and before.
    for base in [0xffff_a000_0000_0000, NT] {
        bench
            .assembler
            .image(Change::Unloaded, SECOND, "old.sys", base, 0x4000);
    }
    // A page that writes itself is no module's, whoever lay there once.
    let mut own = hook(0x44, b"a", b"b");
    own.kind = Kind::SelfModifyingPage as u16;
    own.gpa = 0x9000_0044;
    bench.push(&own, None);
    // A module's code is that module's.
    let mut code = hook(0x44, b"a", b"b");
    code.victim_module = 0;
    bench.push(&code, None);
    // A fetch from no module, though root mode's snapshot had one there.
    let mut run = fetch(0xffff_a000_0000_0100);
    run.victim_module = 0;
    bench.push(&run, None);
    // Without a linear address: of a fetch it is RIP, of a write nothing.
    run.flags = 0;
    run.gpa += 0x10_0000;
    bench.push(&run, None);
    own.flags = 0;
    own.gpa += 0x10_0000;
    bench.push(&own, None);
    // Without bytes the physical address says where; with them, they do, cut to
    // the page if they are hostile.
    let mut blind = hook(0x44, b"a", b"b");
    blind.write_length = 0;
    blind.write_offset = 0x999;
    blind.rip += 0x10_0000;
    bench.push(&blind, None);
    let mut hostile = hook(0x44, b"a", b"b");
    hostile.write_offset = 0xffff_f123;
    hostile.rip += 0x20_0000;
    bench.push(&hostile, None);
    let victims: Vec<_> = bench
        .all()
        .iter()
        .map(|f| (text(f.victim.module()), f.victim.present, f.victim.address))
        .collect();
    let none = || String::from("-");
    let nt = || String::from("ntoskrnl.exe");
    assert_eq!(
        victims,
        [
            (none(), 1, 0xffff_a000_0000_0044),
            (nt(), 1, NT + 0x1044),
            (none(), 1, 0xffff_a000_0000_0100),
            (none(), 1, 0xffff_a000_0000_0100),
            (none(), 0, 0),
            (nt(), 1, NT + 0x1044),
            (nt(), 1, NT + 0x1123),
        ]
    );
}

#[test]
fn code_where_a_module_used_to_be_is_told_so() {
    let mut bench = Bench::new(8);
    let base = 0xffff_f800_3000_0000;
    let assembler = &mut bench.assembler;
    assembler.image(Change::Unloaded, SECOND, "first.sys", base, 0x5000);
    assembler.image(Change::Loaded, 2 * SECOND, "second.sys", base, 0x2000);
    assembler.image(Change::Unloaded, 3 * SECOND, "second.sys", base, 0x2000);
    for at in [0x1fff, 0x2000, 0x4fff, 0x5000] {
        let mut event = fetch(base + at);
        event.gpa += at << 12;
        bench.push(&event, None);
    }
    let earlier: Vec<_> = bench
        .all()
        .iter()
        .map(|f| f.earlier().map(|c| (text(Some(c.name())), c.time / SECOND)))
        .collect();
    let first = Some(("first.sys".into(), 1));
    let second = Some(("second.sys".into(), 3));
    assert_eq!(earlier, [second, first.clone(), first, None]);
    assert_eq!(bench.all()[0].actor.module(), None, "it is nobody's now");
    // A module's own code says nothing of who was there before it.
    bench
        .assembler
        .image(Change::Unloaded, SECOND, "old.sys", NT, 0x4000);
    let mut event = fetch(NT + 0x3000);
    event.kind = Kind::NonexecSectionExecution as u16;
    bench.push(&event, None);
    assert_eq!(bench.all()[4].earlier(), None);
}

#[test]
fn what_was_loaded_after_an_event_is_not_its_actor() {
    let mut bench = Bench::new(8);
    let mut builder = Builder::new(9);
    let spec = ModuleSpec {
        name: "late.sys",
        base: NT,
        size: 0x2000,
        load_order: 4,
        load_time: 0,
        since: 9,
        initialized: true,
    };
    let text = Section {
        name: *b".text\0\0\0",
        rva: 0x1000,
        size: 0x1000,
        characteristics: 0x6000_0020,
    };
    builder.module(&spec, [text], |_| Some(0x100)).unwrap();
    bench.snapshot = builder.finish().unwrap();
    let mut event = fetch(NT + 0x1000);
    event.generation = 8;
    bench.push(&event, None);
    event.generation = 9;
    event.rip += 0x1000 - 4;
    event.gpa += 0x1000;
    event.gla = event.rip;
    bench.push(&event, None);
    let found = bench.all();
    assert_eq!(found[0].actor.module(), None);
    assert_eq!(found[1].actor.module(), Some(&b"late.sys"[..]));
}

#[test]
fn the_steps_of_one_write_become_one_pair_of_bytes() {
    let mut bench = Bench::new(8);
    bench.push(&hook(0x10, b"ab", b"AB"), None);
    assert_eq!(
        bench.push(&hook(0x12, b"cd", b"CD"), None),
        Outcome::Merged(1)
    );
    assert_eq!(
        bench.push(&hook(0x0e, b"xy", b"XY"), None),
        Outcome::Merged(1)
    );
    // The same bytes again say nothing new; others do, and stay apart.
    assert_eq!(
        bench.push(&hook(0x11, b"bc", b"BC"), None),
        Outcome::Merged(1)
    );
    assert_eq!(
        bench.push(&hook(0x12, b"CD", b"cd"), None),
        Outcome::Found(2)
    );
    assert_eq!(
        bench.push(&hook(0x14, b"EF", b"ef"), None),
        Outcome::Merged(2)
    );
    let finding = bench.all()[0];
    assert_eq!(finding.old().unwrap(), b"xyabcd");
    assert_eq!(finding.new_bytes().unwrap(), b"XYABCD");
    let restored = bench.all()[1];
    assert_eq!(restored.new_bytes().unwrap(), b"cdef");
    // Read by now: only the same is the same.
    assert_eq!(
        bench.push(&hook(0x13, b"D", b"D"), None),
        Outcome::Merged(1)
    );
    assert_eq!(bench.push(&hook(0x18, b"g", b"G"), None), Outcome::Found(3));
    assert_eq!(
        (finding.write_offset, finding.write_length, finding.count),
        (0x0e, 6, 4)
    );
}

#[test]
fn a_gap_is_filled_from_the_page_or_makes_another_finding() {
    let mut bench = Bench::new(8);
    let mut page = Box::new([0; 4096]);
    page[0x12..0x14].copy_from_slice(b"==");
    bench.push(&hook(0x10, b"ab", b"AB"), Some(&page));
    assert_eq!(
        bench.push(&hook(0x14, b"ef", b"EF"), None),
        Outcome::Merged(1)
    );
    assert_eq!(
        bench.push(&hook(0x100, b"z", b"Z"), None),
        Outcome::Found(2)
    );
    assert_eq!(
        bench.push(&hook(0x104, b"y", b"Y"), None),
        Outcome::Found(3)
    );
    let found = bench.all();
    assert_eq!(found[0].old().unwrap(), b"ab==ef");
    assert_eq!(found[0].new_bytes().unwrap(), b"AB==EF");
    assert_eq!(found.len(), 3);
}

#[test]
fn writes_join_at_their_limits() {
    let page = Box::new([9; 4096]);
    for (gap, expected) in [(16, Outcome::Merged(1)), (17, Outcome::Found(2))] {
        let mut bench = Bench::new(8);
        bench.push(&hook(0x10, b"a", b"A"), Some(&page));
        assert_eq!(bench.push(&hook(0x11 + gap, b"b", b"B"), None), expected);
    }
    // What only one of them knows, the whole does not know.
    let flags = FindingFlags::OLD | FindingFlags::NEW;
    for missing in [Flags::OLD, Flags::NEW] {
        let mut bench = Bench::new(8);
        bench.push(&hook(0x10, b"a", b"A"), None);
        let mut event = hook(0x11, b"b", b"B");
        event.flags &= !missing.bits();
        assert_eq!(bench.push(&event, None), Outcome::Merged(1));
        let finding = bench.all()[0];
        let known = finding.flags() & flags;
        let lost = if missing == Flags::OLD {
            FindingFlags::OLD
        } else {
            FindingFlags::NEW
        };
        assert_eq!(known, flags - lost);
    }
    // A write of which nothing is known is no part of another one, even if it
    // touches it.
    for at in [0x11, 0x12] {
        let mut bench = Bench::new(8);
        bench.push(&hook(0x10, b"ab", b"AB"), None);
        let mut blind = hook(at, b"b", b"B");
        blind.write_length = 0;
        assert_eq!(bench.push(&blind, None), Outcome::Found(2));
        assert_eq!(
            bench.push(&hook(0x12, b"c", b"C"), None),
            Outcome::Merged(1)
        );
        let unknown = bench.all()[1];
        assert_eq!(unknown.write_length, 0);
        assert_eq!((unknown.old(), unknown.new_bytes()), (None, None));
    }
}

#[test]
fn only_the_bytes_that_are_known_are_told() {
    for (lost, old, new) in [
        (Flags::OLD, None, Some(&b"A"[..])),
        (Flags::NEW, Some(&b"a"[..]), None),
    ] {
        let mut bench = Bench::new(8);
        let mut event = hook(0x10, b"a", b"A");
        event.flags &= !lost.bits();
        bench.push(&event, None);
        let finding = bench.all()[0];
        assert_eq!((finding.old(), finding.new_bytes()), (old, new));
    }
}

#[test]
fn a_flood_takes_no_more_memory() {
    let mut bench = Bench::new(6);
    let room = |bench: &Bench| {
        let assembler = &bench.assembler;
        [
            assembler.entries.capacity(),
            assembler.timeline.capacity(),
            assembler.unloaded.capacity(),
        ]
    };
    let before = room(&bench);
    assert!(before[0] >= 6 && before[1] >= TIMELINE_KEPT && before[2] >= UNLOADED_KEPT);
    for index in 0..200 {
        bench.push(&fetch(0xffff_9000_0000_0000 + (index << 12)), None);
        bench.all();
        let assembler = &mut bench.assembler;
        assembler.image(Change::Unloaded, SECOND, "x.sys", index << 12, 0x1000);
    }
    assert_eq!(room(&bench), before);
    assert_eq!(bench.assembler.timeline.len(), TIMELINE_KEPT);
    assert_eq!(bench.assembler.unloaded.len(), UNLOADED_KEPT);
}

#[test]
fn a_long_write_keeps_its_length_and_its_first_bytes() {
    let mut bench = Bench::new(8);
    for step in 0..16_u32 {
        let old = [u8::try_from(step).unwrap(); 8];
        bench.push(&hook(0x100 + 8 * step, &old, &[0x90; 8]), None);
    }
    let finding = bench.all()[0];
    assert_eq!((finding.count, finding.write_length), (16, 128));
    assert_eq!(finding.old().unwrap().len(), 64);
    assert_eq!(finding.old().unwrap()[56..], [7; 8]);
    // An event holds 32 of its 40 bytes: the rest is not made up.
    let mut other = hook(0x800, &[1; 40], &[2; 40]);
    other.rip += 1;
    let page = Box::new([9; 4096]);
    bench.push(&other, Some(&page));
    let mut next = hook(0x828, &[1; 4], &[2; 4]);
    next.rip += 1;
    assert_eq!(bench.push(&next, Some(&page)), Outcome::Merged(2));
    let finding = bench.all()[1];
    assert_eq!(
        (finding.write_length, finding.old().unwrap().len()),
        (44, 32)
    );
}

#[test]
fn a_full_queue_keeps_the_first_and_counts_the_rest() {
    let mut bench = Bench::new(2);
    for index in 0..5 {
        bench.push(&fetch(0xffff_9000_0000_0000 + (index << 12)), None);
    }
    bench.assembler.lost(7);
    let accounts = bench.assembler.accounts();
    assert_eq!(
        (accounts.produced, accounts.queue_full, accounts.ring_full),
        (12, 3, 7)
    );
    let found = bench.all();
    assert_eq!(found.iter().map(|f| f.seq).collect::<Vec<_>>(), [1, 2]);
    // What was read makes room, the oldest first.
    assert_eq!(bench.push(&fetch(1), None), Outcome::Found(3));
    let (head, found) = bench.wait(0, 0, WaitFlags::NO_WAIT).unwrap();
    assert_eq!(head.oldest_seq, 2);
    assert_eq!(found.iter().map(|f| f.seq).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn readers_take_as_many_as_they_ask_for() {
    let mut bench = Bench::new(8);
    assert!(bench.wait(0, 0, WaitFlags::empty()).is_none());
    for index in 0..5 {
        bench.push(&fetch(0xffff_9000_0000_0000 + (index << 12)), None);
    }
    let (head, found) = bench.wait(1, 2, WaitFlags::empty()).unwrap();
    assert_eq!(found.iter().map(|f| f.seq).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(
        (
            head.remaining,
            head.accounts.delivered,
            head.accounts.queued
        ),
        (2, 2, 3)
    );
    let mut small = [0; wait_reply_bytes(1) - 1];
    let wait = bench
        .assembler
        .wait(&WaitRequest::zeroed(), State::Monitoring, &mut small);
    assert_eq!(wait, Wait::TooSmall);
}

#[test]
fn evidence_is_kept_for_the_newest() {
    let mut bench = Bench::new(16);
    for index in 1..=5_u8 {
        let page = Box::new([index; 4096]);
        bench.push(&fetch(u64::from(index) << 12), Some(&page));
    }
    bench.push(&fetch(0x9000), None);
    let ask = |seq| {
        let mut request = EvidenceRequest::zeroed();
        request.seq = seq;
        let mut out = std::vec![0xee; size_of::<EvidenceReply>() + 8];
        let length = bench.assembler.evidence(&request, &mut out).unwrap();
        let (reply, _) = reply::<EvidenceReply>(&out[..length]).unwrap();
        assert_eq!((reply.seq, reply.reserved), (seq, 0));
        (reply.available == 1).then_some(reply.page[7])
    };
    assert_eq!(ask(0), None);
    assert_eq!(ask(1), None, "the fifth took its slot");
    assert_eq!(ask(2), Some(2));
    assert_eq!(ask(5), Some(5));
    assert_eq!(ask(6), None);
    assert_eq!(ask(u64::MAX), None);
    assert_eq!(
        bench
            .assembler
            .evidence(&EvidenceRequest::zeroed(), &mut [0; 4127]),
        None
    );
}

#[test]
fn a_loader_that_has_left_keeps_its_name() {
    let mut bench = Bench::new(8);
    let old = 100 * SECOND - SHORTLY - 1;
    let assembler = &mut bench.assembler;
    assembler.image(Change::Loaded, old, "old.sys", 0x1000, 0x1000);
    let loader = 0xffff_f800_3000_0000;
    assembler.image(Change::Loaded, 98 * SECOND, "iqvw64e.sys", loader, 0x5000);
    assembler.image(Change::Unloaded, 99 * SECOND, "iqvw64e.sys", loader, 0x5000);
    assembler.image(Change::Loaded, 101 * SECOND, "later.sys", 0x1000, 0x1000);
    let mut event = hook(0, b"a", b"b");
    event.rip = loader + 0x1234;
    event.actor_module = 3;
    bench.push(&event, None);
    event.rip += 0x1000;
    event.actor_module = crate::event::NO_INDEX;
    bench.push(&event, None);
    event.rip = 0x1234;
    event.actor_module = 3;
    bench.push(&event, None);
    let found = bench.all();
    assert_eq!(found[2].actor.module(), None, "it is loaded, not gone");
    assert_eq!(
        show(&found[0].actor),
        "iqvw64e.sys!- - +0x1234 0xfffff80030001234"
    );
    assert_eq!(found[1].actor.module(), None);
    let told: Vec<_> = found[0]
        .timeline()
        .map(|c| (text(Some(c.name())), c.change))
        .collect();
    assert_eq!(told, [("iqvw64e.sys".into(), 2), ("iqvw64e.sys".into(), 1)]);
}

#[derive(Clone, Debug)]
enum Step {
    Push {
        kind: u16,
        rip: u64,
        gpa: u64,
        offset: u32,
        length: u32,
        count: u32,
        page: bool,
        flags: u32,
    },
    Raw(Vec<u8>),
    Lost(u16),
    Wait {
        after: u64,
        max: u32,
        flags: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let push = (
        0..17u16,
        0..4u64,
        0..3u64,
        any::<u32>(),
        0..80u32,
        any::<u32>(),
        any::<bool>(),
        any::<u32>(),
    );
    prop_oneof![
        6 => push.prop_map(|(kind, rip, page, offset, length, count, with, flags)| Step::Push {
            kind, rip, gpa: page << 12, offset: offset % 200, length, count, page: with, flags,
        }),
        1 => prop::collection::vec(any::<u8>(), 512).prop_map(Step::Raw),
        1 => any::<u16>().prop_map(Step::Lost),
        2 => (0..40u64, 0..5u32, 0..8u32).prop_map(|(after, max, flags)| Step::Wait { after, max, flags }),
    ]
}

proptest! {
    #[test]
    fn the_accounts_balance_whatever_happens(steps in prop::collection::vec(step(), 0..120)) {
        use zerocopy::FromBytes;
        let mut bench = Bench::new(6);
        let page = Box::new([0x5a; 4096]);
        let mut handed = std::collections::BTreeSet::new();
        let mut lost = 0;
        let mut pushed = 0;
        for step in steps {
            match step {
                Step::Push { kind, rip, gpa, offset, length, count, page: with, flags } => {
                    let mut event = Event::new(Kind::Tamper);
                    event.kind = kind;
                    event.rip = rip;
                    event.gpa = gpa;
                    event.write_offset = offset;
                    event.write_length = length;
                    event.count = count;
                    event.flags = flags;
                    bench.push(&event, with.then_some(&*page));
                    pushed += u64::from(event.count.max(1));
                }
                Step::Raw(bytes) => {
                    let event = Event::read_from_bytes(&bytes).unwrap();
                    bench.push(&event, Some(&page));
                    pushed += u64::from(event.count.max(1));
                }
                Step::Lost(count) => {
                    bench.assembler.lost(u64::from(count));
                    lost += u64::from(count);
                }
                Step::Wait { after, max, flags } => {
                    let flags = WaitFlags::from_bits_retain(flags);
                    if let Some((_, found)) = bench.wait(after, max, flags) {
                        for finding in found {
                            prop_assert!(finding.seq > after);
                            if !flags.contains(WaitFlags::PEEK) {
                                handed.insert(finding.seq);
                            }
                        }
                    }
                }
            }
            let accounts = bench.assembler.accounts();
            prop_assert!(accounts.balance());
            prop_assert_eq!(accounts.delivered, handed.len() as u64);
            prop_assert_eq!(accounts.ring_full, lost);
            prop_assert_eq!(accounts.produced, pushed + lost);
            prop_assert_eq!(accounts.findings, accounts.delivered + accounts.queued);
        }
    }
}
