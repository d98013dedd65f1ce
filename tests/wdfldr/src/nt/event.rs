//! An event for the framework's own waits. Waiting: PASSIVE_LEVEL.

use core::ptr;

use wdk_standin::wdk_sys::{
    _EVENT_TYPE, _KWAIT_REASON, _MODE, KEVENT, LARGE_INTEGER, NTSTATUS,
    ntddk::{KeClearEvent, KeInitializeEvent, KeSetEvent, KeWaitForSingleObject},
};

use super::pinned::Pinned;

pub(crate) struct Event(Pinned<KEVENT>);

impl Event {
    /// Not yet usable: it moves until it lies in its object.
    pub(crate) fn new() -> Self {
        Self(Pinned::new())
    }

    /// Once, where it stays: a notification event, or one that frees one waiter.
    pub(crate) fn initialize(&self, one_waiter: bool, signaled: bool) {
        let kind = if one_waiter {
            _EVENT_TYPE::SynchronizationEvent
        } else {
            _EVENT_TYPE::NotificationEvent
        };
        // SAFETY: nonpaged, and it does not move any more.
        unsafe { KeInitializeEvent(self.0.get(), kind, u8::from(signaled)) };
    }

    pub(crate) fn set(&self) {
        // SAFETY: initialised.
        unsafe { KeSetEvent(self.0.get(), 0, 0) };
    }

    pub(crate) fn clear(&self) {
        // SAFETY: initialised.
        unsafe { KeClearEvent(self.0.get()) };
    }

    /// `timeout`: 100 ns units, negative is relative; `None` waits for ever.
    pub(crate) fn wait(&self, timeout: Option<i64>) -> NTSTATUS {
        let mut due = LARGE_INTEGER::default();
        due.QuadPart = timeout.unwrap_or(0);
        let due = if timeout.is_some() {
            &raw mut due
        } else {
            ptr::null_mut()
        };
        // SAFETY: initialised; the timeout lives across the call.
        unsafe {
            KeWaitForSingleObject(
                self.0.get().cast(),
                _KWAIT_REASON::Executive,
                _MODE::KernelMode as i8,
                0,
                due,
            )
        }
    }
}
