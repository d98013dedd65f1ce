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
