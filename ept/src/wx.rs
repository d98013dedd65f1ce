//! The rules of W xor X, as a pure function.
//!
//! A page has one state for the whole machine. A violation asks for what its
//! state does not give; the answer is a [`Plan`]: an ordered list of steps that
//! the hypervisor carries out under the transition lock and that it may not
//! reorder. Two orders are the heart of it:
//!
//! * *Fetch from a writable page*: revoke the right to write on all cores and
//!   have that acknowledged **before** looking. Looking first would let another
//!   core write between the look and the grant.
//! * *Write to an executable page*: revoke the right to execute on all cores
//!   and have that acknowledged **before** granting the write. Otherwise another
//!   core would run the new bytes unseen.
//!
//! Between revoke and grant the page is in [`PageState::Stepping`], read-only
//! for everyone: whoever faults on it meanwhile waits, serving requests.
//!
//! Where one bit of the leaf says whose code a page may be (AMD's guest mode execute
//! trap), a page that is the kernel's may refuse user mode. Then it is not a right
//! that is missing, and the page is turned for the user: [`on_user`].
//!
//! Pure; called in root mode. The state itself lives in the leaf
//! ([`crate::entry::Soft`]).

use crate::entry::Access;

/// State of a 4 KB page, the same for all cores. Two bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PageState {
    /// RW-: data, the state of everything at start.
    #[default]
    Writable = 0,
    /// R-X: code that was looked at and has not been written since.
    Executable = 1,
    /// R--: held by one core, which is changing its state or runs one
    /// instruction on a private path with both rights.
    Stepping = 2,
    /// RWX: not watched, a counted loss of coverage.
    Exempt = 3,
}

impl PageState {
    /// The state in the two lowest bits.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Writable,
            1 => Self::Executable,
            2 => Self::Stepping,
            _ => Self::Exempt,
        }
    }

    /// The state as two bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self as u8
    }

    /// The rights that the state gives in the shared tables.
    /// `separate_user` says that user-mode fetches are a right of their own
    /// (MBEC, GMET); those are never our concern and stay allowed, where the format
    /// can say so ([`crate::entry::NestedEntry::rights_of`]).
    #[must_use]
    pub const fn access(self, separate_user: bool) -> Access {
        let user = if separate_user {
            Access::EXEC_USER
        } else {
            Access::empty()
        };
        match self {
            Self::Writable => Access::RW.union(user),
            Self::Executable => Access::READ
                .union(Access::EXEC_KERNEL)
                .union(Access::EXEC_USER),
            Self::Stepping => Access::READ,
            Self::Exempt => Access::all(),
        }
    }
}

/// From this many bounces on, a write to an executable page is stepped instead
/// of turning the page.
pub const STEP_AFTER: u8 = 8;
/// From this many bounces on, the page is turned once and is stepped again soon
/// after. A page that is code and data at once turns at one write in
/// `TURN_AFTER - STEP_AFTER + 1`, so it slows itself, not the machine; and a frame
/// that used to be one, and holds data now, becomes data after as many writes.
pub const TURN_AFTER: u8 = 24;

/// One action of a plan. Each is complete before the next begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Store the rights of this state in the shared tables.
    Revoke(PageState),
    /// Carry out the flush token of the revoke: every core has invalidated and
    /// said so.
    Acknowledge,
    /// Keep the bytes that are about to be overwritten.
    Capture,
    /// Read the page: content, hash, owner.
    Inspect,
    /// Give the access all rights on this core alone, for exactly one
    /// instruction, on the private path; then drop the path.
    StepPrivately,
    /// Compare the page with what was captured.
    Compare,
    /// Ask the monitor for its verdict, and record it.
    Decide,
    /// Store the rights of this state in the shared tables. What a grant takes
    /// away was revoked and acknowledged before.
    Grant(PageState),
}

/// The answer to a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The state already allows the access: another core was faster. Resume.
    Retry,
    /// Another core holds the page. Serve requests, then look again.
    Wait,
    /// Carry out the steps in order; the grant stores the new counter.
    Run {
        /// What to do, in this order.
        steps: &'static [Step],
        /// What becomes of the page's bounce counter.
        count: Count,
    },
}

/// What becomes of a page's bounce counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// It stays.
    Keep,
    /// One more, saturating.
    Add,
    /// [`STEP_AFTER`].
    Settle,
    /// Zero.
    Clear,
}

impl Count {
    /// The counter afterwards.
    #[must_use]
    pub const fn apply(self, bounces: u8) -> u8 {
        match self {
            Self::Keep => bounces,
            Self::Add => bounces.saturating_add(1),
            Self::Settle => STEP_AFTER,
            Self::Clear => 0,
        }
    }
}

