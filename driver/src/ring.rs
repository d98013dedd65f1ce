//! One core's ring of events, from root mode to the driver.
//!
//! One writer (root mode on that core, under the transition lock), one reader
//! (the drain). The ring lies in memory that the guest can write, so the writer
//! believes none of it: its own position and what it wrote are in its
//! [`Ledger`], in private memory, and the reader's position only says how much
//! room there is, at most all.
//!
//! A full ring keeps what it holds, because the first events tell how an attack
//! began, and counts the rest. An event whose like still waits takes no place:
//! it is added to the waiting one's count, so that a storm of one kind leaves
//! room for others. The count of a place is closed by the reader when it takes
//! the event; the writer then writes a new one.
//!
//! `tests/models` runs all interleavings of this file.

use super::sync::{AtomicU32, AtomicU64, Cell, Ordering};

/// The reader has taken the event: its count rises no more.
const CLOSED: u32 = u32::MAX;

/// What makes two events alike, in two words; the first is never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key(pub(crate) u64, pub(crate) u64);

/// The ring; all zeros is an empty one.
#[cfg_attr(not(test), repr(C, align(4096)))]
pub(crate) struct Ring<T, const N: usize> {
    head: AtomicU64,
    tail: AtomicU64,
    lost: AtomicU64,
    /// What the reader has been told of `lost`.
    told: AtomicU64,
    repeats: [AtomicU32; N],
    slots: [Cell<T>; N],
}

/// The writer's own memory; all zeros belongs to an empty ring.
#[repr(C)]
pub(crate) struct Ledger<const N: usize> {
    head: AtomicU64,
    keys: [[AtomicU64; 2]; N],
}

#[cfg(test)]
impl<T: Default, const N: usize> Ring<T, N> {
    /// An empty ring.
    pub(crate) fn new() -> Self {
        Self {
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            told: AtomicU64::new(0),
            repeats: core::array::from_fn(|_| AtomicU32::new(0)),
            slots: core::array::from_fn(|_| Cell::new(T::default())),
        }
    }
}

#[cfg(test)]
impl<const N: usize> Ledger<N> {
    /// The ledger of an empty ring.
    pub(crate) fn new() -> Self {
        Self {
            head: AtomicU64::new(0),
            keys: core::array::from_fn(|_| [AtomicU64::new(0), AtomicU64::new(0)]),
        }
    }
}

impl<T: Copy, const N: usize> Ring<T, N> {
    /// Writer: adds an event to the count of one like it that still waits.
    pub(crate) fn repeat(&self, ledger: &Ledger<N>, key: Key) -> bool {
        let head = ledger.head.load(Ordering::Relaxed);
        let waiting = head.wrapping_sub(self.tail.load(Ordering::Acquire));
        // The newest first: an older one of its like was closed before.
        let found = (1..=waiting.min(N as u64)).find_map(|back| {
            let (slot, repeats) = self.at(head.wrapping_sub(back))?;
            (ledger.key(slot) == Some(key)).then_some(repeats)
        });
        let Some(repeats) = found else {
            return false;
        };
        let more = |count: u32| (count < CLOSED - 1).then(|| count + 1);
        let seen = repeats.load(Ordering::Acquire);
        let Some(next) = more(seen) else {
            return false;
        };
        // Nobody but the reader changes it meanwhile, and it closes it.
        repeats
            .compare_exchange(seen, next, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Writer: appends the event that `make` writes if there is room, else counts
    /// it as lost.
    pub(crate) fn push(&self, ledger: &Ledger<N>, key: Key, make: impl FnOnce() -> T) -> bool {
        let head = ledger.head.load(Ordering::Relaxed);
        let tail = self.tail.load(Ordering::Acquire);
        if head.wrapping_sub(tail) >= N as u64 {
            self.lost.fetch_add(1, Ordering::Release);
            return false;
        }
        let index = Self::index(head);
        let (Some((slot, repeats)), Some(place)) = (self.at(head), self.slots.get(index)) else {
            return false;
        };
        ledger.set_key(slot, key);
        let event = make();
        // SAFETY: places from the reader's position on, less than N of them, are
        // the writer's.
        place.with_mut(|place| unsafe { place.write(event) });
        repeats.store(0, Ordering::Relaxed);
        let next = head.wrapping_add(1);
        ledger.head.store(next, Ordering::Relaxed);
        self.head.store(next, Ordering::Release);
        true
    }

    /// Reader: whether there is an event.
    pub(crate) fn waiting(&self) -> bool {
        self.head.load(Ordering::Acquire) != self.tail.load(Ordering::Relaxed)
    }

    /// Reader: takes the oldest event, and how many more like it there were.
    pub(crate) fn pop(&self) -> Option<(T, u32)> {
        let tail = self.tail.load(Ordering::Relaxed);
        if self.head.load(Ordering::Acquire) == tail {
            return None;
        }
        let (_, repeats) = self.at(tail)?;
        let place = self.slots.get(Self::index(tail))?;
        // SAFETY: places before the writer's position are the reader's.
        let event = place.with(|place| unsafe { place.read() });
        let more = repeats.swap(CLOSED, Ordering::AcqRel);
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
        Some((event, if more == CLOSED { 0 } else { more }))
    }

    /// Reader: events lost since it last asked.
    pub(crate) fn lost(&self) -> u64 {
        let lost = self.lost.load(Ordering::Acquire);
        lost.wrapping_sub(self.told.swap(lost, Ordering::Relaxed))
    }

    fn at(&self, position: u64) -> Option<(usize, &AtomicU32)> {
        let index = Self::index(position);
        Some((index, self.repeats.get(index)?))
    }

    /// The place of a position; below N.
    #[expect(clippy::cast_possible_truncation, reason = "below N")]
    const fn index(position: u64) -> usize {
        (position % N as u64) as usize
    }
}

impl<const N: usize> Ledger<N> {
    fn key(&self, slot: usize) -> Option<Key> {
        let [first, second] = self.keys.get(slot)?;
        Some(Key(
            first.load(Ordering::Relaxed),
            second.load(Ordering::Relaxed),
        ))
    }

    fn set_key(&self, slot: usize, key: Key) {
        if let Some([first, second]) = self.keys.get(slot) {
            first.store(key.0, Ordering::Relaxed);
            second.store(key.1, Ordering::Relaxed);
        }
    }
}
