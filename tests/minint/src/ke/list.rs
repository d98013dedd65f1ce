//! Doubly linked lists through `LIST_ENTRY`, as drivers see them.
//!
//! A list is guarded by whatever lock its owner names; the links are `Cell`s, so
//! that a head inside a driver's object is read through a shared reference.

use core::cell::Cell;
use core::ptr;

/// `LIST_ENTRY`.
#[repr(C)]
#[derive(Debug)]
pub struct List {
    next: Cell<*const List>,
    previous: Cell<*const List>,
}

// SAFETY: lists are only touched under the lock that their owner names.
unsafe impl Sync for List {}

fn at<'a>(entry: *const List) -> &'a List {
    // SAFETY: links of a list lead to live entries while its lock is held.
    unsafe { &*entry }
}

impl List {
    /// An entry on no list.
    pub const fn new() -> Self {
        Self {
            next: Cell::new(ptr::null()),
            previous: Cell::new(ptr::null()),
        }
    }

    /// Makes this the head of an empty list.
    pub fn initialize(&self) {
        self.next.set(self);
        self.previous.set(self);
    }

    /// Whether the entry was initialised or inserted ever and not removed.
    pub fn is_linked(&self) -> bool {
        !self.next.get().is_null()
    }

    /// Whether the list of this head is empty.
    pub fn is_empty(&self) -> bool {
        self.next.get().is_null() || ptr::eq(self.next.get(), self)
    }

    /// First entry of the list of this head.
    pub fn first(&self) -> Option<*const List> {
        (!self.is_empty()).then(|| self.next.get())
    }

    /// Last entry of the list of this head.
    pub fn last(&self) -> Option<*const List> {
        (!self.is_empty()).then(|| self.previous.get())
    }

    /// The entry after `entry` on the list of this head.
    pub fn after(&self, entry: *const List) -> Option<*const List> {
        let next = at(entry).next.get();
        (!ptr::eq(next, self)).then_some(next)
    }

    /// Inserts at the end.
    pub fn push_back(&self, entry: &List) {
        let last = self.previous.get();
        entry.next.set(self);
        entry.previous.set(last);
        at(last).next.set(entry);
        self.previous.set(entry);
    }

    /// Inserts at the start.
    pub fn push_front(&self, entry: &List) {
        let first = self.next.get();
        entry.next.set(first);
        entry.previous.set(self);
        at(first).previous.set(entry);
        self.next.set(entry);
    }

    /// Takes this entry off its list.
    pub fn remove(&self) {
        let (next, previous) = (self.next.get(), self.previous.get());
        crate::require!(
            ptr::eq(at(next).previous.get(), self) && ptr::eq(at(previous).next.get(), self),
            "list",
            "the list around {:p} is corrupt",
            self
        );
        at(previous).next.set(next);
        at(next).previous.set(previous);
        self.next.set(ptr::null());
        self.previous.set(ptr::null());
    }
}

impl Default for List {
    fn default() -> Self {
        Self::new()
    }
}

/// The structure that contains the entry at `offset`.
pub(crate) fn container<T>(entry: *const List, offset: usize) -> *const T {
    entry.wrapping_byte_sub(offset).cast()
}
