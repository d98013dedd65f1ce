//! The lab's machine: frames of the device link over TCP.
//!
//! The lab's broker listens on the loopback address in `HVDETECT_LAB`; one
//! connection is one client, and what it leaves is cleaned up when it closes.
//! One request is under way at a time. What arrives is checked by the decoder
//! and by `session`; a broken stream is an error, never a panic.

use super::{Device, DeviceError, SERVICE};
use crate::interrupt::{TICK, Until};
use detector::wire::DEVICE_PATH;
use lab_link::{
    Decoder, Frame, HEADER_LENGTH, Kind, MAX_PAYLOAD, Message, ServiceOp, ServiceState, encode,
};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

const STATUS_SUCCESS: u32 = 0;
const STATUS_INVALID_DEVICE_REQUEST: u32 = 0xC000_0010;
const STATUS_ACCESS_DENIED: u32 = 0xC000_0022;
const STATUS_OBJECT_NAME_NOT_FOUND: u32 = 0xC000_0034;
const STATUS_OBJECT_PATH_NOT_FOUND: u32 = 0xC000_003A;
const STATUS_NO_SUCH_DEVICE: u32 = 0xC000_000E;
const STATUS_REVISION_MISMATCH: u32 = 0xC000_0059;
const STATUS_CANCELLED: u32 = 0xC000_0120;
const STATUS_DELETE_PENDING: u32 = 0xC000_0056;

const GENERIC_READ_WRITE: u32 = 0xC000_0000;

/// The machine may be paused or slow: it is an emulator.
const REPLY_TIMEOUT: Duration = Duration::from_mins(10);
/// A cancelled request must end soon.
const CANCEL_TIMEOUT: Duration = Duration::from_mins(1);

struct Link {
    stream: TcpStream,
    decoder: Decoder<Vec<u8>>,
    received: Vec<u8>,
    next_id: u32,
}

struct Answer {
    status: u32,
    information: u64,
    output: Vec<u8>,
}

impl Link {
    fn connect() -> Result<Link, DeviceError> {
        let Ok(address) = std::env::var("HVDETECT_LAB") else {
            let why = "no driver: this is not Windows, and HVDETECT_LAB is not set.";
            return Err(DeviceError::Absent(why.to_owned()));
        };
        let stream = resolve(&address)
            .and_then(|address| TcpStream::connect_timeout(&address, Duration::from_secs(10)))
            .and_then(|stream| {
                stream.set_read_timeout(Some(TICK))?;
                stream.set_nodelay(true)?;
                Ok(stream)
            })
            .map_err(|error| {
                DeviceError::Absent(format!("no machine at HVDETECT_LAB={address}: {error}."))
            })?;
        Ok(Link {
            stream,
            decoder: Decoder::new(vec![0; HEADER_LENGTH + MAX_PAYLOAD]),
            received: Vec::new(),
            next_id: 1,
        })
    }

    fn send(&mut self, message: &Message<'_>, room: usize) -> Result<u32, DeviceError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut payload = vec![0; room + 64];
        let mut wire = vec![0; room + 64 + HEADER_LENGTH];
        let written = message.write(&mut payload).ok_or("a request is too long");
        let length = written.and_then(|length| {
            let frame = Frame {
                kind: message.kind(),
                client: 0,
                id,
                payload: &payload[..length],
            };
            encode(&frame, &mut wire).map_err(|_| "a request is too long")
        });
        let length = length.map_err(|why| DeviceError::Gone(why.to_owned()))?;
        self.stream.write_all(&wire[..length]).map_err(gone)?;
        Ok(id)
    }

    /// The answer to the request `id`; `None` if `until` comes first.
    fn answer(&mut self, id: u32, until: Until) -> Result<Option<Answer>, DeviceError> {
        loop {
            if let Some(answer) = self.decoded(id) {
                return Ok(Some(answer));
            }
            if until.over() {
                return Ok(None);
            }
            if self.received.is_empty() {
                let mut buffer = [0; 16_384];
                match self.stream.read(&mut buffer) {
                    Ok(0) => return Err(DeviceError::Gone("the machine is gone.".to_owned())),
                    Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                    Err(error) if is_timeout(&error) => {}
                    Err(error) => return Err(gone(error)),
                }
            }
        }
    }

    fn decoded(&mut self, id: u32) -> Option<Answer> {
        loop {
            while let Some(frame) = self.decoder.next_frame() {
                if frame.kind != Kind::Reply || frame.id != id {
                    continue;
                }
                if let Some(Message::Reply {
                    status,
                    information,
                    output,
                }) = Message::parse(frame.kind, frame.payload)
                {
                    return Some(Answer {
                        status,
                        information,
                        output: output.to_vec(),
                    });
                }
            }
            if self.received.is_empty() {
                return None;
            }
            let taken = self.decoder.feed(&self.received);
            self.received.drain(..taken);
        }
    }

