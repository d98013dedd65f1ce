//! Run-down protection: `EX_RUNDOWN_REF`.
//!
//! Bit 0 of the word: run-down is under way; the rest counts references times two.
//! The waiter polls with short sleeps, which the documentation leaves open.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::irql::{APC_LEVEL, DISPATCH_LEVEL, require_irql};
use super::wait;

fn word<'a>(reference: *mut usize, api: &str) -> &'a AtomicUsize {
    require!(
        !reference.is_null() && reference.is_aligned(),
        api,
        "the reference is at {reference:p}"
    );
    // SAFETY: the caller vouches for the EX_RUNDOWN_REF; it is only accessed atomically.
    unsafe { AtomicUsize::from_ptr(reference) }
}

/// `ExInitializeRundownProtection`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExInitializeRundownProtection(reference: *mut usize) {
    word(reference, "ExInitializeRundownProtection").store(0, Ordering::Release);
}

/// `ExReInitializeRundownProtection`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExReInitializeRundownProtection(reference: *mut usize) {
    word(reference, "ExReInitializeRundownProtection").store(0, Ordering::Release);
}

/// `ExAcquireRundownProtection`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExAcquireRundownProtection(reference: *mut usize) -> u8 {
    require_irql(DISPATCH_LEVEL, "ExAcquireRundownProtection");
    let word = word(reference, "ExAcquireRundownProtection");
    let add = |now: usize| (now & 1 == 0).then_some(now + 2);
    u8::from(
        word.fetch_update(Ordering::AcqRel, Ordering::Acquire, add)
            .is_ok(),
    )
}

/// `ExReleaseRundownProtection`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExReleaseRundownProtection(reference: *mut usize) {
    let api = "ExReleaseRundownProtection";
    require_irql(DISPATCH_LEVEL, api);
    let old = word(reference, api).fetch_sub(2, Ordering::AcqRel);
    require!(old >= 2, api, "no reference is held");
}

/// `ExWaitForRundownProtectionRelease`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExWaitForRundownProtectionRelease(reference: *mut usize) {
    let api = "ExWaitForRundownProtectionRelease";
    require_irql(APC_LEVEL, api);
    let word = word(reference, api);
    word.fetch_or(1, Ordering::AcqRel);
    while word.load(Ordering::Acquire) != 1 {
        wait::sleep(10_000);
    }
}

/// `ExRundownCompleted`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExRundownCompleted(reference: *mut usize) {
    word(reference, "ExRundownCompleted").store(1, Ordering::Release);
}
