//! The program as a whole, against a driver that is a TCP server.
//!
//! The server speaks the frames of the device link as the lab's broker does and
//! answers with structures of `detector::wire`; what is under test is the real
//! binary: its output, its exit codes, and that it ends when told to.
#![cfg(unix)]

use detector::event::Kind;
use detector::wire::{
    self, EVIDENCE, EvidenceReply, EvidenceRequest, Finding, FindingFlags, Message as _, START,
    STATUS, STOP, StartError, StartFlags, StartReply, StartRequest, State, StatusReply, StopReply,
    StopRequest, VERSION, Vendor, VersionReply, WAIT, WaitFlags, WaitReply, WaitRequest,
};
use lab_link::{Decoder, Frame, Message, ServiceOp, encode};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use zerocopy::{FromZeros, IntoBytes};

const STATUS_NOT_FOUND: u32 = 0xC000_0034;
const STATUS_DENIED: u32 = 0xC000_0022;
const STATUS_INVALID_DEVICE_REQUEST: u32 = 0xC000_0010;
const STATUS_CANCELLED: u32 = 0xC000_0120;
const STATUS_UNSUCCESSFUL: u32 = 0xC000_0001;

/// What the fake driver is and has.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools)] // independent switches
struct World {
    unloaded: bool,
    loadable: bool,
    denied: bool,
    monitoring: bool,
    start_error: u32,
    start_status: u32,
    start_flags: u64,
    protocol: u16,
    message_version: u16,
    knows_nothing: bool,
    findings: Vec<Finding>,
    delivered: u64,
    waits: u64,
    cancels: u64,
    opened: u64,
    closed: u64,
}

struct Driver {
    world: Mutex<World>,
    changed: Condvar,
}

impl Driver {
    fn change<T>(&self, f: impl FnOnce(&mut World) -> T) -> T {
        let result = f(&mut self.world.lock().unwrap());
        self.changed.notify_all();
        result
    }

    /// Waits until the world is so, or fails the test.
    fn until(&self, what: &str, mut is: impl FnMut(&World) -> bool) {
        let world = self.world.lock().unwrap();
        let (world, _) = self
            .changed
            .wait_timeout_while(world, Duration::from_secs(20), |w| !is(w))
            .unwrap();
        drop(world);
        assert!(is(&self.world.lock().unwrap()), "{what}");
    }
}

