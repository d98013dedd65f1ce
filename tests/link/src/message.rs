//! The payloads, typed: what each [`Kind`] carries.
//!
//! Pure conversion between [`Message`] and bytes; a message borrows what it was
//! read from. Text is UTF-8; numbers are little-endian.

use crate::frame::Kind;

/// Operation of a `Service` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ServiceOp {
    /// Load the driver and call its `DriverEntry`.
    Start = 1,
    /// Unload it.
    Stop = 2,
    /// Ask for its state.
    Query = 3,
}

/// State of a service, the `information` of the reply (the numbers of
/// `SERVICE_STATUS.dwCurrentState`, and 0 for "no such service").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ServiceState {
    /// There is no such service.
    Absent = 0,
    /// Known, not loaded.
    Stopped = 1,
    /// Loaded.
    Running = 4,
}

/// Operation of a `Program` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ProgramOp {
    /// Start it; the reply's `information` is the process id.
    Run = 1,
    /// Wait for its end, or end it; `information` is the exit code.
    Stop = 2,
}

/// A frame's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// The machine is ready.
    Hello {
        /// Version of the link, [`crate::VERSION`].
        version: u32,
        /// Running processors.
        cpus: u32,
        /// Name and build of the machine.
        text: &'a str,
    },
    /// Open a device.
    Open {
        /// `ACCESS_MASK` asked for.
        access: u32,
        /// Win32 path, `\\.\name`.
        path: &'a str,
    },
    /// Device control request.
    Ioctl {
        /// Handle from an `Open` reply.
        handle: u64,
        /// Control code.
        code: u32,
        /// Output buffer length in bytes.
        capacity: u32,
        /// Input buffer.
        input: &'a [u8],
    },
    /// Cancel a pending request.
    Cancel {
        /// Its id.
        id: u32,
    },
    /// Close a handle.
    Close {
        /// Handle from an `Open` reply.
        handle: u64,
    },
    /// The client has gone.
    ClientGone,
    /// Service control.
    Service {
        /// What to do.
        op: ServiceOp,
        /// Service name.
        name: &'a str,
    },
    /// Ring-3 program control.
    Program {
        /// What to do.
        op: ProgramOp,
        /// Program name.
        name: &'a str,
        /// Argument text, empty when there is none.
        argument: &'a str,
    },
    /// Text command to the machine.
    Machine {
        /// The command line.
        command: &'a str,
    },
    /// Answer.
    Reply {
        /// NTSTATUS.
        status: u32,
        /// `IO_STATUS_BLOCK.Information`, a handle, a state, a process id.
        information: u64,
        /// Output bytes.
        output: &'a [u8],
    },
}

impl<'a> Message<'a> {
    /// The frame kind that carries this message.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Hello { .. } => Kind::Hello,
            Self::Open { .. } => Kind::Open,
            Self::Ioctl { .. } => Kind::Ioctl,
            Self::Cancel { .. } => Kind::Cancel,
            Self::Close { .. } => Kind::Close,
            Self::ClientGone => Kind::ClientGone,
            Self::Service { .. } => Kind::Service,
            Self::Program { .. } => Kind::Program,
            Self::Machine { .. } => Kind::Machine,
            Self::Reply { .. } => Kind::Reply,
        }
    }

    /// Reads the payload of a frame of this kind; `None` if it is too short, not
    /// UTF-8 where text belongs, or names an unknown operation.
    #[must_use]
    pub fn parse(kind: Kind, payload: &'a [u8]) -> Option<Self> {
        let mut rest = Reader(payload);
        Some(match kind {
            Kind::Hello => Self::Hello {
                version: rest.u32()?,
                cpus: rest.u32()?,
                text: rest.text()?,
            },
            Kind::Open => Self::Open {
                access: rest.u32()?,
                path: rest.text()?,
            },
            Kind::Ioctl => Self::Ioctl {
                handle: rest.u64()?,
                code: rest.u32()?,
                capacity: rest.u32()?,
                input: rest.0,
            },
            Kind::Cancel => Self::Cancel { id: rest.u32()? },
            Kind::Close => Self::Close {
                handle: rest.u64()?,
            },
            Kind::ClientGone => Self::ClientGone,
            Kind::Service => {
                let op = match rest.u8()? {
                    1 => ServiceOp::Start,
                    2 => ServiceOp::Stop,
                    3 => ServiceOp::Query,
                    _ => return None,
                };
                Self::Service {
                    op,
                    name: rest.text()?,
                }
            }
            Kind::Program => {
                let op = match rest.u8()? {
                    1 => ProgramOp::Run,
                    2 => ProgramOp::Stop,
                    _ => return None,
                };
                let text = rest.text()?;
                let (name, argument) = text.split_once('\0').unwrap_or((text, ""));
                Self::Program { op, name, argument }
            }
            Kind::Machine => Self::Machine {
                command: rest.text()?,
            },
            Kind::Reply => {
                let status = rest.u32()?;
                let _reserved = rest.u32()?;
                Self::Reply {
                    status,
                    information: rest.u64()?,
                    output: rest.0,
                }
            }
        })
    }

    /// Writes the payload to the start of `buffer` and returns its length, or
    /// `None` if the buffer is too short.
    pub fn write(&self, buffer: &mut [u8]) -> Option<usize> {
        let mut out = Writer { buffer, length: 0 };
        match *self {
            Self::Hello {
                version,
                cpus,
                text,
            } => {
                out.put(&version.to_le_bytes())?;
                out.put(&cpus.to_le_bytes())?;
                out.put(text.as_bytes())?;
            }
            Self::Open { access, path } => {
                out.put(&access.to_le_bytes())?;
                out.put(path.as_bytes())?;
            }
            Self::Ioctl {
                handle,
                code,
                capacity,
                input,
            } => {
                out.put(&handle.to_le_bytes())?;
                out.put(&code.to_le_bytes())?;
                out.put(&capacity.to_le_bytes())?;
                out.put(input)?;
            }
            Self::Cancel { id } => out.put(&id.to_le_bytes())?,
            Self::Close { handle } => out.put(&handle.to_le_bytes())?,
            Self::ClientGone => {}
            Self::Service { op, name } => {
                out.put(&[op as u8])?;
                out.put(name.as_bytes())?;
            }
            Self::Program { op, name, argument } => {
                out.put(&[op as u8])?;
                out.put(name.as_bytes())?;
                if !argument.is_empty() {
                    out.put(&[0])?;
                    out.put(argument.as_bytes())?;
                }
            }
            Self::Machine { command } => out.put(command.as_bytes())?,
            Self::Reply {
                status,
                information,
                output,
            } => {
                out.put(&status.to_le_bytes())?;
                out.put(&0u32.to_le_bytes())?;
                out.put(&information.to_le_bytes())?;
                out.put(output)?;
            }
        }
        Some(out.length)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        core::str::from_utf8(core::mem::take(&mut self.0)).ok()
    }
}

