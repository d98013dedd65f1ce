//! Requests from user mode: what each code takes, and who answers it.
//!
//! Codes are compared whole, lengths have a least and a most, every message is
//! copied out of the system buffer once and checked (magic, version, size,
//! reserved bits) before anything is written there, and every reply starts as
//! zeros. No code reads or writes memory, model-specific registers or ports for
//! its caller.
//!
//! The device's execution level is passive, so all of this runs at
//! PASSIVE_LEVEL; the default queue is parallel. Nothing is held here while a
//! request is answered; locks are the answering module's own.

use detector::wire::{
    self, EvidenceReply, EvidenceRequest, Message, Request, StartFlags, StartReply, StartRequest,
    StatusReply, StopReply, StopRequest, VersionReply, WaitReply, WaitRequest, wait_reply_bytes,
};

use crate::control::Driver;
use crate::drain;
use crate::status::{Failure, Status};
use crate::wdk_crates::wdk_sys::{
    NT_SUCCESS, PVOID, STATUS_SUCCESS, ULONG, WDFQUEUE, WDFREQUEST,
    call_unsafe_wdf_function_binding,
};

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// So many bytes of output are ready.
    Complete(usize),
    /// The framework holds it until there is an answer.
    Parked,
}

/// Most output that is accepted for a reply of fixed size: callers may round up.
const FIXED_REPLY_MOST: usize = 64 * 1024;
/// Most output that is accepted for WAIT.
const WAIT_REPLY_MOST: usize = 1024 * 1024;

/// Lengths that a code accepts, in bytes.
struct Limits {
    input: usize,
    output: core::ops::RangeInclusive<usize>,
}

impl Limits {
    const fn fixed<Reply>(input: usize) -> Self {
        Self {
            input,
            output: size_of::<Reply>()..=FIXED_REPLY_MOST,
        }
    }

    /// The limits of a code, `None` for one that is not ours.
    fn of(code: u32) -> Option<Self> {
        Some(match code {
            wire::VERSION => Self::fixed::<VersionReply>(0),
            wire::START => Self::fixed::<StartReply>(size_of::<StartRequest>()),
            wire::STOP => Self::fixed::<StopReply>(size_of::<StopRequest>()),
            wire::STATUS => Self::fixed::<StatusReply>(0),
            wire::WAIT => Self {
                input: size_of::<WaitRequest>(),
                output: wait_reply_bytes(1)..=WAIT_REPLY_MOST,
            },
            wire::EVIDENCE => Self::fixed::<EvidenceReply>(size_of::<EvidenceRequest>()),
            _ => return None,
        })
    }

    fn check(&self, input: usize, output: usize) -> Result<(), Status> {
        if input < self.input || output < *self.output.start() {
            Err(Status::TOO_SHORT)
        } else if input > self.input || output > *self.output.end() {
            Err(Status::TOO_LONG)
        } else {
            Ok(())
        }
    }
}

const _: () = assert!(size_of::<WaitReply>() < WAIT_REPLY_MOST);

/// EvtIoDeviceControl of the default queue.
pub(crate) unsafe extern "C" fn on_device_control(
    _queue: WDFQUEUE,
    request: WDFREQUEST,
    output: usize,
    input: usize,
    code: ULONG,
) {
    let answer = Limits::of(code)
        .ok_or(Status::UNKNOWN_CODE)
        .and_then(|limits| limits.check(input, output))
        .and_then(|()| Driver::get().ok_or(Status::NOT_READY))
        .and_then(|driver| dispatch(driver, request, code));
    finish(request, answer);
}

