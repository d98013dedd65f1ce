//! The broker: one serial line, many clients.
//!
//! The guest's second serial line is one byte stream with frames of `lab-link`.
//! The broker owns the host's end. It listens on a loopback port; each TCP
//! connection is one client, speaks the same frames, and is told apart on the
//! line by the number that the broker writes into the client field. Replies go
//! to the client whose number they carry. A connection that ends becomes a
//! `ClientGone` frame, so that the guest closes what it held.
//!
//! One thread reads the serial line and one each connection; the serial line's
//! write half and the table of clients each have a lock, never held together
//! for longer than a write.

use anyhow::{Context, Result};
use lab_link::{Decoder, Frame, HEADER_LENGTH, Kind, MAX_PAYLOAD, Message, encode};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What the guest said when it was ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Version of the link.
    pub(crate) version: u32,
    /// Running processors.
    pub(crate) cpus: u32,
    /// Name and build.
    pub(crate) text: String,
}

#[derive(Debug, Default)]
struct State {
    hello: Option<Hello>,
    closed: bool,
    clients: HashMap<u32, TcpStream>,
    next: u32,
}

#[derive(Debug)]
struct Shared {
    serial: Mutex<TcpStream>,
    state: Mutex<State>,
    changed: Condvar,
}

/// The host's end of the device link. Dropping it closes every connection.
#[derive(Debug)]
pub(crate) struct Broker {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Broker {
    /// Takes over the serial line and starts to listen.
    pub(crate) fn start(serial: TcpStream) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind the broker")?;
        let address = listener.local_addr()?;
        let reader = serial.try_clone()?;
        let shared = Arc::new(Shared {
            serial: Mutex::new(serial),
            state: Mutex::new(State {
                next: 1,
                ..State::default()
            }),
            changed: Condvar::new(),
        });
        let for_serial = Arc::clone(&shared);
        thread::spawn(move || for_serial.read_serial(reader));
        let for_clients = Arc::clone(&shared);
        thread::spawn(move || for_clients.accept(&listener));
        Ok(Self { shared, address })
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The guest's greeting, once it came; `None` when `limit` passes first or
    /// `gave_up` says that there is no point in waiting.
    pub(crate) fn wait_for_hello(
        &self,
        limit: Duration,
        gave_up: impl Fn() -> bool,
    ) -> Option<Hello> {
        let end = Instant::now() + limit;
        let mut state = self.shared.state();
        loop {
            if let Some(hello) = &state.hello {
                return Some(hello.clone());
            }
            if state.closed || Instant::now() >= end || gave_up() {
                return None;
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, Duration::from_millis(50))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Ends every connection: whoever waits for a reply learns that none comes.
    pub(crate) fn close(&self) {
        self.shared.close();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.close();
        // The listening thread sleeps in accept; a last connection wakes it.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for stream in state.clients.values() {
            drop(stream.shutdown(Shutdown::Both));
        }
        state.clients.clear();
        drop(state);
        let serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        drop(serial.shutdown(Shutdown::Both));
        self.changed.notify_all();
    }

    fn send_to_guest(&self, frame: &Frame<'_>) {
        if let Some(bytes) = bytes_of(frame) {
            let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
            // A line that takes no more ends in the thread that reads it.
            drop(serial.write_all(&bytes));
        }
    }

    fn read_serial(&self, mut serial: TcpStream) {
        let mut frames = FrameReader::new();
        while let Some(()) = frames.fill(&mut serial) {
            frames.each(|frame| self.deliver(frame));
        }
        self.close();
    }

    fn deliver(&self, frame: &Frame<'_>) {
        if let Some(Message::Hello {
            version,
            cpus,
            text,
        }) = Message::parse(frame.kind, frame.payload)
        {
            self.state().hello = Some(Hello {
                version,
                cpus,
                text: text.to_owned(),
            });
            self.changed.notify_all();
            return;
        }
        let stream = self
            .state()
            .clients
            .get(&frame.client)
            .and_then(|stream| stream.try_clone().ok());
        if let (Some(mut stream), Some(bytes)) = (stream, bytes_of(frame)) {
            // A client that does not read is the client's loss.
            drop(stream.write_all(&bytes));
        }
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            drop(stream.set_nodelay(true));
            drop(stream.set_write_timeout(Some(Duration::from_secs(10))));
            let Ok(writer) = stream.try_clone() else {
                continue;
            };
            let number = {
                let mut state = self.state();
                if state.closed {
                    return;
                }
                let number = state.next;
                state.next += 1;
                drop(state.clients.insert(number, writer));
                number
            };
            let shared = Arc::clone(&self);
            thread::spawn(move || shared.serve(number, stream));
        }
    }