/// A machine with a driver, and a folder for files.
struct Bench {
    driver: Arc<Driver>,
    address: String,
    folder: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Bench {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let world = World {
            protocol: wire::PROTOCOL,
            message_version: wire::PROTOCOL,
            ..World::default()
        };
        let driver = Arc::new(Driver {
            world: Mutex::new(world),
            changed: Condvar::new(),
        });
        let server = Arc::clone(&driver);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let driver = Arc::clone(&server);
                std::thread::spawn(move || serve(&driver, stream));
            }
        });
        let folder = std::env::temp_dir().join(format!("hvdetect-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Bench {
            driver,
            address,
            folder,
        }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hvdetect"));
        command
            .args(line.split_whitespace())
            .env("HVDETECT_LAB", &self.address)
            .env("XDG_STATE_HOME", &self.folder)
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn spawn(&self, line: &str) -> Child {
        let mut command = self.command(line);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn send(stream: &Mutex<TcpStream>, id: u32, status: u32, information: u64, output: &[u8]) {
    let reply = Message::Reply {
        status,
        information,
        output,
    };
    let mut payload = vec![0; output.len() + 16];
    let length = reply.write(&mut payload).unwrap();
    let frame = Frame {
        kind: reply.kind(),
        client: 7,
        id,
        payload: &payload[..length],
    };
    let mut bytes = vec![0; length + lab_link::HEADER_LENGTH];
    encode(&frame, &mut bytes).unwrap();
    // In two pieces, with a scrap before: the reader must not count on more.
    let mut stream = stream.lock().unwrap();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let _ = stream.write_all(b"\0HV");
    let _ = stream.write_all(first);
    let _ = stream.flush();
    let _ = stream.write_all(second);
}

fn serve(driver: &Arc<Driver>, mut stream: TcpStream) {
    let out = Arc::new(Mutex::new(stream.try_clone().unwrap()));
    let cancelled = Arc::new(Mutex::new(Vec::new()));
    let mut decoder = Decoder::new(vec![0; 1 << 16]);
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        let mut bytes = &buffer[..length];
        while !bytes.is_empty() {
            let taken = decoder.feed(bytes);
            bytes = &bytes[taken..];
            while let Some(frame) = decoder.next_frame() {
                let message = Message::parse(frame.kind, frame.payload).unwrap();
                answer(driver, &out, &cancelled, frame.id, &message);
            }
        }
    }
}

type Cancelled = Arc<Mutex<Vec<u32>>>;

fn answer(
    driver: &Arc<Driver>,
    out: &Arc<Mutex<TcpStream>>,
    cancelled: &Cancelled,
    id: u32,
    message: &Message<'_>,
) {
    match *message {
        Message::Open { path, access } => {
            assert_eq!((path, access), (wire::DEVICE_PATH, 0xC000_0000));
            let status = driver.change(|w| match (w.unloaded, w.denied) {
                (true, _) => STATUS_NOT_FOUND,
                (_, true) => STATUS_DENIED,
                _ => {
                    w.opened += 1;
                    0
                }
            });
            send(out, id, status, 0x44, &[]);
        }
        Message::Service { op, name } => {
            assert_eq!((op, name), (ServiceOp::Start, "hvdetect"));
            let loaded = driver.change(|w| {
                w.unloaded &= !w.loadable;
                !w.unloaded
            });
            send(out, id, 0, if loaded { 4 } else { 0 }, &[]);
        }
        Message::Ioctl {
            handle,
            code,
            capacity,
            input,
        } => {
            assert_eq!(handle, 0x44);
            if code == WAIT {
                wait(driver, out, cancelled, id, input, capacity);
            } else {
                let (status, output) = driver.change(|w| ioctl(w, code, input));
                assert!(output.len() <= capacity as usize);
                send(out, id, status, output.len() as u64, &output);
            }
        }
        Message::Cancel { id: other } => {
            cancelled.lock().unwrap().push(other);
            send(out, id, 0, 0, &[]);
            driver.change(|w| w.cancels += 1);
        }
        Message::Close { .. } => {
            driver.change(|w| w.closed += 1);
            send(out, id, 0, 0, &[]);
        }
        _ => panic!("unexpected {message:?}"),
    }
}

fn ioctl(world: &mut World, code: u32, input: &[u8]) -> (u32, Vec<u8>) {
    if world.knows_nothing {
        return (STATUS_INVALID_DEVICE_REQUEST, Vec::new());
    }
    match code {
        VERSION => {
            assert!(input.is_empty());
            let mut reply = VersionReply::zeroed();
            reply.header.version = world.message_version;
            reply.protocol = world.protocol;
            reply.driver = [1, 2, 3];
            (0, reply.as_bytes().to_vec())
        }
        START => {
            let request: StartRequest = wire::request(input).unwrap();
            world.start_flags = request.flags;
            let mut reply = StartReply::zeroed();
            reply.core = u32::MAX;
            reply.error = match (world.start_error, world.monitoring) {
                (0, true) => StartError::AlreadyStarted as u32,
                (error, _) => error,
            };
            world.monitoring |= reply.error == 0;
            (world.start_status, reply.as_bytes().to_vec())
        }
        STOP => {
            let _: StopRequest = wire::request(input).unwrap();
            let mut reply = StopReply::zeroed();
            reply.core = u32::MAX;
            if !world.monitoring {
                reply.error = StartError::NotStarted as u32;
            }
            world.monitoring = false;
            (0, reply.as_bytes().to_vec())
        }
        STATUS => {
            assert!(input.is_empty());
            let mut reply = StatusReply::zeroed();
            reply.state = state(world);
            reply.vendor = Vendor::Intel as u32;
            reply.cores = 4;
            reply.exits[48] = 99;
            reply.accounts = accounts(world);
            (0, reply.as_bytes().to_vec())
        }
        EVIDENCE => {
            let request: EvidenceRequest = wire::request(input).unwrap();
            let mut reply = EvidenceReply::zeroed();
            reply.seq = request.seq;
            if request.seq % 2 == 1 {
                reply.available = 1;
                reply.page = page();
            }
            (0, reply.as_bytes().to_vec())
        }
        _ => (STATUS_INVALID_DEVICE_REQUEST, Vec::new()),
    }
}

fn state(world: &World) -> u32 {
    let state = if world.monitoring {
        State::Monitoring
    } else {
        State::Stopped
    };
    state as u32
}

fn accounts(world: &World) -> wire::Accounts {
    let findings = world.findings.len() as u64;
    wire::Accounts {
        produced: findings + 3,
        findings,
        delivered: world.delivered,
        queued: findings - world.delivered,
        ring_full: 3,
        ..wire::Accounts::default()
    }
}

fn wait(
    driver: &Arc<Driver>,
    out: &Arc<Mutex<TcpStream>>,
    cancelled: &Cancelled,
    id: u32,
    input: &[u8],
    capacity: u32,
) {
    let request: WaitRequest = wire::request(input).unwrap();
    let flags = WaitFlags::from_bits(request.flags).unwrap();
    let room = (capacity as usize - size_of::<WaitReply>()) / size_of::<Finding>();
    driver.change(|w| w.waits += 1);
    let (driver, out) = (Arc::clone(driver), Arc::clone(out));
    let cancelled = Arc::clone(cancelled);
    std::thread::spawn(move || {
        let after = |w: &World| {
            if flags.contains(WaitFlags::UNDELIVERED) {
                request.after_seq.max(w.delivered)
            } else {
                request.after_seq
            }
        };
        let mut world = driver.world.lock().unwrap();
        loop {
            let first = after(&world);
            let all = world.findings.iter().filter(|f| f.seq > first);
            let waiting = all.clone().count();
            if waiting > 0 || flags.contains(WaitFlags::NO_WAIT) {
                let most = match request.max {
                    0 => room,
                    max => room.min(max as usize),
                };
                let found: Vec<Finding> = all.take(most).copied().collect();
                let mut reply = WaitReply::zeroed();
                reply.count = u32::try_from(found.len()).unwrap();
                reply.state = state(&world);
                reply.remaining = (waiting - found.len()) as u64;
                if let (Some(last), false) = (found.last(), flags.contains(WaitFlags::PEEK)) {
                    world.delivered = world.delivered.max(last.seq);
                }
                reply.accounts = accounts(&world);
                drop(world);
                let mut bytes = reply.as_bytes().to_vec();
                for finding in &found {
                    bytes.extend_from_slice(finding.as_bytes());
                }
                send(&out, id, 0, bytes.len() as u64, &bytes);
                return;
            }
            if cancelled.lock().unwrap().contains(&id) {
                drop(world);
                send(&out, id, STATUS_CANCELLED, 0, &[]);
                return;
            }
            world = driver
                .changed
                .wait_timeout(world, Duration::from_millis(20))
                .unwrap()
                .0;
        }
    });
}

fn page() -> [u8; 4096] {
    let mut page = [0x90; 4096];
    page[0x10..0x12].copy_from_slice(&[0x0f, 0x0b]);
    page
}

fn finding(seq: u64) -> Finding {
    let mut finding = Finding::new_zeroed();
    finding.seq = seq;
    finding.kind = Kind::UnbackedExecution as u16;
    finding.severity = 4;
    finding.count = 1;
    finding.rip = 0xffff_9000_0000_0010;
    finding.gla = finding.rip;
    finding.gpa = 0x5010;
    finding.flags = (FindingFlags::GLA | FindingFlags::EVIDENCE).bits();
    finding.sha256 = Sha256::digest(page()).into();
    finding.actor.present = 1;
    finding.actor.address = finding.rip;
    finding.victim = finding.actor;
    let name = b"ev\x1b[2Jil";
    finding.returns.present = 1;
    finding.returns.address = 1;
    finding.returns.module[..name.len()].copy_from_slice(name);
    finding.returns.module_length = 8;
    finding
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn objects(output: &Output) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap();
    stdout(output).lines().map(parse).collect()
}

#[track_caller]
fn expect(output: &Output, code: i32, message: &str) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(stderr(output).contains(message), "{}", stderr(output));
}

