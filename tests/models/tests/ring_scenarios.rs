use super::evidence::{EvidencePage, States};
use super::ring::{Key, Ledger, Ring};
use super::sync::Cell;
use loom::sync::Arc;
use loom::thread;

/// An event: its number, and the number of its page.
#[derive(Clone, Copy, Default, Debug)]
struct Event {
    number: u64,
    page: Option<u32>,
}

fn explore(scenario: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(scenario);
}

/// What the writer did with its events: kept as they are, or added to one that
/// waited.
fn write(ring: &Ring<Event, 2>, ledger: &Ledger<2>, keys: &[u64]) -> u64 {
    let mut told = 0;
    for (number, key) in (1..).zip(keys) {
        let key = Key(*key, 7);
        let make = || Event { number, page: None };
        if ring.repeat(ledger, key) || ring.push(ledger, key, make) {
            told += 1;
        }
    }
    told
}

/// Takes what there is. Numbers rise; an event stands for those of its key only.
fn read(ring: &Ring<Event, 2>, last: &mut u64) -> u64 {
    let mut taken = 0;
    while let Some((event, more)) = ring.pop() {
        assert!(event.number > *last, "in order, each once");
        *last = event.number;
        taken += 1 + u64::from(more);
    }
    taken
}

pub(super) fn writer_and_reader() {
    for keys in [&[1, 2, 3, 4][..], &[1, 1, 2, 2, 2], &[1, 2, 1, 1]] {
        explore(move || {
            let ring = Arc::new(Ring::<Event, 2>::new());
            let writer = {
                let ring = Arc::clone(&ring);
                thread::spawn(move || write(&ring, &Ledger::new(), keys))
            };
            let mut newest = 0;
            let mut taken = read(&ring, &mut newest);
            let mut lost = ring.lost();
            let told = writer.join().unwrap();
            taken += read(&ring, &mut newest);
            lost += ring.lost();
            assert!(!ring.waiting());
            assert_eq!(taken, told, "all that was kept");
            assert_eq!(taken + lost, keys.len() as u64, "nothing else is missing");
        });
    }
}

/// No race: a place that has been used counts again.
pub(super) fn repeats() {
    explore(|| {
        let ring = Ring::<Event, 2>::new();
        let ledger = Ledger::new();
        for round in 0..3 {
            let make = || Event::default();
            assert!(!ring.repeat(&ledger, Key(1, 7)), "none waits");
            assert!(ring.push(&ledger, Key(1, 7), make));
            assert!(ring.push(&ledger, Key(2, 7), make));
            for _ in 0..=round {
                assert!(ring.repeat(&ledger, Key(1, 7)));
            }
            assert!(!ring.repeat(&ledger, Key(1, 8)));
            assert!(ring.waiting());
            assert_eq!(ring.pop().map(|(_, more)| more), Some(round + 1));
            assert_eq!(ring.pop().map(|(_, more)| more), Some(0));
            assert!(ring.pop().is_none());
        }
    });
}

struct Pages<const N: usize> {
    states: States<N>,
    pages: [EvidencePage<u64>; N],
}

impl<const N: usize> Pages<N> {
    fn new() -> Self {
        Self {
            states: States::new(),
            pages: core::array::from_fn(|_| EvidencePage(Cell::new(0))),
        }
    }

    fn at(&self, index: usize) -> Option<*const EvidencePage<u64>> {
        self.pages.get(index).map(core::ptr::from_ref)
    }

    fn write(&self, ring: &Ring<Event, 2>, ledger: &Ledger<2>, number: u64) -> bool {
        ring.push(ledger, Key(number, 0), || {
            let fill = |page: &mut u64| {
                *page = number;
                true
            };
            let page = self.states.keep(|index| self.at(index), fill);
            Event { number, page }
        })
    }

    /// Takes what there is; the number of events with a page, and without.
    fn read(&self, ring: &Ring<Event, 2>) -> (u64, u64) {
        let (mut with, mut without) = (0, 0);
        while let Some((event, _)) = ring.pop() {
            let Some(index) = event.page else {
                without += 1;
                continue;
            };
            self.states.take(
                index,
                |index| self.at(index),
                |page| {
                    assert_eq!(page, Some(&event.number), "the event's own page");
                },
            );
            with += 1;
        }
        (with, without)
    }
}

pub(super) fn pages() {
    explore(|| {
        let ring = Arc::new(Ring::<Event, 2>::new());
        let pages = Arc::new(Pages::<1>::new());
        let writer = {
            let (ring, pages) = (Arc::clone(&ring), Arc::clone(&pages));
            thread::spawn(move || {
                let ledger = Ledger::new();
                (1..=3)
                    .filter(|number| pages.write(&ring, &ledger, *number))
                    .count() as u64
            })
        };
        let first = pages.read(&ring);
        let told = writer.join().unwrap();
        let last = pages.read(&ring);
        assert_eq!(first.0 + first.1 + last.0 + last.1, told);
        assert_eq!(first.1 + last.1, pages.states.missed());
        assert!(first.0 + last.0 > 0, "there was a page for the first");
        let again = pages.states.keep(|index| pages.at(index), |_| true);
        assert_eq!(again, Some(0), "and it is free again");
    });
}

pub(super) fn two_writers() {
    explore(|| {
        let rings = Arc::new([Ring::<Event, 2>::new(), Ring::new()]);
        let pages = Arc::new(Pages::<2>::new());
        let writers = [0_usize, 1].map(|core| {
            let (rings, pages) = (Arc::clone(&rings), Arc::clone(&pages));
            thread::spawn(move || {
                let number = 1 + core as u64;
                pages.write(&rings[core], &Ledger::new(), number)
            })
        });
        let before = rings.each_ref().map(|ring| pages.read(ring));
        for writer in writers {
            assert!(writer.join().unwrap());
        }
        let after = rings.each_ref().map(|ring| pages.read(ring));
        let with: u64 = before.iter().chain(&after).map(|part| part.0).sum();
        assert_eq!((with, pages.states.missed()), (2, 0));
    });
}
