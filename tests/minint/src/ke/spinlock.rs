//! Locks of the kernel's own Rust data.
//!
//! `SpinLock` raises to DISPATCH_LEVEL while it is held: for data that threads
//! and DPCs share. Interrupts stay on while a processor waits, so it still
//! answers TLB shoot-downs. `IrqLock` turns interrupts off: for data shared with
//! interrupt routines. Under an `IrqLock` nothing may wait for another processor.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

use super::irql::{self, DISPATCH_LEVEL};
use crate::hal::instr;

/// Data under a lock that raises to DISPATCH_LEVEL.
#[derive(Debug)]
pub struct SpinLock<T> {
    held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands the value to one processor at a time.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// A free lock.
    pub const fn new(value: T) -> Self {
        Self {
            held: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock; IRQL at most DISPATCH_LEVEL.
    #[track_caller]
    pub fn lock(&self) -> SpinGuard<'_, T> {
        irql::require_irql(DISPATCH_LEVEL, "SpinLock::lock");
        let old = irql::raise(DISPATCH_LEVEL);
        acquire(&self.held);
        SpinGuard { lock: self, old }
    }

    /// The value, whoever holds the lock: for bugchecks and nothing else.
    pub fn peek(&self) -> *const T {
        self.value.get()
    }
}

/// Access to the data of a [`SpinLock`].
#[derive(Debug)]
pub struct SpinGuard<'a, T> {
    lock: &'a SpinLock<T>,
    old: u8,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.held.store(false, Ordering::Release);
        irql::lower(self.old);
    }
}

/// Data under a lock that turns interrupts off.
#[derive(Debug)]
pub struct IrqLock<T> {
    held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands the value to one processor at a time.
unsafe impl<T: Send> Sync for IrqLock<T> {}

impl<T> IrqLock<T> {
    /// A free lock.
    pub const fn new(value: T) -> Self {
        Self {
            held: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock; any IRQL, but not in an NMI.
    pub fn lock(&self) -> IrqGuard<'_, T> {
        let were_on = instr::cli();
        acquire(&self.held);
        IrqGuard {
            lock: self,
            were_on,
        }
    }
}

/// Access to the data of an [`IrqLock`].
#[derive(Debug)]
pub struct IrqGuard<'a, T> {
    lock: &'a IrqLock<T>,
    were_on: bool,
}

impl<T> Deref for IrqGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for IrqGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for IrqGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.held.store(false, Ordering::Release);
        if self.were_on {
            // SAFETY: interrupts were on when the lock was taken.
            unsafe { instr::sti() };
        }
    }
}

fn acquire(held: &AtomicBool) {
    while held
        .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        while held.load(Ordering::Relaxed) {
            instr::pause();
        }
    }
}