struct Writer<'a> {
    buffer: &'a mut [u8],
    length: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.length.checked_add(bytes.len())?;
        self.buffer
            .get_mut(self.length..end)?
            .copy_from_slice(bytes);
        self.length = end;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Message<'static>; 11] = [
        Message::Hello {
            version: 1,
            cpus: 4,
            text: "MiniNT",
        },
        Message::Open {
            access: 0xC000_0000,
            path: r"\\.\hvdetect",
        },
        Message::Ioctl {
            handle: 0x1_0000_0002,
            code: 0x22_2004,
            capacity: 4096,
            input: &[1, 2, 3],
        },
        Message::Cancel { id: 7 },
        Message::Close { handle: 4 },
        Message::ClientGone,
        Message::Service {
            op: ServiceOp::Query,
            name: "hvdetect",
        },
        Message::Program {
            op: ProgramOp::Run,
            name: "jit",
            argument: "100",
        },
        Message::Program {
            op: ProgramOp::Stop,
            name: "jit",
            argument: "",
        },
        Message::Machine {
            command: "shutdown 0",
        },
        Message::Reply {
            status: 0xC000_0120,
            information: 4,
            output: &[9; 5],
        },
    ];

    #[test]
    fn every_message_survives_the_wire() {
        for message in ALL {
            let mut buffer = [0; 64];
            let length = message.write(&mut buffer).expect("fits");
            assert_eq!(
                Message::parse(message.kind(), &buffer[..length]),
                Some(message)
            );
        }
    }

    #[test]
    fn a_reply_has_the_documented_layout() {
        let mut buffer = [0xFF; 64];
        let length = Message::Reply {
            status: 0xC000_0034,
            information: 2,
            output: b"!",
        }
        .write(&mut buffer);
        assert_eq!(length, Some(17));
        assert_eq!(&buffer[..17], b"\x34\0\0\xC0\0\0\0\0\x02\0\0\0\0\0\0\0!");
    }

    #[test]
    fn cut_fixed_parts_and_unknown_operations_are_refused() {
        for (message, fixed) in ALL.into_iter().zip([8, 4, 16, 4, 8, 0, 1, 1, 1, 0, 16]) {
            let mut buffer = [0; 64];
            let length = message.write(&mut buffer).expect("fits");
            for cut in 0..fixed {
                assert_eq!(
                    Message::parse(message.kind(), &buffer[..cut]),
                    None,
                    "{message:?} cut to {cut}"
                );
                assert_eq!(message.write(&mut buffer[..cut].to_owned()), None);
            }
            assert!(length >= fixed);
        }
        assert_eq!(Message::parse(Kind::Service, b"\x09x"), None);
        assert_eq!(Message::parse(Kind::Program, b"\x00x"), None);
        assert_eq!(Message::parse(Kind::Machine, b"\xFF\xFE"), None);
    }

    extern crate std;
    use std::borrow::ToOwned;
}