fn interrupt(child: &Child) {
    // The shell's own `kill`: a bare Debian has no program of that name.
    let kill = Command::new("sh")
        .args(["-c", "kill -INT \"$0\"", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
}

#[test]
fn without_a_driver_the_exit_code_is_4_and_says_what_to_do() {
    let bench = Bench::new("absent");
    for verb in ["start", "stop", "status", "watch"] {
        let none = bench.command(verb).env_remove("HVDETECT_LAB").output();
        expect(&none.unwrap(), 4, "HVDETECT_LAB");
        let refused = bench
            .command(verb)
            .env("HVDETECT_LAB", "127.0.0.1:1")
            .output();
        expect(&refused.unwrap(), 4, "cargo lab run");
        let nonsense = bench.command(verb).env("HVDETECT_LAB", "nowhere").output();
        expect(&nonsense.unwrap(), 4, "nowhere");
    }
    bench.driver.change(|w| w.unloaded = true);
    expect(&bench.run("status"), 4, "not loaded");
    expect(&bench.run("start"), 4, "could not be loaded");
    assert!(bench.run("status").stdout.is_empty());
}

#[test]
fn start_stop_and_status() {
    let bench = Bench::new("startstop");
    expect(&bench.run("stop"), 1, "does not run");
    let started = bench.run("start");
    expect(&started, 0, "Monitoring 4 cores");
    assert!(started.stdout.is_empty());
    expect(&bench.run("start"), 1, "runs already");
    let status = bench.run("status --json");
    let status = &objects(&status)[0];
    assert_eq!(status["state"], "monitoring");
    assert_eq!(status["coverage"], "full");
    assert_eq!(status["exits"]["ept-violation"], 99);
    assert_eq!(status["dropped"]["ring_full"], 3);
    assert_eq!(status["driver"], "1.2.3");
    for field in [
        "vendor",
        "cores",
        "features",
        "pages",
        "table_bytes",
        "findings",
    ] {
        assert!(!status[field].is_null(), "{field}");
    }
    assert!(stdout(&bench.run("status")).contains("ept-violation"));
    expect(&bench.run("stop"), 0, "Stopped");
    assert_eq!(objects(&bench.run("status --json"))[0]["state"], "stopped");
    bench
        .driver
        .until("every handle is closed", |w| w.opened == w.closed);
}

#[test]
fn start_loads_the_driver_and_passes_the_labs_switches() {
    let bench = Bench::new("load");
    bench
        .driver
        .change(|w| (w.unloaded, w.loadable) = (true, true));
    let switches = "--no-mtf --no-mbec --no-next-rip --no-flush-by-asid";
    expect(&bench.run(&format!("start {switches}")), 0, "Monitoring");
    let flags = bench.driver.change(|w| w.start_flags);
    assert_eq!(StartFlags::from_bits(flags), Some(StartFlags::all()));
}

#[test]
fn an_unfit_machine_is_5_with_its_sentence_however_the_driver_completes() {
    let bench = Bench::new("unfit");
    bench
        .driver
        .change(|w| w.start_error = StartError::NoEpt as u32);
    expect(&bench.run("start"), 5, "no nested page tables");
    bench.driver.change(|w| w.start_status = 0xC000_00BB);
    expect(&bench.run("start"), 5, "no nested page tables");
    bench.driver.change(|w| w.start_error = 999);
    expect(&bench.run("start"), 6, "do not match");
}

#[test]
fn denied_is_3_and_another_version_is_6() {
    let bench = Bench::new("denied");
    bench.driver.change(|w| w.denied = true);
    expect(&bench.run("status"), 3, "administrators");
    bench.driver.change(|w| (w.denied, w.protocol) = (false, 9));
    expect(&bench.run("status"), 6, "protocol 9");
    bench
        .driver
        .change(|w| (w.protocol, w.message_version) = (wire::PROTOCOL, wire::PROTOCOL + 1));
    expect(&bench.run("status"), 6, "protocol version");
    bench.driver.change(|w| w.knows_nothing = true);
    expect(&bench.run("status"), 6, "does not know");
}

#[test]
fn usage_is_2() {
    let bench = Bench::new("usage");
    for line in [
        "",
        "fly",
        "watch --count x",
        "show",
        "watch --log a --no-log",
    ] {
        assert_eq!(bench.run(line).status.code(), Some(2), "{line}");
    }
    assert_eq!(bench.run("--help").status.code(), Some(0));
    let completions = bench.run("completions bash");
    assert!(stdout(&completions).contains("hvdetect"));
}

#[test]
fn watch_takes_what_waits_then_what_comes_and_logs_it() {
    let bench = Bench::new("watch");
    bench
        .driver
        .change(|w| w.findings = (1..=40).map(finding).collect());
    let mut child = bench.spawn("watch --json --count 42 --evidence pages");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for seq in 1..=40 {
        let object: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(object["seq"], seq);
    }
    // Each line is there before the next finding: nothing sits in a buffer.
    for seq in 41..=42 {
        bench.driver.change(|w| w.findings.push(finding(seq)));
        let line = lines.next().unwrap().unwrap();
        let object: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["seq"], seq);
        assert_eq!(object["kind"], "unbacked-execution");
        assert!(!line.contains('\u{1b}') && line.contains("\\u001b"));
        assert!(object["actor"]["module"].is_null() && object["old"].is_null());
        assert_eq!(object["rip"], "0xffff900000000010");
        let log = std::fs::read_to_string(bench.folder.join("hvdetect/findings.jsonl")).unwrap();
        assert_eq!(
            log.lines().last(),
            Some(line.as_str()),
            "logged before printed"
        );
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let name = format!("{}.bin", record_hash());
    let saved = std::fs::read(bench.folder.join("pages").join(name)).unwrap();
    assert_eq!(saved, page());

    let log = bench.run("log --json --exit-code");
    assert_eq!(log.status.code(), Some(10));
    assert_eq!(objects(&log).len(), 42);
    assert!(!stdout(&bench.run("log")).contains('\u{1b}'));
}

fn record_hash() -> String {
    format!("{:x}", Sha256::digest(page()))
}

#[test]
fn watch_shows_a_finding_once_unless_all_are_asked_for() {
    let bench = Bench::new("once");
    bench
        .driver
        .change(|w| w.findings = vec![finding(1), finding(2)]);
    let count = |line: &str| objects(&bench.run(line)).len();
    assert_eq!(count("watch --json --timeout 0.3 --no-log --count 1"), 1);
    assert_eq!(count("watch --json --timeout 0.3 --no-log"), 1);
    assert_eq!(count("watch --json --timeout 0.3 --no-log"), 0);
    assert_eq!(count("watch --json --timeout 0.3 --no-log --all"), 2);
    assert!(!bench.folder.join("hvdetect").exists(), "--no-log");
}

#[test]
fn watch_ends_at_its_timeout_and_cancels_its_request() {
    let bench = Bench::new("timeout");
    let begin = Instant::now();
    let output = bench.run("watch --timeout 0.5 --exit-code");
    expect(&output, 0, "0 findings");
    assert!(stderr(&output).contains("3 events were dropped"));
    assert!(stderr(&output).contains("does not run"));
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(10));
    bench
        .driver
        .until("cancelled and closed", |w| w.cancels == 1 && w.closed == 1);
    bench.driver.change(|w| w.findings = vec![finding(1)]);
    expect(
        &bench.run("watch --timeout 0.5 --exit-code"),
        10,
        "1 finding",
    );
}

#[test]
fn watch_ends_cleanly_on_ctrl_c() {
    let bench = Bench::new("ctrlc");
    let child = bench.spawn("watch");
    bench.driver.until("it waits", |w| w.waits == 2);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    expect(&output, 0, "0 findings");
    bench
        .driver
        .until("cancelled and closed", |w| w.cancels == 1 && w.closed == 1);
}

#[test]
fn watch_says_so_when_the_machine_goes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let output = Command::new(env!("CARGO_BIN_EXE_hvdetect"))
        .args(["status"])
        .env("HVDETECT_LAB", address)
        .output()
        .unwrap();
    server.join().unwrap();
    expect(&output, 4, "gone");
}

