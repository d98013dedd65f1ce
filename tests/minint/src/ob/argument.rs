//! Arguments of exports: checked, then borrowed.
//!
//! A driver's pointer argument must be a kernel-half address aligned for what it
//! points to; anything else is a violation that names the export. That the
//! object lives as long as the call is the export's documented contract.
//! Any IRQL; no lock.

/// First address of the kernel half.
const KERNEL_HALF: usize = 0xFFFF_8000_0000_0000;

/// Raises a violation if `pointer` is not a kernel address aligned for `T`.
pub(crate) fn check<T>(pointer: *const T, api: &str) {
    let address = pointer.addr();
    crate::require!(address != 0, api, "a required pointer is NULL");
    crate::require!(
        address >= KERNEL_HALF,
        api,
        "{:#x} is not a kernel address",
        address
    );
    crate::require!(
        address.is_multiple_of(align_of::<T>()),
        api,
        "{:#x} is not aligned to {} bytes",
        address,
        align_of::<T>()
    );
}

/// Checks a pointer argument of the export `$api` and borrows what it points to.
macro_rules! borrow {
    ($pointer:expr, $api:expr) => {{
        let pointer = $pointer;
        $crate::ob::argument::check(pointer.cast_const(), $api);
        // SAFETY: a kernel address aligned for its type, as just checked; the
        // export's contract keeps it valid for the call.
        unsafe { &mut *pointer }
    }};
}

/// Borrows a structure that this kernel made or keeps linked.
macro_rules! own {
    ($pointer:expr) => {{
        let pointer = $pointer;
        // SAFETY: the kernel's own structure, alive while it is linked or
        // referenced, which the caller sees to.
        unsafe { &mut *pointer }
    }};
}

/// Stores an export's result through its out pointer.
macro_rules! put {
    ($pointer:expr, $value:expr, $api:expr) => {{
        let pointer = $pointer;
        $crate::ob::argument::check(pointer.cast_const(), $api);
        let value = $value;
        // SAFETY: a kernel address aligned for its type, as just checked; the
        // export's contract makes it writable.
        unsafe { pointer.write(value) }
    }};
}

pub(crate) use {borrow, own, put};
