//! Names for the emulator's exit reasons: those that `hvdetect status` prints.
//!
//! Intel's are the basic exit reasons (SDM volume 3, appendix "VMX Basic Exit
//! Reasons"), AMD's the exit codes (APM volume 2, appendix "SVM Intercept Exit
//! Codes").

use super::options::Vendor;

/// Reasons that occur below this hypervisor.
const INTEL: [(i32, &str); 14] = [
    (0, "exception-or-nmi"),
    (1, "external-interrupt"),
    (3, "init"),
    (4, "sipi"),
    (8, "nmi-window"),
    (10, "cpuid"),
    (18, "vmcall"),
    (28, "control-register"),
    (31, "rdmsr"),
    (32, "wrmsr"),
    (37, "monitor-trap-flag"),
    (48, "ept-violation"),
    (52, "preemption-timer"),
    (55, "xsetbv"),
];

/// Likewise; besides, exceptions are 0x40 plus their vector.
const AMD: [(i32, &str); 12] = [
    (-1, "invalid"),
    (0x41, "debug-exception"),
    (0x60, "interrupt"),
    (0x61, "nmi"),
    (0x63, "init"),
    (0x72, "cpuid"),
    (0x74, "iret"),
    (0x7C, "msr"),
    (0x7F, "shutdown"),
    (0x81, "vmmcall"),
    (0x8D, "xsetbv"),
    (0x400, "nested-page-fault"),
];

/// The name of a reason, as the emulator's counters print it.
pub(crate) fn name(vendor: Vendor, reason: &str) -> String {
    let known: &[(i32, &str)] = match vendor {
        Vendor::Intel => &INTEL,
        Vendor::Amd => &AMD,
    };
    let number: Option<i32> = reason.parse().ok();
    known
        .iter()
        .find(|(known, _)| Some(*known) == number)
        .map_or_else(
            || format!("reason-{reason}"),
            |(_, name)| (*name).to_owned(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_means_different_things() {
        assert_eq!(name(Vendor::Intel, "48"), "ept-violation");
        assert_eq!(name(Vendor::Amd, "1024"), "nested-page-fault");
        assert_eq!(name(Vendor::Amd, "114"), "cpuid");
        assert_eq!(name(Vendor::Amd, "-1"), "invalid");
        assert_eq!(name(Vendor::Amd, "48"), "reason-48");
        assert_eq!(name(Vendor::Intel, "77"), "reason-77");
    }
}
