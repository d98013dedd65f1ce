//! Starting and stopping: the driver as a whole.
//!
//! One [`Driver`] exists from DriverEntry to unload, in nonpaged pool, found
//! through [`Driver::get`]. Its state machine (stopped, starting, monitoring,
//! stopping, failed) changes only under the `control` lock, so that callers who
//! start or stop at the same moment come one after the other, and each learns
//! what it found: a start while monitoring and a stop while stopped are errors
//! of their own and change nothing. Reading the state takes no lock.
//!
//! Loading changes nothing about the machine; [`Driver::start`] does. Unloading
//! while monitoring gives the machine back first. All of this at PASSIVE_LEVEL.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use detector::wire::{Gaps, Message, StartError, StartFlags, State, StatusReply};

use crate::clock;
use crate::drain::{Drain, still_holds};
use crate::images::Images;
use crate::lock::WaitLock;
use crate::machine::Machine;
use crate::platform::{self, NtPlatform};
use crate::processor;
use crate::status::{Failure, Status};
use crate::waiters::Findings;

static DRIVER: AtomicPtr<Driver> = AtomicPtr::new(core::ptr::null_mut());

/// All that the driver holds.
pub(crate) struct Driver {
    /// Held by whoever starts or stops.
    control: WaitLock<()>,
    /// Number of a [`State`].
    state: AtomicU32,
    /// When monitoring began; 0 while stopped.
    started: AtomicU64,
    platform: NtPlatform,
    /// The list of modules.
    pub(crate) images: Images,
    /// The hypervisor, while it runs.
    pub(crate) machine: WaitLock<Option<Machine>>,
    /// Findings and their readers.
    pub(crate) findings: Findings,
    pub(crate) drain: Drain,
}

impl Driver {
    /// Makes the driver, for [`Driver::install`].
    pub(crate) fn new(platform: NtPlatform) -> Result<Box<Self>, Status> {
        let driver = Self {
            control: WaitLock::new(())?,
            state: AtomicU32::new(State::Stopped as u32),
            started: AtomicU64::new(0),
            platform,
            images: Images::new()?,
            machine: WaitLock::new(None)?,
            findings: Findings::new()?,
            drain: Drain::new(),
        };
        boxed(driver).ok_or(Status::NO_MEMORY)
    }