#[test]
fn a_failed_request_is_1_with_its_number() {
    let bench = Bench::new("status");
    bench
        .driver
        .change(|w| w.start_status = STATUS_UNSUCCESSFUL);
    expect(&bench.run("start"), 1, "0xc0000001");
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let bench = Bench::new("pipe");
    bench
        .driver
        .change(|w| w.findings = (1..=200).map(finding).collect());
    bench.driver.change(|w| w.monitoring = true);
    let mut child = bench.spawn("watch --json --no-log --count 200");
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
}

#[test]
fn the_log_tolerates_a_torn_last_line() {
    let bench = Bench::new("torn");
    bench.driver.change(|w| w.findings = vec![finding(1)]);
    expect(&bench.run("watch --count 1 --log l.jsonl"), 0, "1 finding");
    let path = bench.folder.join("l.jsonl");
    let mut text = std::fs::read_to_string(&path).unwrap();
    let half = text[..text.len() / 2].to_owned();
    text.push_str(&half);
    std::fs::write(&path, text).unwrap();
    let log = bench.run("log --json --log l.jsonl");
    expect(&log, 0, "torn");
    assert_eq!(objects(&log).len(), 1);
    expect(&bench.run("log --log missing.jsonl"), 1, "missing.jsonl");
}

#[test]
fn show_disassembles_from_the_driver_and_from_files() {
    let bench = Bench::new("show");
    bench
        .driver
        .change(|w| w.findings = vec![finding(1), finding(2)]);
    let text = stdout(&bench.run("show 1"));
    assert!(text.contains("ffff900000000010  0f0b"), "{text}");
    assert!(
        text.contains("ud2") && text.contains("  010  0f 0b 90"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'));
    // Looking does not take it away from `watch`.
    assert_eq!(bench.driver.change(|w| w.delivered), 0);
    expect(&bench.run("show 2"), 0, "not kept any more");
    expect(&bench.run("show 3"), 1, "no finding 3");

    let line = "watch --count 2 --log l.jsonl --evidence pages";
    expect(&bench.run(line), 0, "page of finding 2 is not kept");
    bench.driver.change(|w| w.unloaded = true);
    let shown = bench.run("show 2 --log l.jsonl --evidence pages --json");
    let object = &objects(&shown)[0];
    assert_eq!(object["disassembly"][0]["instructions"][0]["text"], "ud2");
    assert_eq!(object["page"].as_str().map(str::len), Some(8192));
    spoil(
        &bench
            .folder
            .join("pages")
            .join(format!("{}.bin", record_hash())),
    );
    let line = "show 1 --log l.jsonl --evidence pages";
    expect(&bench.run(line), 0, "WARNING");
}

fn spoil(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[9] ^= 1;
    std::fs::write(path, bytes).unwrap();
}
