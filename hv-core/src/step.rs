//! The one-instruction step: state of a core that runs exactly one instruction
//! on its private path.
//!
//! The page (or pages: an instruction may need several) is read-only for every
//! other core meanwhile. Only the owning core touches this state, in root mode.

use core::cell::Cell;

use ept::addr::{Gpa, Gva};

use crate::monitor::Fault;

/// The most pages that one instruction is given both rights to.
pub const MAX_PAGES: usize = 2;

/// Bytes that are compared after a step over a page that is nobody's, from the
/// multiple of 8 at or before the write on: an instruction writes 64 at most, unless
/// it repeats. A multiple of 8.
pub const WINDOW: usize = 72;

/// A page that is being stepped over.
#[derive(Debug, Clone, Copy)]
pub struct StepPage {
    /// The page.
    pub gpa: Gpa,
    /// The instruction lies in this page.
    pub own_page: bool,
    /// Bounces to keep with the page.
    pub bounces: u8,
    /// The page was copied whole; else only [`WINDOW`] bytes from the write on.
    pub whole: bool,
    /// The write that led here.
    pub fault: Fault,
}

/// The step under way on a core; none when `count` is 0.
#[derive(Debug)]
pub struct StepState {
    /// Pages, the first `count` of which are valid.
    pub pages: [Cell<Option<StepPage>>; MAX_PAGES],
    /// Number of pages.
    pub count: Cell<usize>,
    /// Address of the last instruction that was found to be no simple store: it is
    /// stepped without another look. If it has become one meanwhile, stepping is
    /// right as well. 0 for none.
    pub no_store: Cell<u64>,
    /// The last write that was reported: its instruction, its physical and its linear
    /// address (AMD).
    pub written: Cell<Option<(u64, u64, Gva)>>,
    /// The shared tables have changed since the private path was built.
    pub stale: Cell<bool>,
    /// RFLAGS as the guest had them when the step began.
    pub flags: Cell<u64>,
    /// DR6 as the guest had it (AMD).
    pub dr6: Cell<u64>,
    /// The interrupt shadow as the guest had it (AMD).
    pub shadow: Cell<u64>,
    /// `IA32_DEBUGCTL` as the guest had it, when the step is made by the trap flag.
    pub debugctl: Cell<u64>,
}
