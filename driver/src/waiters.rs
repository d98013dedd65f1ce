//! Findings and those who wait for them: the inverted call.
//!
//! A WAIT request that finds something is completed at once; otherwise it is
//! parked in a manual queue of the framework, which cancels it there when its
//! caller gives up or dies. Whenever there is something new every parked request
//! is looked at again, each with its own `after_seq`.
//!
//! No request is completed or forwarded while a lock of the driver is held, nor in
//! a thread that the driver waits for: a framework may present the next request in
//! the very thread that does it, so that [`queue::on_device_control`] runs inside
//! the call, takes the same locks or stops the drain ("Dispatching Methods for I/O
//! Requests": when and in which thread a request callback is called is the
//! framework's). So the parked requests are looked at in a work item, everything
//! is decided under the lock and done after it. Something new may come in between;
//! [`Inner::changes`] tells, and then all are looked at once more. One thread at a
//! time looks; who comes meanwhile only counts.
//!
//! PASSIVE_LEVEL.

use detector::event::Event;
use detector::finding::{Assembler, Change, ExportName, Outcome, Page, Wait};
use detector::lifecycle::{self, Action, Call};
use detector::registry::View;
use detector::wire::{Accounts, EvidenceRequest, State, WaitFlags, WaitRequest};

use crate::control::Driver;
use crate::lock::{Guard, WaitLock};
use crate::queue::{self, Answer};
use crate::status::Status;
use crate::wdk_crates::wdk_sys::{
    NT_SUCCESS, WDFQUEUE, WDFREQUEST, WDFWORKITEM, call_unsafe_wdf_function_binding,
};

/// The findings and the parked requests.
pub(crate) struct Findings(WaitLock<Inner>);

struct Inner {
    assembler: Assembler,
    /// Absent while the device is being created.
    parking: Option<Parking>,
    /// How often there was something for those who wait.
    changes: u64,
    /// The next look answers all, also with nothing.
    release: bool,
    /// A thread looks at the parked requests.
    looking: bool,
}

/// The framework's objects that hold the parked requests: two manual queues, because
/// a request may not be forwarded to the queue that it comes from, and who moves
/// them.
#[derive(Clone, Copy)]
pub(crate) struct Parking {
    /// Where requests wait.
    pub(crate) parked: WDFQUEUE,
    /// Where they go while all are looked at.
    pub(crate) seen: WDFQUEUE,
    /// Runs [`on_look`].
    pub(crate) look: WDFWORKITEM,
}

// SAFETY: the handles are good in any thread.
unsafe impl Send for Parking {}

/// Where events become findings, for one round of the drain.
pub(crate) struct Round<'a> {
    inner: Guard<'a, Inner>,
    time: u64,
    found: u64,
}

impl Findings {
    /// Reserves the memory for all findings.
    pub(crate) fn new() -> Result<Self, Status> {
        let assembler = Assembler::new().ok_or(Status::NO_MEMORY)?;
        let inner = Inner {
            assembler,
            parking: None,
            changes: 0,
            release: false,
            looking: false,
        };
        Ok(Self(WaitLock::new(inner)?))
    }

    /// Names the framework's objects, before the device takes requests.
    pub(crate) fn set_parking(&self, parking: Parking) {
        self.0.lock().parking = Some(parking);
    }

