//! The state of an I/O queue: what waits, what the driver holds, what may be
//! presented next.
//!
//! Pure: requests are opaque numbers. The queue object keeps one under its spin
//! lock and acts on the answers after it has let go of the lock.
//!
//! Source: Windows drivers, "Dispatching Methods for I/O Requests" and "Managing
//! I/O Queues".

use alloc::collections::VecDeque;

/// How a queue hands out its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dispatch {
    /// One at a time: the next when the driver has completed or forwarded one.
    Sequential,
    /// As they come, up to so many in the driver's hands. With 0 none ever is.
    Parallel(u32),
    /// Only when the driver asks.
    Manual,
}

/// A queue of requests `R`.
#[derive(Debug)]
pub(crate) struct State<R> {
    dispatch: Dispatch,
    accepting: bool,
    dispatching: bool,
    presenting: bool,
    waiting: VecDeque<R>,
    held: u32,
}

impl<R: Copy + PartialEq> State<R> {
    /// Empty, accepting and dispatching.
    pub(crate) const fn new(dispatch: Dispatch) -> Self {
        Self {
            dispatch,
            accepting: true,
            dispatching: true,
            presenting: false,
            waiting: VecDeque::new(),
            held: 0,
        }
    }

    pub(crate) const fn dispatch(&self) -> Dispatch {
        self.dispatch
    }

    pub(crate) const fn is_accepting(&self) -> bool {
        self.accepting
    }

    pub(crate) const fn is_dispatching(&self) -> bool {
        self.dispatching
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = R> {
        self.waiting.iter().copied()
    }

    /// How many wait.
    pub(crate) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// How many the driver holds.
    pub(crate) const fn held(&self) -> u32 {
        self.held
    }

    /// Appends; tells whether the queue was empty before.
    pub(crate) fn push(&mut self, request: R) -> bool {
        let was_empty = self.waiting.is_empty();
        self.waiting.push_back(request);
        was_empty
    }

    /// Whether the framework may call the driver with the next request now.
    pub(crate) fn may_present(&self) -> bool {
        self.dispatching
            && !self.waiting.is_empty()
            && match self.dispatch {
                Dispatch::Sequential => self.held == 0 && !self.presenting,
                Dispatch::Parallel(limit) => self.held < limit,
                Dispatch::Manual => false,
            }
    }

    /// A sequential queue presents from one thread at a time, so that a driver
    /// that completes inside its callback does not recurse.
    pub(crate) fn begin_presenting(&mut self) {
        self.presenting = matches!(self.dispatch, Dispatch::Sequential);
    }

    /// The callback has returned.
    pub(crate) fn end_presenting(&mut self) {
        self.presenting = false;
    }

    /// Takes the first waiting request for which `claim` holds: the driver has
    /// it from now on. `claim` refuses a request whose cancellation has begun.
    pub(crate) fn take(&mut self, mut claim: impl FnMut(R) -> bool) -> Option<R> {
        let index = self.waiting.iter().position(|request| claim(*request))?;
        let request = self.waiting.remove(index)?;
        self.held += 1;
        Some(request)
    }

    /// Removes a waiting request that nobody gets: it was cancelled.
    pub(crate) fn remove(&mut self, request: R) -> bool {
        let Some(index) = self.waiting.iter().position(|waiting| *waiting == request) else {
            return false;
        };
        self.waiting.remove(index);
        true
    }

    /// The driver has taken a request that was not waiting (a cancelled one).
    pub(crate) fn hold(&mut self) {
        self.held += 1;
    }

    /// The driver has completed or forwarded one.
    pub(crate) fn release(&mut self) {
        self.held = self.held.saturating_sub(1);
    }

    /// `WdfIoQueueStop`: goes on accepting.
    pub(crate) fn stop(&mut self) {
        self.dispatching = false;
    }

    /// `WdfIoQueueStart`.
    pub(crate) fn start(&mut self) {
        self.dispatching = true;
        self.accepting = true;
    }

    /// `WdfIoQueueDrain` and `WdfIoQueuePurge`: accepts no more.
    pub(crate) fn refuse(&mut self) {
        self.accepting = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(_: u32) -> bool {
        true
    }

    #[test]
    fn a_sequential_queue_waits_for_the_completion_of_the_last() {
        let mut queue = State::new(Dispatch::Sequential);
        assert!(queue.push(1));
        assert!(!queue.push(2));
        assert!(queue.may_present());
        assert_eq!(queue.take(any), Some(1));
        assert!(!queue.may_present());
        queue.release();
        assert!(queue.may_present());
        assert_eq!(queue.take(any), Some(2));
    }

    #[test]
    fn a_sequential_queue_does_not_present_from_inside_the_callback() {
        let mut queue = State::new(Dispatch::Sequential);
        queue.push(1);
        queue.push(2);
        queue.begin_presenting();
        assert_eq!(queue.take(any), Some(1));
        queue.release();
        assert!(!queue.may_present());
        queue.end_presenting();
        assert!(queue.may_present());
    }

    #[test]
    fn a_parallel_queue_presents_up_to_its_limit_and_with_zero_never() {
        let mut queue = State::new(Dispatch::Parallel(2));
        for request in 0..3 {
            queue.push(request);
        }
        assert_eq!(queue.take(any), Some(0));
        assert!(queue.may_present());
        assert_eq!(queue.take(any), Some(1));
        assert!(!queue.may_present());
        queue.release();
        assert!(queue.may_present());

        let mut queue = State::new(Dispatch::Parallel(0));
        queue.push(1);
        assert!(!queue.may_present());
    }

    #[test]
    fn a_manual_queue_gives_only_what_is_asked_for() {
        let mut queue = State::new(Dispatch::Manual);
        queue.push(1);
        queue.push(2);
        assert!(!queue.may_present());
        assert_eq!(queue.take(|request| request == 2), Some(2));
        assert_eq!(queue.held(), 1);
        assert_eq!(queue.waiting_count(), 1);
    }

    #[test]
    fn a_request_whose_cancellation_has_begun_is_skipped_and_stays() {
        let mut queue = State::new(Dispatch::Manual);
        queue.push(1);
        queue.push(2);
        assert_eq!(queue.take(|request| request != 1), Some(2));
        assert!(queue.remove(1));
        assert!(!queue.remove(1));
        assert_eq!(queue.held(), 1);
    }

    #[test]
    fn a_stopped_queue_accepts_and_a_drained_one_does_not() {
        let mut queue = State::new(Dispatch::Parallel(u32::MAX));
        queue.stop();
        queue.push(1);
        assert!(queue.is_accepting() && !queue.may_present());
        queue.start();
        assert!(queue.may_present());
        queue.refuse();
        assert!(!queue.is_accepting() && queue.may_present());
    }
}
