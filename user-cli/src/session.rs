//! Typed requests to the driver.
//!
//! Opening asks for the version first, so that a driver of another release is
//! named as such instead of being misread. Everything that comes back is checked
//! by `detector::wire` before it is used.

use crate::device::{self, Device, DeviceError};
use crate::failure::{Failure, start_error};
use crate::interrupt::Until;
use detector::wire::{
    self, EVIDENCE, EvidenceReply, EvidenceRequest, Finding, Message, START, STATUS, STOP,
    StartFlags, StartReply, StartRequest, StatusReply, StopReply, StopRequest, VERSION,
    VersionReply, WAIT, WaitFlags, WaitReply, WaitRequest,
};
use std::time::Duration;
use zerocopy::IntoBytes;

/// Findings asked for at once: the reply stays small enough for one frame of the
/// lab's serial line.
const BATCH: usize = 16;

/// Starting and stopping touch every core of an emulator.
const PATIENCE: Duration = Duration::from_mins(10);

/// An open device of the right version.
pub(crate) struct Session {
    device: Box<dyn Device>,
    /// The driver's version.
    pub(crate) driver: [u16; 3],
}

/// Findings and the reply that brought them.
pub(crate) struct Batch {
    pub(crate) reply: WaitReply,
    pub(crate) findings: Vec<Finding>,
}

impl Session {
    /// Opens the device and checks its version.
    pub(crate) fn open() -> Result<Session, Failure> {
        Session::with(device::open()?)
    }

    /// As `open`; loads the driver first if it is installed but not loaded.
    pub(crate) fn open_or_load() -> Result<Session, Failure> {
        match device::open() {
            Err(DeviceError::Absent(_)) => {
                device::load()?;
                Session::open()
            }
            other => Session::with(other?),
        }
    }

    fn with(device: Box<dyn Device>) -> Result<Session, Failure> {
        let mut session = Session {
            device,
            driver: [0; 3],
        };
        let reply: VersionReply = session.ask(VERSION, &[])?;
        if reply.protocol != wire::PROTOCOL {
            return Err(Failure::mismatch(&format!(
                "driver's protocol {}, tool's {}",
                reply.protocol,
                wire::PROTOCOL
            )));
        }
        session.driver = reply.driver;
        Ok(session)
    }

    fn ask<T: Message>(&mut self, code: u32, input: &[u8]) -> Result<T, Failure> {
        let until = Until::in_any_case(PATIENCE);
        let output = self.device.ioctl(code, input, size_of::<T>(), until)?;
        let output = output.ok_or_else(|| Failure::other("the driver does not answer."))?;
        Ok(wire::reply::<T>(&output)?.0)
    }

    /// A request whose reply carries an error of its own (number, core, detail),
    /// also if the driver completed it with a failure.
    fn order<T: Message>(
        &mut self,
        code: u32,
        input: &[u8],
        error: impl Fn(&T) -> (u32, u32, u64),
    ) -> Result<(), Failure> {
        let until = Until::in_any_case(PATIENCE);
        let (reply, failed) = match self.device.ioctl(code, input, size_of::<T>(), until) {
            Ok(Some(output)) => (wire::reply::<T>(&output)?.0, None),
            Ok(None) => return Err(Failure::other("the driver does not answer.")),
            Err(DeviceError::Status { what, code, output }) => {
                let failed = DeviceError::Status {
                    what,
                    code,
                    output: Vec::new(),
                };
                match wire::reply::<T>(&output) {
                    Ok((reply, _)) => (reply, Some(failed)),
                    Err(_) => return Err(failed.into()),
                }
            }
            Err(error) => return Err(error.into()),
        };
        match (error(&reply), failed) {
            ((0, ..), None) => Ok(()),
            ((0, ..), Some(failed)) => Err(failed.into()),
            ((raw, cpu, detail), _) => Err(start_error(raw, cpu, detail)),
        }
    }

    /// Begins monitoring.
    pub(crate) fn start(&mut self, flags: StartFlags) -> Result<(), Failure> {
        let mut request = StartRequest::zeroed();
        request.flags = flags.bits();
        let error = |r: &StartReply| (r.error, r.core, r.detail);
        self.order(START, request.as_bytes(), error)
    }

    /// Ends monitoring.
    pub(crate) fn stop(&mut self) -> Result<(), Failure> {
        let error = |r: &StopReply| (r.error, r.core, r.detail);
        self.order(STOP, StopRequest::zeroed().as_bytes(), error)
    }

    /// What the driver does.
    pub(crate) fn status(&mut self) -> Result<StatusReply, Failure> {
        self.ask(STATUS, &[])
    }

    /// Findings numbered above `after_seq`; `None` if `until` came first.
    pub(crate) fn wait(
        &mut self,
        after_seq: u64,
        max: u32,
        flags: WaitFlags,
        until: Until,
    ) -> Result<Option<Batch>, Failure> {
        let mut request = WaitRequest::zeroed();
        request.after_seq = after_seq;
        request.max = max;
        request.flags = flags.bits();
        let capacity = wire::wait_reply_bytes(BATCH);
        let output = self
            .device
            .ioctl(WAIT, request.as_bytes(), capacity, until)?;
        let Some(output) = output else {
            return Ok(None);
        };
        let (reply, rest) = wire::reply::<WaitReply>(&output)?;
        let findings = wire::findings(&reply, rest)?.collect();
        Ok(Some(Batch { reply, findings }))
    }

    /// The page of a finding, if the driver still has it.
    pub(crate) fn evidence(&mut self, seq: u64) -> Result<Option<Box<[u8; 4096]>>, Failure> {
        let mut request = EvidenceRequest::zeroed();
        request.seq = seq;
        let reply: EvidenceReply = self.ask(EVIDENCE, request.as_bytes())?;
        Ok((reply.available == 1).then(|| Box::new(reply.page)))
    }
}