    fn call(&mut self, message: &Message<'_>, room: usize) -> Result<Answer, DeviceError> {
        let id = self.send(message, room)?;
        let answer = self.answer(id, Until::within(Some(REPLY_TIMEOUT)))?;
        answer.ok_or_else(|| DeviceError::Gone("the machine does not answer.".to_owned()))
    }
}

fn resolve(address: &str) -> io::Result<SocketAddr> {
    let mut all = address.to_socket_addrs()?;
    all.next()
        .ok_or_else(|| io::Error::other("the address has no meaning"))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

// By value, for `map_err`.
#[allow(clippy::needless_pass_by_value)]
fn gone(error: io::Error) -> DeviceError {
    DeviceError::Gone(format!("the machine is gone: {error}."))
}

/// A handle to the driver inside the lab's machine.
pub(super) struct Lab {
    link: Link,
    handle: u64,
}

pub(super) fn open() -> Result<Lab, DeviceError> {
    let mut link = Link::connect()?;
    let open = Message::Open {
        access: GENERIC_READ_WRITE,
        path: DEVICE_PATH,
    };
    let answer = link.call(&open, DEVICE_PATH.len())?;
    match answer.status {
        STATUS_SUCCESS => Ok(Lab {
            link,
            handle: answer.information,
        }),
        STATUS_OBJECT_NAME_NOT_FOUND | STATUS_OBJECT_PATH_NOT_FOUND | STATUS_NO_SUCH_DEVICE => {
            let why = "the driver is not loaded in the lab's machine.";
            Err(DeviceError::Absent(why.to_owned()))
        }
        STATUS_ACCESS_DENIED => Err(DeviceError::AccessDenied),
        code => Err(DeviceError::Status {
            what: "open",
            code,
            output: answer.output,
        }),
    }
}

pub(super) fn load() -> Result<(), DeviceError> {
    let mut link = Link::connect()?;
    let start = Message::Service {
        op: ServiceOp::Start,
        name: SERVICE,
    };
    let answer = link.call(&start, SERVICE.len())?;
    if answer.status == STATUS_SUCCESS && answer.information == ServiceState::Running as u64 {
        return Ok(());
    }
    Err(DeviceError::Absent(format!(
        "the driver could not be loaded in the lab's machine (status {:#010x}).",
        answer.status
    )))
}

impl Device for Lab {
    fn ioctl(
        &mut self,
        code: u32,
        input: &[u8],
        capacity: usize,
        until: Until,
    ) -> Result<Option<Vec<u8>>, DeviceError> {
        // A reply is one frame.
        let capacity = capacity.min(MAX_PAYLOAD - 64);
        let request = Message::Ioctl {
            handle: self.handle,
            code,
            capacity: u32::try_from(capacity).unwrap_or(u32::MAX),
            input,
        };
        let id = self.link.send(&request, input.len())?;
        let (answer, cancelled) = match self.link.answer(id, until)? {
            Some(answer) => (answer, false),
            None => (self.cancel(id)?, true),
        };
        match answer.status {
            STATUS_SUCCESS => Ok(Some(answer.output)),
            STATUS_CANCELLED if cancelled => Ok(None),
            STATUS_CANCELLED | STATUS_DELETE_PENDING => Err(DeviceError::Gone(
                "the driver has been unloaded.".to_owned(),
            )),
            STATUS_INVALID_DEVICE_REQUEST | STATUS_REVISION_MISMATCH => {
                Err(DeviceError::UnknownRequest)
            }
            STATUS_ACCESS_DENIED => Err(DeviceError::AccessDenied),
            code => Err(DeviceError::Status {
                what: "request",
                code,
                output: answer.output,
            }),
        }
    }
}

impl Lab {
    /// Cancels a request; its answer may be a result that was faster.
    fn cancel(&mut self, id: u32) -> Result<Answer, DeviceError> {
        self.link.send(&Message::Cancel { id }, 4)?;
        // Ctrl-C must not end this wait too: only the clock may.
        let patience = Until::in_any_case(CANCEL_TIMEOUT);
        let answer = self.link.answer(id, patience)?;
        answer.ok_or_else(|| DeviceError::Gone("the machine does not answer.".to_owned()))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let close = Message::Close {
            handle: self.handle,
        };
        // The connection's end closes the handle too.
        let _ = self.link.send(&close, 8);
    }
}