    fn serve(&self, number: u32, mut stream: TcpStream) {
        let mut frames = FrameReader::new();
        while let Some(()) = frames.fill(&mut stream) {
            frames.each(|frame| {
                self.send_to_guest(&Frame {
                    client: number,
                    ..*frame
                });
            });
        }
        let known = self.state().clients.remove(&number).is_some();
        if known {
            self.send_to_guest(&Frame {
                kind: Kind::ClientGone,
                client: number,
                id: 0,
                payload: &[],
            });
        }
    }
}

/// A decoder with the buffer that it is fed from.
pub(crate) struct FrameReader {
    decoder: Decoder<Vec<u8>>,
    buffer: Vec<u8>,
    filled: usize,
}

impl FrameReader {
    /// An empty reader, for payloads of any permitted size.
    pub(crate) fn new() -> Self {
        Self {
            decoder: Decoder::new(vec![0; HEADER_LENGTH + MAX_PAYLOAD]),
            buffer: vec![0; 1 << 16],
            filled: 0,
        }
    }

    /// Waits for bytes; `None` at the end of the stream.
    pub(crate) fn fill(&mut self, stream: &mut TcpStream) -> Option<()> {
        loop {
            match stream.read(&mut self.buffer) {
                Ok(0) => return None,
                Ok(count) => {
                    self.filled = count;
                    return Some(());
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// Calls `act` with every frame that is complete by now.
    pub(crate) fn each(&mut self, mut act: impl FnMut(&Frame<'_>)) {
        let mut rest = &self.buffer[..self.filled];
        loop {
            let taken = self.decoder.feed(rest);
            rest = &rest[taken..];
            while let Some(frame) = self.decoder.next_frame() {
                act(&frame);
            }
            if rest.is_empty() {
                break;
            }
        }
        self.filled = 0;
    }
}

/// A frame's bytes; `None` if its payload is too long for the link.
pub(crate) fn bytes_of(frame: &Frame<'_>) -> Option<Vec<u8>> {
    let mut bytes = vec![0; HEADER_LENGTH + frame.payload.len()];
    encode(frame, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::client::Client;
    use super::*;

    /// A guest in a thread: greets, answers each Machine command with its text
    /// and the client's number, and notes which clients have gone.
    fn guest(mut line: TcpStream, gone: &Mutex<Vec<u32>>) {
        let mut payload = [0; 256];
        let length = Message::Hello {
            version: 1,
            cpus: 2,
            text: "guest",
        }
        .write(&mut payload)
        .expect("fits");
        let hello = bytes_of(&Frame {
            kind: Kind::Hello,
            client: 0,
            id: 0,
            payload: &payload[..length],
        })
        .expect("fits");
        line.write_all(b"noise before the first frame")
            .expect("write");
        line.write_all(&hello).expect("write");
        let mut frames = FrameReader::new();
        while let Some(()) = frames.fill(&mut line) {
            let mut answers = Vec::new();
            frames.each(|frame| match Message::parse(frame.kind, frame.payload) {
                Some(Message::ClientGone) => {
                    gone.lock().expect("lock").push(frame.client);
                }
                Some(Message::Machine { command }) => {
                    let text = format!("{command}/{}", frame.client);
                    let mut payload = vec![0; 64 + text.len()];
                    let length = Message::Reply {
                        status: 0,
                        information: u64::from(frame.client),
                        output: text.as_bytes(),
                    }
                    .write(&mut payload)
                    .expect("fits");
                    answers.push(
                        bytes_of(&Frame {
                            kind: Kind::Reply,
                            client: frame.client,
                            id: frame.id,
                            payload: &payload[..length],
                        })
                        .expect("fits"),
                    );
                }
                other => panic!("unexpected {other:?}"),
            });
            for answer in answers {
                line.write_all(&answer).expect("write");
            }
        }
    }

    #[test]
    fn clients_are_told_apart_and_their_end_is_told() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let address = listener.local_addr().expect("address");
        let gone = Arc::new(Mutex::new(Vec::new()));
        let gone_in_guest = Arc::clone(&gone);
        let guest = thread::spawn(move || {
            let (line, _) = listener.accept().expect("accept");
            guest(line, &gone_in_guest);
        });
        let broker = Broker::start(TcpStream::connect(address).expect("connect")).expect("broker");
        let hello = broker
            .wait_for_hello(Duration::from_secs(5), || false)
            .expect("hello");
        assert_eq!((hello.cpus, hello.text.as_str()), (2, "guest"));

        let limit = Duration::from_secs(5);
        let first = Client::connect(broker.address(), limit).expect("first");
        let second = Client::connect(broker.address(), limit).expect("second");
        let one = first.machine("hello").expect("reply");
        let two = second.machine("hello").expect("reply");
        assert_ne!(one, two, "each has its own number");
        drop(first);
        let end = Instant::now() + limit;
        while gone.lock().expect("lock").is_empty() {
            assert!(Instant::now() < end, "ClientGone never came");
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(
            second.machine("again").expect("reply").as_bytes()[..5],
            *b"again"
        );
        drop(broker);
        assert!(
            second.machine("x").is_err(),
            "a closed broker answers no more"
        );
        guest.join().expect("guest");
    }
}
