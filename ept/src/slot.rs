//! One 4 KB leaf, held for a turn of its state on the exit path.
//!
//! [`Space::find`] gives a slot in about thirty instructions; a turn from one
//! state to another, [`Slot::close`] and [`Turn::open`], takes about as many.
//! Splits, fills, large leaves and hidden pages are not for it: they go through
//! the space's other methods.
//!
//! **Owner and locking.** A slot holds the entry as it was found. It may be
//! found and read without a lock; what is to be changed is found, and changed,
//! in one hold of the transition lock.

use crate::addr::{Gpa, table_index};
use crate::entry::{Access, Decoded, NestedEntry, Soft};
use crate::flush::Flush;
use crate::space::{Note, Space};
use crate::table::Table;
use crate::wx::PageState;

/// A 4 KB leaf of a [`Space`] that maps the frame its address names.
#[derive(Debug)]
pub struct Slot<'s, 'a, F: NestedEntry> {
    space: &'s Space<'a, F>,
    table: &'a Table,
    note: Note,
    raw: u64,
}

impl<'s, 'a, F: NestedEntry> Slot<'s, 'a, F> {
    /// `None` if the entry for `gpa` in `table` is absent or hides the frame.
    #[inline]
    pub(crate) fn new(space: &'s Space<'a, F>, table: &'a Table, gpa: Gpa) -> Option<Self> {
        let raw = table.load(table_index(gpa, 1));
        let note = Note::leaf(gpa);
        let format = space.format();
        format.maps_identically(raw, note.bits()).then_some(Self {
            space,
            table,
            note,
            raw,
        })
    }

    /// First address of the page.
    #[must_use]
    #[inline]
    pub fn gpa(&self) -> Gpa {
        self.note.page()
    }

    /// State of the page.
    #[must_use]
    #[inline]
    pub fn state(&self) -> PageState {
        self.space.format().state(self.raw)
    }

    /// The monitor's note.
    #[must_use]
    #[inline]
    pub fn soft(&self) -> Soft {
        self.space.format().soft(self.raw)
    }

    /// Rights of the page.
    #[must_use]
    pub fn access(&self) -> Access {
        match self.space.format().decode(self.raw, 1) {
            Decoded::Leaf { access, .. } => access,
            Decoded::Absent | Decoded::Table(_) => Access::empty(),
        }
    }

    /// Gives the page the rights of `state`, and this counter; frame, type and
    /// the rest of the note stay. One store.
    #[inline]
    pub fn exchange(&mut self, state: PageState, bounces: u8) -> Flush {
        let old = self.raw;
        let new = self.space.format().restate(old, state, bounces);
        if new == old {
            return Flush::None;
        }
        let was = self.state();
        self.store(new);
        self.space.turned(was, state);
        self.space.note(self.note);
        self.flush(old)
    }

    /// The first half of a turn: the page becomes [`PageState::Stepping`],
    /// read-only for everyone. The flush is carried out before anything else.
    #[inline]
    pub fn close(mut self) -> (Turn<'s, 'a, F>, Flush) {
        let (old, from) = (self.raw, self.state());
        let bounces = self.soft().bounces;
        let new = self
            .space
            .format()
            .restate(old, PageState::Stepping, bounces);
        self.store(new);
        self.space.note(self.note);
        let flush = self.flush(old);
        (Turn { slot: self, from }, flush)
    }

    #[inline]
    fn store(&mut self, new: u64) {
        let index = table_index(self.note.page(), 1);
        debug_assert_eq!(self.table.load(index), self.raw, "a slot that was kept");
        self.table.store(index, new);
        self.raw = new;
    }

    /// What the change from `old` asks of the cores.
    #[inline]
    fn flush(&self, old: u64) -> Flush {
        let format = self.space.format();
        let (was, is) = (format.rights(old), format.rights(self.raw));
        if was & !is != 0 {
            Flush::Revoked
        } else if was == is {
            Flush::None
        } else {
            Flush::Relaxed
        }
    }

    /// The shared tables.
    #[inline]
    pub(crate) fn space(&self) -> &'s Space<'a, F> {
        self.space
    }

    /// The table that holds the entry.
    #[inline]
    pub(crate) fn table(&self) -> &'a Table {
        self.table
    }

    /// The entry's name in the journal.
    #[inline]
    pub(crate) fn note(&self) -> Note {
        self.note
    }

    /// The entry as it was found, or stored last.
    #[inline]
    pub(crate) fn raw(&self) -> u64 {
        self.raw
    }
}

/// A page that is closed for everyone, until the same hold of the lock opens it
/// again. No private path is built meanwhile: for one that is to be, the turn
/// is ended by [`Turn::hold`].
#[must_use = "the page is read-only until it is opened"]
#[derive(Debug)]
pub struct Turn<'s, 'a, F: NestedEntry> {
    slot: Slot<'s, 'a, F>,
    from: PageState,
}

impl<'s, 'a, F: NestedEntry> Turn<'s, 'a, F> {
    /// The second half of a turn: the page gets the rights of `state`, and this
    /// counter. Only adds rights, so nothing is to be flushed.
    #[inline]
    pub fn open(mut self, state: PageState, bounces: u8) {
        let new = self
            .slot
            .space
            .format()
            .restate(self.slot.raw, state, bounces);
        self.slot.store(new);
        self.slot.space.turned(self.from, state);
    }

    /// Leaves the page closed, for a step on a private path.
    #[must_use = "the page stays closed until its slot opens it"]
    #[inline]
    pub fn hold(self) -> Slot<'s, 'a, F> {
        self.slot.space.turned(self.from, PageState::Stepping);
        self.slot
    }
}
