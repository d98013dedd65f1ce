//! Findings and those who wait for them: the inverted call.
//!
//! A WAIT request that finds something is completed at once; otherwise it is
//! parked in a manual queue of the framework, which cancels it there when its
//! caller gives up or dies. Whenever there are new findings every parked request
//! is looked at again, each with its own `after_seq`. A request may not be
//! forwarded to the queue it comes from, so there are two queues and they change
//! roles: all requests leave one, and those that still wait enter the other.
//!
//! The lock protects assembler and roles; parking happens under it, so that no
//! finding can slip in between. PASSIVE_LEVEL.

use detector::event::Event;
use detector::finding::{Assembler, Change, ExportName, Outcome, Page, Wait};
use detector::lifecycle::{self, Action, Call};
use detector::registry::View;
use detector::wire::{Accounts, EvidenceRequest, State, WaitFlags, WaitRequest};

use crate::lock::WaitLock;
use crate::queue::{self, Answer};
use crate::status::Status;
use crate::wdk_crates::wdk_sys::{
    NT_SUCCESS, WDFQUEUE, WDFREQUEST, call_unsafe_wdf_function_binding,
};

/// The findings and the parked requests.
pub(crate) struct Findings(WaitLock<Inner>);

struct Inner {
    assembler: Assembler,
    /// The manual queues; absent while the device is being created.
    queues: Option<[WDFQUEUE; 2]>,
    /// Which of them takes requests.
    current: usize,
}

// SAFETY: queue handles are good in any thread.
unsafe impl Send for Inner {}

/// Where events become findings, for one round of the drain.
pub(crate) struct Round<'a> {
    inner: crate::lock::Guard<'a, Inner>,
    time: u64,
    found: u64,
}

impl Findings {
    /// Reserves the memory for all findings.
    pub(crate) fn new() -> Result<Self, Status> {
        let assembler = Assembler::new().ok_or(Status::NO_MEMORY)?;
        let inner = Inner {
            assembler,
            queues: None,
            current: 0,
        };
        Ok(Self(WaitLock::new(inner)?))
    }

    /// Names the manual queues, before the device takes requests.
    pub(crate) fn set_queues(&self, queues: [WDFQUEUE; 2]) {
        self.0.lock().queues = Some(queues);
    }

    /// Answers or parks a WAIT request.
    pub(crate) fn wait(
        &self,
        request: WDFREQUEST,
        message: &WaitRequest,
        state: impl Fn() -> State,
    ) -> Result<Answer, Status> {
        let mut inner = self.0.lock();
        // Asked under the lock: a change of state answers all parked requests
        // under it afterwards.
        let state = state();
        let mut message = *message;
        if lifecycle::decide(state, Call::Wait) == Action::Answer {
            message.flags |= WaitFlags::NO_WAIT.bits();
        }
        let out = queue::output(request)?;
        match inner.assembler.wait(&message, state, out) {
            Wait::Ready(bytes) => Ok(Answer::Complete(bytes)),
            Wait::TooSmall => Err(Status::TOO_SHORT),
            Wait::Park => {
                inner.park(request)?;
                Ok(Answer::Parked)
            }
        }
    }

    /// Monitoring begins: what was found before is not merged with what comes.
    pub(crate) fn begin(&self) {
        self.0.lock().assembler.begin();
    }

    /// Answers an EVIDENCE request into `out`.
    pub(crate) fn evidence(
        &self,
        message: &EvidenceRequest,
        out: &mut [u8],
    ) -> Result<usize, Status> {
        let inner = self.0.lock();
        inner
            .assembler
            .evidence(message, out)
            .ok_or(Status::TOO_SHORT)
    }

    /// What became of all events so far.
    pub(crate) fn accounts(&self) -> Accounts {
        self.0.lock().assembler.accounts()
    }

    /// Remembers that an image came or went.
    pub(crate) fn image(&self, change: Change, time: u64, name: &str, base: u64, size: u32) {
        self.0
            .lock()
            .assembler
            .image(change, time, name, base, size);
    }

    /// Begins a round: events are taken until it is dropped.
    pub(crate) fn round(&self, time: u64) -> Round<'_> {
        Round {
            inner: self.0.lock(),
            time,
            found: 0,
        }
    }

    /// Answers every parked request, also with nothing: the state has changed.
    pub(crate) fn release(&self, state: State) {
        self.0.lock().wake(state, WaitFlags::NO_WAIT);
    }
}

impl Round<'_> {
    /// Takes one event.
    pub(crate) fn push(
        &mut self,
        event: &Event,
        evidence: Option<&Page>,
        view: &View<'_>,
        export: &mut dyn FnMut(u64, u32) -> Option<ExportName>,
    ) {
        let outcome = self
            .inner
            .assembler
            .push(event, evidence, self.time, view, export);
        if let Outcome::Found(_) = outcome {
            self.found += 1;
        }
    }

    /// Counts events that root mode could not store.
    pub(crate) fn lost(&mut self, events: u64) {
        self.inner.assembler.lost(events);
    }

    /// Ends the round and answers those who waited for what it found. Returns
    /// the number of new findings.
    pub(crate) fn finish(mut self, state: State) -> u64 {
        if self.found > 0 {
            self.inner.wake(state, WaitFlags::empty());
        }
        self.found
    }
}

impl Inner {
    /// Gives a request to the framework, which owns it from then on.
    fn park(&self, request: WDFREQUEST) -> Result<(), Status> {
        let queues = self.queues.ok_or(Status::NOT_READY)?;
        // SAFETY: the request is ours, the queue is live as long as the device.
        let status = unsafe {
            call_unsafe_wdf_function_binding!(
                WdfRequestForwardToIoQueue,
                request,
                queues[self.current]
            )
        };
        if NT_SUCCESS(status) {
            Ok(())
        } else {
            Err(Status::from_nt(status))
        }
    }

    /// Looks at every parked request again, with more flags than its own.
    fn wake(&mut self, state: State, flags: WaitFlags) {
        let Some(queues) = self.queues else {
            return;
        };
        let from = queues[self.current];
        self.current = 1 - self.current;
        loop {
            let mut request: WDFREQUEST = core::ptr::null_mut();
            // SAFETY: the queue is a live manual queue; `request` is ours.
            let status = unsafe {
                call_unsafe_wdf_function_binding!(
                    WdfIoQueueRetrieveNextRequest,
                    from,
                    &raw mut request
                )
            };
            if !NT_SUCCESS(status) {
                return;
            }
            queue::finish(request, self.again(request, state, flags));
        }
    }

    fn again(
        &mut self,
        request: WDFREQUEST,
        state: State,
        flags: WaitFlags,
    ) -> Result<Answer, Status> {
        // The request was checked when it came, and its buffer is the system's
        // copy, which only this driver writes.
        let mut message: WaitRequest = queue::input(request)?;
        message.flags |= flags.bits();
        let out = queue::output(request)?;
        match self.assembler.wait(&message, state, out) {
            Wait::Ready(bytes) => Ok(Answer::Complete(bytes)),
            Wait::TooSmall => Err(Status::TOO_SHORT),
            Wait::Park => {
                self.park(request)?;
                Ok(Answer::Parked)
            }
        }
    }
}