/// What is known about a write violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFacts {
    /// The processor's own update of an accessed or dirty bit during a walk of
    /// the guest's page tables: no instruction wrote this.
    pub page_walk: bool,
    /// The writing instruction lies, at least partly, in the page it writes.
    pub same_page: bool,
    /// This core has a private path and a means to stop after one instruction.
    pub can_step: bool,
    /// The page's counter.
    pub bounces: u8,
}

use PageState::{Executable, Exempt, Stepping, Writable};
use Step::{Acknowledge, Capture, Compare, Decide, Grant, Inspect, Revoke, StepPrivately};

const ADMIT_CODE: &[Step] = &[
    Revoke(Stepping),
    Acknowledge,
    Inspect,
    Decide,
    Grant(Executable),
];
const ADMIT_WALK: &[Step] = &[Revoke(Stepping), Acknowledge, Grant(Writable)];
const ADMIT_WRITE: &[Step] = &[
    Revoke(Stepping),
    Acknowledge,
    Capture,
    Decide,
    Grant(Writable),
];
const ADMIT_USER: &[Step] = ADMIT_WALK;
const STEP_WRITE: &[Step] = &[
    Revoke(Stepping),
    Acknowledge,
    Capture,
    StepPrivately,
    Compare,
    Decide,
    Grant(Executable),
];
const GIVE_UP: &[Step] = &[
    Revoke(Stepping),
    Acknowledge,
    Capture,
    Decide,
    Grant(Exempt),
];

/// A kernel-mode instruction fetch was refused. Without separate user rights, a
/// user-mode fetch comes here too; its verdict is "none".
#[must_use]
pub const fn on_fetch(state: PageState) -> Plan {
    match state {
        Writable => Plan::Run {
            steps: ADMIT_CODE,
            count: Count::Keep,
        },
        Executable | Exempt => Plan::Retry,
        Stepping => Plan::Wait,
    }
}

/// A write was refused.
#[must_use]
pub const fn on_write(state: PageState, facts: WriteFacts) -> Plan {
    match state {
        Writable | Exempt => return Plan::Retry,
        Stepping => return Plan::Wait,
        Executable => {}
    }
    let (steps, count) = if facts.page_walk {
        (ADMIT_WALK, Count::Keep)
    } else if facts.same_page {
        // Only both rights at once let the instruction retire.
        let steps = if facts.can_step { STEP_WRITE } else { GIVE_UP };
        (steps, Count::Keep)
    } else if facts.bounces >= TURN_AFTER {
        (ADMIT_WRITE, Count::Settle)
    } else if facts.can_step && facts.bounces >= STEP_AFTER {
        (STEP_WRITE, Count::Add)
    } else {
        (ADMIT_WRITE, Count::Add)
    };
    Plan::Run { steps, count }
}

/// Whether a page of this state may refuse an access with user rights for no other
/// reason than that it is the kernel's (GMET). `stored` says that an instruction
/// wanted to write: code refuses that to everybody, and [`on_write`] answers it.
#[must_use]
pub const fn is_closed_to_user(state: PageState, stored: bool) -> bool {
    match state {
        Writable | Stepping => false,
        Executable => !stored,
        Exempt => true,
    }
}

/// User mode, or a walk of the guest's page tables, was refused by a page that is
/// the kernel's (see [`is_closed_to_user`]): it becomes a page of data, which user
/// mode may execute and the kernel may not. The kernel's next fetch is looked at
/// again, so the page gets no second right on the way. `step` asks to let the one
/// instruction pass and to leave the page what it is: a module's code stays
/// watched for every write.
#[must_use]
pub const fn on_user(state: PageState, step: bool) -> Plan {
    match state {
        Executable if step => Plan::Run {
            steps: STEP_WRITE,
            count: Count::Keep,
        },
        Executable | Exempt => Plan::Run {
            steps: ADMIT_USER,
            count: Count::Keep,
        },
        Writable => Plan::Retry,
        Stepping => Plan::Wait,
    }
}

/// The rights that a stepped instruction gets to a page on its private path.
/// `own_page` says that it lies in that page, `user` that it is one of user mode
/// whose page must be the user's (GMET).
#[must_use]
pub const fn stepped_access(own_page: bool, user: bool) -> Access {
    match (own_page, user) {
        (false, _) => Access::RW,
        (true, false) => Access::all(),
        (true, true) => Access::RW.union(Access::EXEC_USER),
    }
}

/// An exempt page is to be watched again (from a timer or a request): it is
/// looked at like new code and starts with a clean counter.
#[must_use]
pub const fn on_review(state: PageState) -> Plan {
    match state {
        Exempt => Plan::Run {
            steps: ADMIT_CODE,
            count: Count::Clear,
        },
        Stepping => Plan::Wait,
        Writable | Executable => Plan::Retry,
    }
}

/// The counter after a quiet period: halved, so that an old quarrel is
/// forgotten and a lasting one is not.
#[must_use]
pub const fn cooled(bounces: u8) -> u8 {
    bounces >> 1
}
