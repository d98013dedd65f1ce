//! Whose code is this, and whose code was written?
//!
//! Pure functions from facts of one VM exit and a registry [`View`] to a
//! verdict. Called in root mode, in the exit itself: constant time apart from
//! binary searches, no allocation, no lock, no panic. They own nothing.
//!
//! "RIP lies in a module" is only the first of four questions, because a rootkit
//! can sit in a driver's data, in a section that was thrown away, in a frame that
//! was slipped under a module's address, or in a module's altered code. Each
//! question is a function of its own; [`Questions`] says which are asked, and the
//! first that fails names the kind.

use crate::event::{Event, Flags, Kind, NO_INDEX};
use crate::registry::{AddressHit, FrameHit, View};

bitflags::bitflags! {
    /// Which questions are asked of a fetch.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Questions: u8 {
        /// Is the address in a module?
        const MODULE = 1 << 0;
        /// In a section that is executable and still live?
        const SECTION = 1 << 1;
        /// At the frame where the loader put it?
        const FRAME = 1 << 2;
        /// With the content that it was registered with?
        const CONTENT = 1 << 3;
    }
}

/// Whether a page still has the bytes that it was registered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Nobody looked.
    Unknown,
    /// It has.
    Same,
    /// It has not.
    Changed,
}

/// A fetch from a page without execute right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchFacts {
    /// Where the instruction starts.
    pub rip: u64,
    /// The linear address that faulted: in the next page if the instruction
    /// crosses into it. Equal to `rip` if the processor did not report one.
    pub gla: u64,
    /// The guest-physical address that faulted.
    pub gpa: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// IA-32e mode is active (EFER.LMA), whatever the code segment's width: a
    /// 32-bit segment in ring 0 is no way round the verdict.
    pub long_mode: bool,
    /// User and supervisor execute rights are separate.
    pub mbec: bool,
    /// The frame has been written since, while its module's address did not lead
    /// to it: it is not the module's any more.
    pub left: bool,
    /// What the caller knows of the page's content.
    pub content: Content,
    /// What to ask.
    pub questions: Questions,
}

/// What to do about a fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchVerdict {
    /// Grant silently.
    Allow,
    /// Record an event of this kind, then grant.
    Report(Kind),
}

/// Cores start in real mode, from a page below 1 MiB (Intel SDM,
/// "MP Initialization"); nothing else runs there without paging.
const START_UP_END: u64 = 0x10_0000;

/// Judges a fetch.
#[must_use]
pub fn fetch(view: &View<'_>, facts: &FetchFacts) -> FetchVerdict {
    // Ring 3 is not our business: with MBEC it never faults, without it the
    // gap is shown in the status instead of guessed at here.
    let user = facts.cpl == 3;
    let start_up = !facts.long_mode && facts.gpa < START_UP_END;
    if user || start_up {
        return FetchVerdict::Allow;
    }
    let at_rip = view.by_address(facts.rip);
    let at_gla = if facts.gla == facts.rip {
        at_rip
    } else {
        view.by_address(facts.gla)
    };
    match first_failure(view, facts, at_rip, at_gla) {
        Some(kind) => FetchVerdict::Report(kind),
        None => FetchVerdict::Allow,
    }
}

fn first_failure(
    view: &View<'_>,
    facts: &FetchFacts,
    at_rip: Option<AddressHit>,
    at_gla: Option<AddressHit>,
) -> Option<Kind> {
    let asked = |question| facts.questions.contains(question);
    let module = || not_in_module(at_rip).or(not_in_module(at_gla));
    let section = || {
        not_live_code(at_rip)
            .or(not_live_code(at_gla))
            .or(discarded_frame(view, at_gla, facts))
    };
    let frame = || wrong_frame(view, at_gla, facts.gpa);
    let content = || wrong_content(facts.content);
    asked(Questions::MODULE)
        .then(module)
        .flatten()
        .or_else(|| asked(Questions::SECTION).then(section).flatten())
        .or_else(|| asked(Questions::FRAME).then(frame).flatten())
        .or_else(|| asked(Questions::CONTENT).then(content).flatten())
}

fn not_in_module(hit: Option<AddressHit>) -> Option<Kind> {
    hit.is_none().then_some(Kind::UnbackedExecution)
}

fn not_live_code(hit: Option<AddressHit>) -> Option<Kind> {
    let hit = hit?;
    if !hit.executable {
        Some(Kind::NonexecSectionExecution)
    } else if !hit.live {
        Some(Kind::DiscardedSectionExecution)
    } else {
        None
    }
}

/// The loader frees a discardable section when the entry point has returned, and
/// the registry learns of that a little later. Meanwhile the section is live
/// only in the frames that it was loaded into, as long as nobody else has used
/// them: anything else at its address was put there by somebody.
fn discarded_frame(view: &View<'_>, hit: Option<AddressHit>, facts: &FetchFacts) -> Option<Kind> {
    let hit = hit.filter(|hit| hit.discardable)?;
    let loaded = view.frame_of(hit.section?, hit.offset)?;
    (facts.left || loaded != facts.gpa >> 12).then_some(Kind::DiscardedSectionExecution)
}

/// A page that the loader had not made resident when the snapshot was built has
/// no frame there: nothing is known against it. A frame that belongs to another
/// page of a module is known to be wrong.
fn wrong_frame(view: &View<'_>, hit: Option<AddressHit>, gpa: u64) -> Option<Kind> {
    let hit = hit?;
    let pfn = gpa >> 12;
    let known = view.frame_of(hit.section?, hit.offset);
    let right = match known {
        Some(expected) => expected == pfn,
        None => view.by_frame(pfn).is_none(),
    };
    (!right).then_some(Kind::RemappedExecution)
}

