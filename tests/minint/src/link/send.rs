//! The sending side: a queue of whole frames, and the thread that writes them.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use lab_link::{Frame, HEADER_LENGTH, Message, encode};
use wdk_standin::wdk_sys::PVOID;

use super::port;
use crate::ex::event::{Event, sleep_ms};
use crate::ex::nt;
use crate::ex::work::start_thread;
use crate::ke::spinlock::SpinLock;

static QUEUE: SpinLock<VecDeque<Vec<u8>>> = SpinLock::new(VecDeque::new());
static UNSENT: AtomicUsize = AtomicUsize::new(0);
static WAKE: AtomicPtr<Event> = AtomicPtr::new(core::ptr::null_mut());

/// Starts the writing thread. Once.
pub(super) fn start() {
    let event = Box::leak(Event::new(nt::SYNCHRONIZATION_EVENT));
    WAKE.store(core::ptr::from_mut(event), Ordering::Release);
    let _ = start_thread(write, core::ptr::null_mut());
}

fn wake<'a>() -> Option<&'a Event> {
    let event = WAKE.load(Ordering::Acquire);
    // SAFETY: leaked by `start`, or NULL before.
    unsafe { event.as_ref() }
}

/// Queues a message. IRQL at most DISPATCH_LEVEL.
pub(super) fn message(client: u32, id: u32, message: &Message<'_>) {
    let extra = match message {
        Message::Reply { output, .. } => output.len(),
        Message::Hello { text, .. } => text.len(),
        _ => 0,
    };
    let mut payload = vec![0; 16 + extra];
    let Some(length) = message.write(&mut payload) else {
        return;
    };
    let frame = Frame {
        kind: message.kind(),
        client,
        id,
        payload: &payload[..length],
    };
    let mut bytes = vec![0; HEADER_LENGTH + length];
    if encode(&frame, &mut bytes).is_err() {
        // An answer beyond 1 MiB cannot be sent; the host must not wait for it.
        crate::log!("link: an answer of {length} bytes is too long");
        return;
    }
    let _ = UNSENT.fetch_add(1, Ordering::SeqCst);
    QUEUE.lock().push_back(bytes);
    if let Some(event) = wake() {
        event.set();
    }
}

unsafe extern "C" fn write(_context: PVOID) {
    loop {
        let next = QUEUE.lock().pop_front();
        match next {
            Some(bytes) => {
                port::write(&bytes);
                let _ = UNSENT.fetch_sub(1, Ordering::SeqCst);
            }
            None => {
                if let Some(event) = wake() {
                    event.wait();
                }
            }
        }
    }
}

/// Waits for the queue to empty.
pub(super) fn flush() {
    while UNSENT.load(Ordering::SeqCst) != 0 {
        sleep_ms(1);
    }
    port::drain();
}