    /// Answers or parks a WAIT request. No lock of the driver is held.
    pub(crate) fn wait(
        &self,
        request: WDFREQUEST,
        message: &WaitRequest,
        state: impl Fn() -> State,
    ) -> Result<Answer, Status> {
        let mut message = *message;
        let (parking, changes) = {
            let mut inner = self.0.lock();
            // Asked under the lock: who changes the state counts a change under it
            // afterwards.
            let now = state();
            if lifecycle::decide(now, Call::Wait) == Action::Answer {
                message.flags |= WaitFlags::NO_WAIT.bits();
            }
            if let Some(answer) = inner.answer(request, &message, now)? {
                return Ok(answer);
            }
            (inner.parking.ok_or(Status::NOT_READY)?, inner.changes)
        };
        let parked = forward(request, parking.parked)?;
        // What came between the two may have passed by this request.
        let missed = self.0.lock().changes != changes;
        if missed {
            self.wake(true);
        }
        Ok(parked)
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

    /// Has every parked request looked at again soon, and with `release` answers all
    /// of them: the state has changed.
    pub(crate) fn wake(&self, release: bool) {
        let parking = {
            let mut inner = self.0.lock();
            inner.changes = inner.changes.wrapping_add(1);
            inner.release |= release;
            inner.parking
        };
        if let Some(parking) = parking {
            // SAFETY: a live work item; one that is queued already stays so.
            unsafe { call_unsafe_wdf_function_binding!(WdfWorkItemEnqueue, parking.look) };
        }
    }

    /// Waits until nobody looks any more. No request can come any more.
    pub(crate) fn settle(&self) {
        let parking = self.0.lock().parking;
        if let Some(parking) = parking {
            // SAFETY: a live work item, and this is not its callback.
            unsafe { call_unsafe_wdf_function_binding!(WdfWorkItemFlush, parking.look) };
        }
    }

    /// Answers the parked requests for which there is something. No lock of the
    /// driver is held.
    fn look(&self, state: impl Fn() -> State) {
        let parking = {
            let mut inner = self.0.lock();
            let Some(parking) = inner.parking.filter(|_| !inner.looking) else {
                return;
            };
            inner.looking = true;
            parking
        };
        loop {
            let (changes, flags) = {
                let mut inner = self.0.lock();
                let all = core::mem::take(&mut inner.release);
                let mut flags = WaitFlags::empty();
                flags.set(WaitFlags::NO_WAIT, all);
                (inner.changes, flags)
            };
            while let Some(request) = retrieve(parking.parked) {
                let answer = match self.again(request, flags, &state) {
                    Ok(None) => forward(request, parking.seen),
                    Ok(Some(answer)) => Ok(answer),
                    Err(status) => Err(status),
                };
                queue::finish(request, answer);
            }
            while let Some(request) = retrieve(parking.seen) {
                queue::finish(request, forward(request, parking.parked));
            }
            let mut inner = self.0.lock();
            if inner.changes == changes {
                inner.looking = false;
                return;
            }
        }
    }

    /// Decides about a parked request anew; `None` when it still waits.
    fn again(
        &self,
        request: WDFREQUEST,
        flags: WaitFlags,
        state: impl Fn() -> State,
    ) -> Result<Option<Answer>, Status> {
        // The request was checked when it came, and its buffer is the system's
        // copy, which only this driver writes.
        let mut message: WaitRequest = queue::input(request)?;
        message.flags |= flags.bits();
        let mut inner = self.0.lock();
        let now = state();
        inner.answer(request, &message, now)
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

    /// Ends the round. When it found something, those who wait are to be
    /// [woken](Findings::wake) at the latest when monitoring ends. Returns the number
    /// of new findings.
    pub(crate) fn finish(self) -> u64 {
        self.found
    }
}

impl Inner {
    /// Writes the answer to a WAIT request into its buffer; `None` when there is
    /// nothing to say yet.
    fn answer(
        &mut self,
        request: WDFREQUEST,
        message: &WaitRequest,
        state: State,
    ) -> Result<Option<Answer>, Status> {
        let out = queue::output(request)?;
        match self.assembler.wait(message, state, out) {
            Wait::Ready(bytes) => Ok(Some(Answer::Complete(bytes))),
            Wait::TooSmall => Err(Status::TOO_SHORT),
            Wait::Park => Ok(None),
        }
    }
}

/// EvtWorkItem.
pub(crate) unsafe extern "C" fn on_look(_item: WDFWORKITEM) {
    if let Some(driver) = Driver::get() {
        driver.findings.look(|| driver.state());
    }
}

/// Takes the first request out of a manual queue.
fn retrieve(queue: WDFQUEUE) -> Option<WDFREQUEST> {
    let mut request: WDFREQUEST = core::ptr::null_mut();
    // SAFETY: a live manual queue; `request` is ours.
    let status = unsafe {
        call_unsafe_wdf_function_binding!(WdfIoQueueRetrieveNextRequest, queue, &raw mut request)
    };
    NT_SUCCESS(status).then_some(request)
}

/// Gives a request to the framework, which owns it from then on, unless that fails.
fn forward(request: WDFREQUEST, queue: WDFQUEUE) -> Result<Answer, Status> {
    // SAFETY: the request is ours, the queue is live as long as the device.
    let status =
        unsafe { call_unsafe_wdf_function_binding!(WdfRequestForwardToIoQueue, request, queue) };
    if NT_SUCCESS(status) {
        Ok(Answer::Parked)
    } else {
        Err(Status::from_nt(status))
    }
}