fn wrong_content(content: Content) -> Option<Kind> {
    (content == Content::Changed).then_some(Kind::ModifiedCodeExecution)
}

/// A write to a page without write right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteFacts {
    /// The instruction that writes.
    pub rip: u64,
    /// The guest-physical address that faulted.
    pub gpa: u64,
    /// The instruction lies in the page that it writes.
    pub own_page: bool,
}

/// What was written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteVerdict {
    /// A page that is no module's code (any more): grant silently.
    NotCode,
    /// Live executable code of a module.
    ModuleCode(FrameHit),
    /// A page in no module, by an instruction in that page.
    OwnPage,
}

impl WriteVerdict {
    /// The kind to report, if any.
    #[must_use]
    pub const fn kind(self) -> Option<Kind> {
        match self {
            WriteVerdict::NotCode => None,
            WriteVerdict::ModuleCode(_) => Some(Kind::ModuleCodeWrite),
            WriteVerdict::OwnPage => Some(Kind::SelfModifyingPage),
        }
    }
}

/// Judges a write, by frame: the address that the writer used may be any alias.
#[must_use]
pub fn write(view: &View<'_>, facts: &WriteFacts) -> WriteVerdict {
    match view.by_frame(facts.gpa >> 12) {
        Some(hit) => WriteVerdict::ModuleCode(hit),
        None if facts.own_page => WriteVerdict::OwnPage,
        None => WriteVerdict::NotCode,
    }
}

/// Whether an event still means what root mode took it for, now that `view` is
/// the fresh list of modules.
///
/// Unloads are noticed late. Until then root mode knows the frames of a module
/// that has gone as that module's code, and the system, clearing them or handing
/// them on, seems to write to it. Generations and the place tell:
///
/// * the frame is still that page of a module that the event's own snapshot
///   knew: the write was one to its code;
/// * it is not, and the module's address did not lead to it any more when the
///   write was seen: the module had been unmapped, or the page had moved;
/// * it is not, but the address did lead there: the module was written to and
///   unloaded afterwards. Only if another module lies in that frame now, and the
///   kernel itself wrote, was it that module's loading.
#[must_use]
pub fn still_holds(view: &View<'_>, event: &Event) -> bool {
    if event.kind() != Some(Kind::ModuleCodeWrite) {
        return true;
    }
    let known = |module| {
        view.module(module)
            .is_some_and(|m| m.since <= event.generation)
    };
    let owner = view.by_frame(event.gpa >> 12);
    let same = |hit: &FrameHit| known(hit.module) && hit.rva == event.victim_rva & !0xfff;
    if owner.as_ref().is_some_and(same) {
        return true;
    }
    let replaced = owner.is_some_and(|hit| !known(hit.module));
    event.flags().contains(Flags::IN_PLACE) && !(replaced && is_kernel(view, event.rip))
}

/// Whether an address lies in the kernel's own image: the first one loaded.
fn is_kernel(view: &View<'_>, address: u64) -> bool {
    let hit = view.by_address(address);
    let module = hit.and_then(|hit| view.module(hit.module));
    module.is_some_and(|module| module.load_order == 0)
}

/// Where the module that a frame belongs to has that frame (linear), with the
/// offset of a physical address in it; what root mode looks up to see whether the
/// module is mapped.
#[must_use]
pub fn home(view: &View<'_>, gpa: u64) -> Option<u64> {
    let hit = view.by_frame(gpa >> 12)?;
    let base = view.module(hit.module)?.base;
    Some(base.wrapping_add(u64::from(hit.rva)) | gpa & 0xfff)
}

/// Whether a frame is of a section that its file marks writable and executable.
#[must_use]
pub fn is_writable_code(view: &View<'_>, gpa: u64) -> bool {
    let section = view
        .by_frame(gpa >> 12)
        .and_then(|hit| view.section(hit.section));
    section.is_some_and(|section| section.writable())
}

/// Puts the registry's hints about actor (by RIP) and victim (by frame for a
/// write, by linear address otherwise) and the snapshot's generation into an
/// event.
pub fn annotate(view: &View<'_>, event: &mut Event) {
    event.generation = view.generation();
    let actor = view.by_address(event.rip);
    event.actor_module = actor.map_or(NO_INDEX, |hit| hit.module);
    event.actor_section = actor.and_then(|hit| hit.section).unwrap_or(NO_INDEX);
    if let Some(va) = home(view, event.gpa) {
        event.victim_va = va;
        event.mark(Flags::VICTIM_VA);
    }
    let in_page = u32::try_from(event.gpa & 0xfff).unwrap_or(0);
    let by_frame = view.by_frame(event.gpa >> 12);
    let victim = by_frame
        .map(|hit| (hit.module, hit.section, hit.rva | in_page))
        .or_else(|| {
            let known = event.flags().contains(Flags::GLA);
            let hit = view.by_address(event.gla).filter(|_| known)?;
            Some((hit.module, hit.section.unwrap_or(NO_INDEX), hit.offset))
        });
    let (module, section, rva) = victim.unwrap_or((NO_INDEX, NO_INDEX, 0));
    event.victim_module = module;
    event.victim_section = section;
    event.victim_rva = rva;
}

#[cfg(all(test, feature = "alloc"))]
mod tests;
