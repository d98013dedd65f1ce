//! Starting and stopping: the driver as a whole.
//!
//! One [`Driver`] exists from DriverEntry to unload, in nonpaged pool, found
//! through [`Driver::get`]. What each call does in each state is
//! [`detector::lifecycle`]'s table. The state changes only under the `control`
//! lock, which whoever starts or stops holds until the end: a second caller does
//! not wait for it but is told at once that the driver is busy. Only the end of
//! the system and of the driver wait. Reading the state takes no lock.
//!
//! Loading changes nothing about the machine; [`Driver::start`] does. Unloading
//! while monitoring gives the machine back first. If a core cannot be given back,
//! nothing is freed, and the driver cannot be unloaded any more: its code and
//! data are what that core runs in. All of this at PASSIVE_LEVEL.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use detector::lifecycle::{self, Action, Call};
use detector::wire::{Gaps, Message, StartError, StartFlags, State, StatusReply};

use crate::clock;
use crate::drain::Drain;
use crate::images::Images;
use crate::lock::{Guard, WaitLock};
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
        let free = driver.end(Call::Unload);
        if free {
            driver.findings.settle();
            let driver = DRIVER.swap(core::ptr::null_mut(), Ordering::AcqRel);
            // SAFETY: made by `install` from a box, and nobody uses it any more.
            drop(unsafe { Box::from_raw(driver) });
        }
        free
    }

    /// The state as it is at this moment.
    pub(crate) fn state(&self) -> State {
        State::from_raw(self.state.load(Ordering::Acquire)).unwrap_or(State::Failed)
    }

    fn enter(&self, state: State) {
        self.state.store(state as u32, Ordering::Release);
    }

    /// The right to carry out a START or STOP, in its transitional state; or the
    /// reason why not.
    fn begin(&self, call: Call) -> Result<Transition<'_>, Failure> {
        let control = self.control.try_lock();
        match (lifecycle::decide(self.state(), call), control) {
            (Action::Begin(state), Some(control)) => {
                self.enter(state);
                Ok(Transition {
                    driver: self,
                    _control: control,
                })
            }
            (Action::Refuse(error), _) => Err(Failure::new(error)),
            // The state that was seen is that of a caller who has just begun or is
            // about to end.
            (_, _) => Err(Failure::new(StartError::Busy)),
        }
    }

    /// Begins to monitor: the list of modules, the hypervisor on all cores, the
    /// drain. Any failure undoes what was done before it.
    pub(crate) fn start(&'static self, flags: StartFlags) -> Result<(), Failure> {
        let transition = self.begin(Call::Start)?;
        let result = self.start_all(flags);
        if result.is_ok() {
            self.started.store(clock::now(), Ordering::Release);
        }
        transition.finish(result.is_ok());
        result
    }

    fn start_all(&'static self, flags: StartFlags) -> Result<(), Failure> {
        self.findings.begin();
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
        let transition = self.begin(Call::Stop)?;
        let result = self.stop_all();
        transition.finish(result.is_ok());
        result
    }

    fn stop_all(&self) -> Result<(), Failure> {
        self.images.end();
        self.drain.stop();
        let result = self.stop_machine();
        if result.is_err() {
            self.platform.forbid_unload();
        }
        self.started.store(0, Ordering::Release);
        result
    }

    /// The system or the driver ends ([`Call::Shutdown`], [`Call::Unload`]):
    /// waits for a start or stop under way and gives the machine back. Returns
    /// whether everything may be freed.
    pub(crate) fn end(&self, call: Call) -> bool {
        let control = self.control.lock();
        match lifecycle::decide(self.state(), call) {
            Action::Begin(state) => {
                self.enter(state);
                let transition = Transition {
                    driver: self,
                    _control: control,
                };
                let result = self.stop_all();
                transition.finish(result.is_ok());
                result.is_ok()
            }
            action => action == Action::Free,
        }
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
            round.push(event, page, &view, &mut export);
        });
        match stopped {
            Ok(lost) => {
                // Those who wait are woken when the stop ends.
                round.lost(lost);
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
        if self.state() == State::Failed {
            reply.gaps |= Gaps::CORE_MISSING.bits();
        }
        reply.accounts = self.findings.accounts();
        reply
    }
}

/// A start or stop under way: its transitional state, and the lock.
struct Transition<'a> {
    driver: &'a Driver,
    _control: Guard<'a, ()>,
}

impl Transition<'_> {
    /// Enters the state that follows and has all who wait for findings answered.
    fn finish(self, well: bool) {
        let state = lifecycle::finished(self.driver.state(), well);
        self.driver.enter(state);
        if state != State::Monitoring {
            self.driver.findings.wake(true);
        }
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
