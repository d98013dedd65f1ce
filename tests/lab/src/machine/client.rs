//! A client of the broker, for the lab's own requests: services, programs and
//! commands to the machine. One request at a time.

use super::broker::{FrameReader, bytes_of};
use anyhow::{Context, Result, bail};
use lab_link::{Frame, Message, ProgramOp, ServiceOp};
use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A request in a few words: its payload may be long.
fn name(message: &Message<'_>) -> String {
    match message {
        Message::Ioctl { code, input, .. } => {
            format!("Ioctl {code:#x} with {} bytes", input.len())
        }
        other => format!("{other:?}"),
    }
}

/// One connection to the broker.
pub(crate) struct Client {
    stream: TcpStream,
    frames: RefCell<FrameReader>,
    next: Cell<u32>,
}

/// What a request was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// NTSTATUS.
    pub(crate) status: u32,
    /// Handle, state, process id or exit code.
    pub(crate) information: u64,
    /// Output bytes.
    pub(crate) output: Vec<u8>,
}

impl Client {
    /// Connects; no reply may take longer than `limit`.
    pub(crate) fn connect(address: SocketAddr, limit: Duration) -> Result<Self> {
        let stream = TcpStream::connect(address).context("connect to the broker")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        Ok(Self {
            stream,
            frames: RefCell::new(FrameReader::new()),
            next: Cell::new(1),
        })
    }

    /// Sends one request and waits for its reply.
    pub(crate) fn request(&self, message: &Message<'_>) -> Result<Reply> {
        let id = self.next.replace(self.next.get() + 1);
        let mut payload = vec![0; 64 * 1024];
        let length = message.write(&mut payload).context("request too long")?;
        let bytes = bytes_of(&Frame {
            kind: message.kind(),
            client: 0,
            id,
            payload: &payload[..length],
        })
        .context("request too long")?;
        (&self.stream)
            .write_all(&bytes)
            .context("the machine is gone")?;
        let mut stream = self.stream.try_clone()?;
        let mut frames = self.frames.borrow_mut();
        loop {
            if frames.fill(&mut stream).is_none() {
                bail!("no reply from the machine to {}", name(message));
            }
            let mut found = None;
            frames.each(|frame| {
                if frame.id == id
                    && let Some(Message::Reply {
                        status,
                        information,
                        output,
                    }) = Message::parse(frame.kind, frame.payload)
                {
                    found = Some(Reply {
                        status,
                        information,
                        output: output.to_vec(),
                    });
                }
            });
            if let Some(reply) = found {
                return Ok(reply);
            }
        }
    }

    /// Starts a service; the error names the status.
    pub(crate) fn start_service(&self, name: &str) -> Result<()> {
        self.service(ServiceOp::Start, name).map(drop)
    }

    /// Stops a service.
    pub(crate) fn stop_service(&self, name: &str) -> Result<()> {
        self.service(ServiceOp::Stop, name).map(drop)
    }

    fn service(&self, op: ServiceOp, name: &str) -> Result<u64> {
        let reply = self.request(&Message::Service { op, name })?;
        if reply.status != 0 {
            let text = String::from_utf8_lossy(&reply.output);
            bail!(
                "{} service {name}: NTSTATUS {:#010x}{}{}",
                match op {
                    ServiceOp::Start => "start",
                    ServiceOp::Stop => "stop",
                    ServiceOp::Query => "query",
                },
                reply.status,
                if text.is_empty() { "" } else { ": " },
                text
            );
        }
        Ok(reply.information)
    }

    /// Starts a ring-3 program; the process id.
    pub(crate) fn run_program(&self, name: &str, argument: &str) -> Result<u64> {
        self.program(ProgramOp::Run, name, argument)
    }

    /// Ends a program. A code by which the program says that it saw something
    /// that must not be (`tests/minint/src/ps/programs.rs`) is an error.
    pub(crate) fn stop_program(&self, name: &str) -> Result<()> {
        let code = self.program(ProgramOp::Stop, name, "")?;
        match code {
            0xE1 => bail!("program {name} saw a wrong result or a lost register"),
            0xE2 => bail!("program {name} executed stale code"),
            0xE3 => bail!("program {name} saw time run backwards"),
            _ => Ok(()),
        }
    }

    fn program(&self, op: ProgramOp, name: &str, argument: &str) -> Result<u64> {
        let reply = self.request(&Message::Program { op, name, argument })?;
        if reply.status != 0 {
            bail!(
                "program {name} ({op:?}): NTSTATUS {:#010x} {}",
                reply.status,
                String::from_utf8_lossy(&reply.output)
            );
        }
        Ok(reply.information)
    }

    /// Gives the machine a command; its output.
    pub(crate) fn machine(&self, command: &str) -> Result<String> {
        let reply = self.request(&Message::Machine { command })?;
        let text = String::from_utf8_lossy(&reply.output).into_owned();
        if reply.status != 0 {
            bail!(
                "machine command `{command}`: NTSTATUS {:#010x} {text}",
                reply.status
            );
        }
        Ok(text)
    }
}
