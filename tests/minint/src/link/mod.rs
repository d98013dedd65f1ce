//! The device link: frames on COM2 that ask for opens, IOCTLs, services, programs
//! and machine commands, turned into what they ask for.
//!
//! One thread reads and decodes, one writes; each request runs on a thread of the
//! link's own pool, so a driver that blocks in one holds up no other. A client is
//! a process on the host: when it goes, what it left is cancelled, cleaned up and
//! closed, as at the end of a process. PASSIVE_LEVEL, but for replies, which are
//! queued at up to DISPATCH_LEVEL.

mod client;
mod port;
mod program;
mod send;

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use lab_link::{Decoder, Kind, Message, ServiceOp};
use wdk_standin::wdk_sys::{NTSTATUS, PVOID};

use crate::ex::work::{Pool, start_thread};
use crate::io::driver;
use crate::rtl::status::{STATUS_INVALID_PARAMETER, STATUS_SUCCESS};

/// Threads that serve requests.
static WORKERS: Pool = Pool::new(32);

/// Who asked what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// The host's client number.
    pub(crate) client: u32,
    /// The client's request number.
    pub(crate) id: u32,
}

impl Origin {
    /// Sends the answer. IRQL at most DISPATCH_LEVEL.
    pub(crate) fn reply(self, status: NTSTATUS, information: u64, output: &[u8]) {
        let message = Message::Reply {
            status: status.cast_unsigned(),
            information,
            output,
        };
        send::message(self.client, self.id, &message);
    }
}

/// Starts the link and says hello. PASSIVE_LEVEL, once.
pub(crate) fn start() {
    port::initialize();
    WORKERS.start(4);
    send::start();
    let _ = start_thread(read, core::ptr::null_mut());
    let text = "MiniNT 10.0.".to_string() + &crate::rtl::BUILD.to_string();
    let cpus = crate::ke::cpu_count();
    let hello = Message::Hello {
        version: u32::from(lab_link::VERSION),
        cpus,
        text: &text,
    };
    send::message(0, 0, &hello);
}

unsafe extern "C" fn read(_context: PVOID) {
    let mut decoder = Decoder::new(vec![0u8; lab_link::MAX_PAYLOAD + lab_link::HEADER_LENGTH]);
    let mut bytes = vec![0u8; 4096];
    loop {
        let count = port::read(&mut bytes);
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            let taken = decoder.feed(rest);
            rest = &rest[taken..];
            while let Some(frame) = decoder.next_frame() {
                let origin = Origin {
                    client: frame.client,
                    id: frame.id,
                };
                accept(origin, frame.kind, frame.payload);
            }
        }
    }
}

/// Takes a frame in the order of arrival, and passes it on to a worker.
fn accept(origin: Origin, kind: Kind, payload: &[u8]) {
    match Message::parse(kind, payload) {
        // At once: the request to cancel may occupy the worker that is next.
        Some(Message::Cancel { id }) => client::cancel(origin, id),
        Some(Message::Ioctl { .. }) => {
            client::announce(origin);
            run(origin, kind, payload);
        }
        Some(Message::Hello { .. } | Message::Reply { .. }) => {}
        Some(_) => run(origin, kind, payload),
        None => origin.reply(STATUS_INVALID_PARAMETER, 0, b"malformed request"),
    }
}

fn run(origin: Origin, kind: Kind, payload: &[u8]) {
    let payload: Vec<u8> = payload.to_vec();
    WORKERS.add(Box::new(move || {
        if let Some(message) = Message::parse(kind, &payload) {
            serve(origin, message);
        }
    }));
}

fn serve(origin: Origin, message: Message<'_>) {
    match message {
        Message::Open { access, path } => client::open(origin, access, path),
        Message::Ioctl {
            handle,
            code,
            capacity,
            input,
        } => {
            client::ioctl(origin, handle, code, capacity, input);
        }
        Message::Close { handle } => client::close(origin, handle),
        Message::ClientGone => client::gone(origin),
        Message::Service { op, name } => service(origin, op, name),
        Message::Program { op, name, argument } => program::serve(origin, op, name, argument),
        Message::Machine { command } => {
            let (status, output) = crate::machine::command(origin, command);
            origin.reply(status, 0, output.as_bytes());
        }
        Message::Hello { .. } | Message::Cancel { .. } | Message::Reply { .. } => {}
    }
}

fn service(origin: Origin, op: ServiceOp, name: &str) {
    let outcome = match op {
        ServiceOp::Start => driver::start(name),
        ServiceOp::Stop => driver::stop(name),
        ServiceOp::Query => driver::Outcome {
            status: STATUS_SUCCESS,
            state: driver::query(name),
            text: String::new(),
        },
    };
    origin.reply(
        outcome.status,
        outcome.state as u64,
        outcome.text.as_bytes(),
    );
}

/// Waits until all that was queued has been written. PASSIVE_LEVEL.
pub(crate) fn flush() {
    send::flush();
}