fn dispatch(driver: &'static Driver, request: WDFREQUEST, code: u32) -> Result<Answer, Status> {
    match code {
        wire::VERSION => reply(request, &version()),
        wire::START => {
            let message: StartRequest = input(request)?;
            #[cfg(feature = "seeded-faults")]
            hv_core::seeded::plant((message.flags >> 32) as u32);
            let started = driver.start(StartFlags::from_bits_truncate(message.flags));
            let mut answer = StartReply::zeroed();
            (answer.error, answer.core, answer.detail) = outcome(started);
            reply(request, &answer)
        }
        wire::STOP => {
            let _message: StopRequest = input(request)?;
            let mut answer = StopReply::zeroed();
            (answer.error, answer.core, answer.detail) = outcome(driver.stop());
            reply(request, &answer)
        }
        wire::STATUS => {
            drain::now(driver);
            reply(request, &driver.status())
        }
        wire::WAIT => {
            let message: WaitRequest = input(request)?;
            // What has happened until now is in the answer, whenever the drain's
            // next round is.
            drain::now(driver);
            driver.findings.wait(request, &message, || driver.state())
        }
        wire::EVIDENCE => {
            let message: EvidenceRequest = input(request)?;
            let bytes = driver.findings.evidence(&message, output(request)?)?;
            Ok(Answer::Complete(bytes))
        }
        _ => Err(Status::UNKNOWN_CODE),
    }
}

/// A start's or stop's result as the wire format has it.
fn outcome(result: Result<(), Failure>) -> (u32, u32, u64) {
    match result {
        Ok(()) => (0, u32::MAX, 0),
        Err(failure) => (failure.error as u32, failure.core_number(), failure.detail),
    }
}

fn version() -> VersionReply {
    let part = |text: &str| text.parse().unwrap_or(0);
    let mut answer = VersionReply::zeroed();
    answer.protocol = wire::PROTOCOL;
    answer.driver = [
        part(env!("CARGO_PKG_VERSION_MAJOR")),
        part(env!("CARGO_PKG_VERSION_MINOR")),
        part(env!("CARGO_PKG_VERSION_PATCH")),
    ];
    answer
}

/// Completes a request, unless the framework holds it.
pub(crate) fn finish(request: WDFREQUEST, answer: Result<Answer, Status>) {
    let (status, bytes) = match answer {
        Ok(Answer::Parked) => return,
        Ok(Answer::Complete(bytes)) => (STATUS_SUCCESS, bytes),
        Err(status) => (status.as_nt(), 0),
    };
    // SAFETY: the request is ours and is not used after this.
    unsafe {
        call_unsafe_wdf_function_binding!(
            WdfRequestCompleteWithInformation,
            request,
            status,
            bytes as u64
        );
    };
}

/// The caller's message, copied and checked.
pub(crate) fn input<T: Request>(request: WDFREQUEST) -> Result<T, Status> {
    let mut buffer: PVOID = core::ptr::null_mut();
    let mut length = 0;
    // SAFETY: the request is ours; both results are local.
    let status = unsafe {
        call_unsafe_wdf_function_binding!(
            WdfRequestRetrieveInputBuffer,
            request,
            size_of::<T>(),
            &raw mut buffer,
            &raw mut length
        )
    };
    if !NT_SUCCESS(status) {
        return Err(Status::from_nt(status));
    }
    // SAFETY: METHOD_BUFFERED: the system's copy of the input, of this length, is
    // ours until the request is completed, and nobody writes it meanwhile.
    let bytes = unsafe { core::slice::from_raw_parts(buffer.cast::<u8>(), length) };
    Ok(wire::request(bytes)?)
}

/// Room for the reply. It lies over the input, which must have been taken.
pub(crate) fn output<'a>(request: WDFREQUEST) -> Result<&'a mut [u8], Status> {
    let mut buffer: PVOID = core::ptr::null_mut();
    let mut length = 0;
    // SAFETY: the request is ours; both results are local.
    let status = unsafe {
        call_unsafe_wdf_function_binding!(
            WdfRequestRetrieveOutputBuffer,
            request,
            1,
            &raw mut buffer,
            &raw mut length
        )
    };
    if !NT_SUCCESS(status) {
        return Err(Status::from_nt(status));
    }
    // SAFETY: METHOD_BUFFERED: the system buffer has room for this much output and
    // is ours until the request is completed.
    Ok(unsafe { core::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) })
}

fn reply<T: Message>(request: WDFREQUEST, message: &T) -> Result<Answer, Status> {
    let bytes = message.as_bytes();
    let room = output(request)?.get_mut(..bytes.len());
    room.ok_or(Status::TOO_SHORT)?.copy_from_slice(bytes);
    Ok(Answer::Complete(bytes.len()))
}