    /// Makes it the driver that everybody finds.
    pub(crate) fn install(driver: Box<Self>) -> &'static Self {
        let driver = Box::into_raw(driver);
        DRIVER.store(driver, Ordering::Release);
        // SAFETY: it lives until `remove`, which the loader's rules put after the
        // last use.
        unsafe { &*driver }
    }

    /// The driver, `None` before DriverEntry and after unload.
    pub(crate) fn get() -> Option<&'static Self> {
        let driver = DRIVER.load(Ordering::Acquire);
        // SAFETY: null, or installed and not yet removed.
        unsafe { driver.as_ref() }
    }

    /// Stops if need be and frees everything. `false` when a core could not be
    /// given back: then everything stays, and the image must too.
    ///
    /// # Safety
    /// Nobody uses the driver any more: DriverEntry has failed or the driver is
    /// being unloaded, when no handle is open and no request is under way.
    pub(crate) unsafe fn remove() -> bool {
        let Some(driver) = Self::get() else {
            return true;
        };
        let stopped = match driver.stop() {
            Ok(()) => true,
            Err(failure) => failure.error == StartError::NotStarted,
        };
        if stopped {
            let driver = DRIVER.swap(core::ptr::null_mut(), Ordering::AcqRel);
            // SAFETY: made by `install` from a box, and nobody uses it any more.
            drop(unsafe { Box::from_raw(driver) });
        }
        stopped
    }

    /// The state as it is at this moment.
    pub(crate) fn state(&self) -> State {
        State::from_raw(self.state.load(Ordering::Acquire)).unwrap_or(State::Failed)
    }

    fn enter(&self, state: State) {
        self.state.store(state as u32, Ordering::Release);
    }

    /// Begins to monitor: the list of modules, the hypervisor on all cores, the
    /// drain. Any failure undoes what was done before it.
    pub(crate) fn start(&'static self, flags: StartFlags) -> Result<(), Failure> {
        let _control = self.control.lock();
        match self.state() {
            State::Stopped => {}
            State::Failed => return Err(Failure::new(StartError::LeaveFailed)),
            State::Starting | State::Monitoring | State::Stopping => {
                return Err(Failure::new(StartError::AlreadyStarted));
            }
        }
        self.enter(State::Starting);
        let result = self.start_all(flags);
        if result.is_ok() {
            self.started.store(clock::now(), Ordering::Release);
            self.enter(State::Monitoring);
        } else {
            self.enter(State::Stopped);
        }
        result
    }

    fn start_all(&'static self, flags: StartFlags) -> Result<(), Failure> {
        self.images.begin()?;
        let started = self.start_machine(flags);
        if started.is_err() {
            self.images.end();
        }
        started
    }

    fn start_machine(&'static self, flags: StartFlags) -> Result<(), Failure> {
        // Ready before the first core is taken over, so that nothing that can
        // fail for want of memory is left afterwards.
        self.drain.start(self)?;
        let started = {
            let images = self.images.lock();
            let mut machine = self.machine.lock();
            let made = Machine::start(self.platform, flags, images.snapshot());
            made.map(|made| *machine = Some(made))
        };
        if started.is_err() {
            self.drain.stop();
        }
        started
    }

    /// Ends monitoring and gives the machine back as it was. If a core cannot be
    /// given back, everything stays as it is and only a restart helps.
    pub(crate) fn stop(&self) -> Result<(), Failure> {
        let _control = self.control.lock();
        match self.state() {
            State::Monitoring => {}
            State::Failed => return Err(Failure::new(StartError::LeaveFailed)),
            State::Stopped | State::Starting | State::Stopping => {
                return Err(Failure::new(StartError::NotStarted));
            }
        }
        self.enter(State::Stopping);
        self.images.end();
        self.drain.stop();
        let result = self.stop_machine();
        self.enter(match result {
            Ok(()) => State::Stopped,
            Err(_) => State::Failed,
        });
        self.started.store(0, Ordering::Release);
        self.findings.release(self.state());
        result
    }

    fn stop_machine(&self) -> Result<(), Failure> {
        let images = self.images.lock();
        let mut slot = self.machine.lock();
        let Some(machine) = slot.take() else {
            return Ok(());
        };
        let mut round = self.findings.round(clock::now());
        let view = images.view();
        let mut export = |base, offset| images.export(base, offset);
        let stopped = machine.stop(&mut |event, page| {
            if still_holds(event, &view) {
                round.push(event, page, &view, &mut export);
            }
        });
        match stopped {
            Ok(lost) => {
                round.lost(lost);
                round.finish(State::Stopping);
                Ok(())
            }
            Err((failure, machine)) => {
                *slot = Some(machine);
                Err(failure)
            }
        }
    }

    /// Everything that STATUS tells.
    pub(crate) fn status(&self) -> StatusReply {
        let mut reply = StatusReply::zeroed();
        reply.state = self.state() as u32;
        reply.vendor = processor::vendor() as u32;
        reply.address_bits = processor::address_bits();
        reply.cores = platform::processors();
        reply.started = self.started.load(Ordering::Acquire);
        {
            let images = self.images.lock();
            let view = images.view();
            reply.modules = u32::try_from(view.module_count()).unwrap_or(u32::MAX);
            reply.generation = view.generation();
            if !images.complete() {
                reply.gaps |= Gaps::REGISTRY_INCOMPLETE.bits();
            }
        }
        if let Some(machine) = &*self.machine.lock() {
            machine.describe(&mut reply);
        }
        reply.accounts = self.findings.accounts();
        reply
    }
}

/// A box, or nothing when there is no memory. (`Box::new` would bugcheck.)
fn boxed<T>(value: T) -> Option<Box<T>> {
    let mut room = Vec::new();
    room.try_reserve_exact(1).ok()?;
    room.push(value);
    let pointer: *mut [T] = Box::into_raw(room.into_boxed_slice());
    // SAFETY: a boxed slice of one element has the layout of a box of it.
    Some(unsafe { Box::from_raw(pointer.cast::<T>()) })
}
