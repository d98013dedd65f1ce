//! Pages kept as evidence, from root mode to the driver.
//!
//! A page is free, claimed by the core that fills it, or filled and named by one
//! event, whose reader frees it. The state of each is an atomic in memory that
//! the guest can write too: at worst it spoils the evidence that it could spoil
//! anyway. Writers are many (cores in root mode), the reader is the drain.
//!
//! `tests/models` runs all interleavings of this file.

use super::sync::{AtomicU32, AtomicU64, Cell, Ordering};

const FREE: u32 = 0;
const FILLED: u32 = 1;
const CLAIMED: u32 = 2;

/// States of `N` pages and how many events went without one; all zeros is free.
#[cfg_attr(not(test), repr(C, align(4096)))]
pub(crate) struct States<const N: usize> {
    used: [AtomicU32; N],
    missed: AtomicU64,
}

/// A page of evidence.
#[cfg_attr(not(test), repr(C, align(4096)))]
pub(crate) struct EvidencePage<T>(pub(crate) Cell<T>);

#[cfg(test)]
impl<const N: usize> States<N> {
    /// All pages free.
    pub(crate) fn new() -> Self {
        Self {
            used: core::array::from_fn(|_| AtomicU32::new(FREE)),
            missed: AtomicU64::new(0),
        }
    }

    /// Events that went without a page.
    pub(crate) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Acquire)
    }
}

impl<const N: usize> States<N> {
    /// Writer: claims a free page, lets `fill` write it, and gives its number;
    /// `None`, and counted, if there is no page or `fill` fails.
    pub(crate) fn keep<T>(
        &self,
        pages: impl Fn(usize) -> Option<*const EvidencePage<T>>,
        fill: impl FnOnce(&mut T) -> bool,
    ) -> Option<u32> {
        let kept = self.claim().and_then(|(index, state)| {
            let filled = pages(index as usize).is_some_and(|page| {
                // SAFETY: one of the pages, which outlive both sides.
                let page = unsafe { &*page };
                page.0.with_mut(|place| {
                    // SAFETY: the page was free and has been claimed.
                    fill(unsafe { &mut *place })
                })
            });
            state.store(if filled { FILLED } else { FREE }, Ordering::Release);
            filled.then_some(index)
        });
        if kept.is_none() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
        kept
    }

    fn claim(&self) -> Option<(u32, &AtomicU32)> {
        (0..).zip(&self.used).find(|(_, state)| {
            state
                .compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        })
    }

    /// Reader: hands a filled page to `work` and frees it; `None` goes to `work`
    /// for any other number.
    pub(crate) fn take<T, R>(
        &self,
        index: u32,
        pages: impl Fn(usize) -> Option<*const EvidencePage<T>>,
        work: impl FnOnce(Option<&T>) -> R,
    ) -> R {
        let filled = self
            .used
            .get(index as usize)
            .filter(|state| state.load(Ordering::Acquire) == FILLED);
        let (Some(state), Some(page)) = (filled, pages(index as usize)) else {
            return work(None);
        };
        // SAFETY: one of the pages, which outlive both sides.
        let page = unsafe { &*page };
        // SAFETY: a filled page is the reader's until it is freed below.
        let result = page.0.with(|place| work(Some(unsafe { &*place })));
        state.store(FREE, Ordering::Release);
        result
    }
}
