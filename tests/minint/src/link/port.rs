//! COM2: a 16550 UART with its FIFOs on, 115200 8N1.
//!
//! Received bytes go from the interrupt routine into a ring; the reading thread
//! is woken by a DPC. A time limit on its wait covers a lost interrupt. Sending
//! polls. The ring has its own interrupt-safe lock.

use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicPtr, Ordering};

use wdk_standin::wdk_sys::{BOOLEAN, KDPC, PVOID};

use crate::ex::event::Event;
use crate::ex::nt;
use crate::hal::{instr, ioapic};
use crate::ke::spinlock::IrqLock;

const BASE: u16 = 0x2F8;
const DATA: u16 = BASE;
const INTERRUPT_ENABLE: u16 = BASE + 1;
const FIFO_CONTROL: u16 = BASE + 2;
const LINE_CONTROL: u16 = BASE + 3;
const MODEM_CONTROL: u16 = BASE + 4;
const LINE_STATUS: u16 = BASE + 5;
const DATA_READY: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 0x20;
const ALL_SENT: u8 = 0x40;
const FIFO: usize = 16;
const IRQ: u8 = 3;

const RING: usize = 1 << 16;

struct Ring {
    bytes: [u8; RING],
    start: usize,
    length: usize,
}

static RECEIVED: IrqLock<Ring> = IrqLock::new(Ring {
    bytes: [0; RING],
    start: 0,
    length: 0,
});
static ARRIVED: AtomicPtr<Event> = AtomicPtr::new(core::ptr::null_mut());

struct Dpc(UnsafeCell<KDPC>);
// SAFETY: the core serialises its use.
unsafe impl Sync for Dpc {}
static DPC: AtomicPtr<Dpc> = AtomicPtr::new(core::ptr::null_mut());

unsafe extern "C" {
    fn KeInsertQueueDpc(dpc: *mut KDPC, first: PVOID, second: PVOID) -> BOOLEAN;
}

fn input(port: u16) -> u8 {
    // SAFETY: a register of COM2, which is this file's.
    unsafe { instr::inb(port) }
}

fn output(port: u16, value: u8) {
    // SAFETY: a register of COM2, which is this file's.
    unsafe { instr::outb(port, value) }
}

/// Sets the UART up and connects its interrupt. PASSIVE_LEVEL, once.
pub(super) fn initialize() {
    output(LINE_CONTROL, 0x80);
    output(DATA, 1);
    output(INTERRUPT_ENABLE, 0);
    output(LINE_CONTROL, 3);
    // FIFOs on and empty, interrupt at 8 bytes or after a pause.
    output(FIFO_CONTROL, 0x87);
    let event = Box::leak(Event::new(nt::SYNCHRONIZATION_EVENT));
    ARRIVED.store(core::ptr::from_mut(event), Ordering::Release);
    let dpc = Box::leak(Box::new(Dpc(UnsafeCell::new(KDPC::default()))));
    // SAFETY: the new DPC's memory is its own.
    unsafe {
        nt::KeInitializeDpc(dpc.0.get(), deferred as *mut c_void, core::ptr::null_mut());
    }
    DPC.store(core::ptr::from_mut(dpc), Ordering::Release);
    ioapic::connect(IRQ, 0, interrupt);
    // DTR, RTS, and OUT2, which lets the interrupt through.
    output(MODEM_CONTROL, 0x0B);
    output(INTERRUPT_ENABLE, 1);
}

/// Moves what the UART holds into the ring; says whether there was anything.
fn collect() -> bool {
    let mut ring = RECEIVED.lock();
    let mut any = false;
    while ring.length < RING && input(LINE_STATUS) & DATA_READY != 0 {
        let at = (ring.start + ring.length) % RING;
        ring.bytes[at] = input(DATA);
        ring.length += 1;
        any = true;
    }
    any
}

fn interrupt() {
    let _ = collect();
    // SAFETY: leaked by `initialize`, before the interrupt was connected.
    if let Some(dpc) = unsafe { DPC.load(Ordering::Acquire).as_ref() } {
        // SAFETY: initialized there.
        unsafe { KeInsertQueueDpc(dpc.0.get(), core::ptr::null_mut(), core::ptr::null_mut()) };
    }
}

fn arrived<'a>() -> Option<&'a Event> {
    // SAFETY: leaked by `initialize`, or NULL before.
    unsafe { ARRIVED.load(Ordering::Acquire).as_ref() }
}

unsafe extern "C" fn deferred(_dpc: PVOID, _context: PVOID, _first: PVOID, _second: PVOID) {
    if let Some(event) = arrived() {
        event.set();
    }
}

/// Waits for bytes and takes as many as there are and fit. PASSIVE_LEVEL.
pub(super) fn read(target: &mut [u8]) -> usize {
    loop {
        let _ = collect();
        let mut ring = RECEIVED.lock();
        let count = ring.length.min(target.len());
        if count > 0 {
            for slot in &mut target[..count] {
                *slot = ring.bytes[ring.start];
                ring.start = (ring.start + 1) % RING;
            }
            ring.length -= count;
            return count;
        }
        drop(ring);
        if let Some(event) = arrived() {
            let _ = event.wait_ms(100);
        }
    }
}

/// Sends bytes, a FIFO's worth at a time.
pub(super) fn write(bytes: &[u8]) {
    for chunk in bytes.chunks(FIFO) {
        while input(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
            instr::pause();
        }
        for &byte in chunk {
            output(DATA, byte);
        }
    }
}

/// Waits until the last byte is on the line.
pub(super) fn drain() {
    while input(LINE_STATUS) & ALL_SENT == 0 {
        instr::pause();
    }
}
