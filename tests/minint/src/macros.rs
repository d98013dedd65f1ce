//! `log!` and `require!`, usable everywhere in the crate.

/// Writes one line to COM1, with the CPU and the IRQL in front. Any IRQL.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => {
        $crate::hal::serial::log(format_args!($($argument)*))
    };
}

/// Bugchecks with `DRIVER_VERIFIER_DETECTED_VIOLATION`, naming the routine and
/// the rule, unless the condition holds.
#[macro_export]
macro_rules! require {
    ($condition:expr, $api:expr, $($rule:tt)*) => {
        if !$condition {
            $crate::ke::bugcheck::violation($api, format_args!($($rule)*));
        }
    };
}

/// Exports a routine whose implementation learns where the caller returns to:
/// `with_caller!(ExFreePool, free_pool)` with
/// `extern "C" fn free_pool(call: &Call) -> usize`. The stub stores the register
/// arguments into their home area, so that all arguments lie in one row
/// (Microsoft, "x64 calling convention", parameter area).
#[macro_export]
macro_rules! with_caller {
    ($(#[$attribute:meta])* $name:ident, $implementation:path) => {
        $(#[$attribute])*
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            ::core::arch::naked_asm!(
                "mov [rsp + 8], rcx",
                "mov [rsp + 16], rdx",
                "mov [rsp + 24], r8",
                "mov [rsp + 32], r9",
                "mov rcx, rsp",
                "sub rsp, 0x28",
                "call {implementation}",
                "add rsp, 0x28",
                "ret",
                implementation = sym $implementation,
            )
        }
    };
}
