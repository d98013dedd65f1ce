//! The hypervisor as the driver holds it.
//!
//! Everything here is called in guest context at PASSIVE_LEVEL, under the
//! `machine` lock.

use core::convert::Infallible;

use detector::event::Event;
use detector::finding::Page;
use detector::wire::{StartError, StartFlags, StatusReply};

use crate::platform::NtPlatform;
use crate::status::Failure;

/// Takes one event and the page kept with it.
pub(crate) type Sink<'a> = dyn FnMut(&Event, Option<&Page>) + 'a;

/// The running hypervisor. This build has none, so there is no value of it.
pub(crate) struct Machine {
    never: Infallible,
}

impl Machine {
    /// Takes all cores over. `snapshot` is the list of modules.
    pub(crate) fn start(
        _platform: NtPlatform,
        _flags: StartFlags,
        _snapshot: &[u8],
    ) -> Result<Self, Failure> {
        Err(Failure::new(StartError::VendorUnsupported))
    }

    /// Gives all cores back, hands the last events to `sink` and frees all
    /// memory. Returns how many events were lost to full rings since the last
    /// [`Machine::drain`].
    pub(crate) fn stop(self, _sink: &mut Sink<'_>) -> Result<u64, (Failure, Self)> {
        match self.never {}
    }

    /// Makes a new list of modules current. `false` when it was refused.
    pub(crate) fn publish(&self, _snapshot: &[u8]) -> bool {
        match self.never {}
    }

    /// Hands all events of all cores to `sink`. Returns how many were lost to
    /// full rings since the last time.
    pub(crate) fn drain(&self, _sink: &mut Sink<'_>) -> u64 {
        match self.never {}
    }

    /// Fills in what the hypervisor knows: cores, features, gaps, exits, pages,
    /// tables, bytes, counters.
    pub(crate) fn describe(&self, _reply: &mut StatusReply) {
        match self.never {}
    }
}
