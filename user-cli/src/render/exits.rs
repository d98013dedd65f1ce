//! Names of exit reasons.

use detector::wire::Vendor;

/// Intel's basic exit reasons (Intel SDM, "VMX Basic Exit Reasons").
const INTEL: [&str; 80] = [
    "exception-or-nmi",
    "external-interrupt",
    "triple-fault",
    "init",
    "sipi",
    "io-smi",
    "other-smi",
    "interrupt-window",
    "nmi-window",
    "task-switch",
    "cpuid",
    "getsec",
    "hlt",
    "invd",
    "invlpg",
    "rdpmc",
    "rdtsc",
    "rsm",
    "vmcall",
    "vmclear",
    "vmlaunch",
    "vmptrld",
    "vmptrst",
    "vmread",
    "vmresume",
    "vmwrite",
    "vmxoff",
    "vmxon",
    "control-register",
    "mov-dr",
    "io",
    "rdmsr",
    "wrmsr",
    "entry-failure-guest-state",
    "entry-failure-msr-loading",
    "",
    "mwait",
    "monitor-trap-flag",
    "",
    "monitor",
    "pause",
    "entry-failure-machine-check",
    "",
    "tpr-below-threshold",
    "apic-access",
    "virtualized-eoi",
    "gdtr-idtr",
    "ldtr-tr",
    "ept-violation",
    "ept-misconfiguration",
    "invept",
    "rdtscp",
    "preemption-timer",
    "invvpid",
    "wbinvd",
    "xsetbv",
    "apic-write",
    "rdrand",
    "invpcid",
    "vmfunc",
    "encls",
    "rdseed",
    "page-modification-log-full",
    "xsaves",
    "xrstors",
    "pconfig",
    "spp",
    "umwait",
    "tpause",
    "loadiwkey",
    "enclv",
    "",
    "enqcmd-pasid",
    "enqcmds-pasid",
    "bus-lock",
    "notify",
    "seamcall",
    "tdcall",
    "rdmsrlist",
    "wrmsrlist",
];

/// AMD's exit codes (AMD64 APM volume 2, "SVM Intercept Codes"); exceptions share
/// one slot.
const AMD: [(usize, &str); 36] = [
    (0x40, "exception"),
    (0x60, "interrupt"),
    (0x61, "nmi"),
    (0x62, "smi"),
    (0x63, "init"),
    (0x64, "virtual-interrupt"),
    (0x65, "control-register-selective"),
    (0x66, "idtr-read"),
    (0x67, "gdtr-read"),
    (0x6a, "idtr-write"),
    (0x6b, "gdtr-write"),
    (0x6e, "rdtsc"),
    (0x6f, "rdpmc"),
    (0x72, "cpuid"),
    (0x73, "rsm"),
    (0x74, "iret"),
    (0x75, "software-interrupt"),
    (0x76, "invd"),
    (0x77, "pause"),
    (0x78, "hlt"),
    (0x79, "invlpg"),
    (0x7a, "invlpga"),
    (0x7b, "io"),
    (0x7c, "msr"),
    (0x7d, "task-switch"),
    (0x7f, "shutdown"),
    (0x80, "vmrun"),
    (0x81, "vmmcall"),
    (0x82, "vmload"),
    (0x83, "vmsave"),
    (0x84, "stgi"),
    (0x85, "clgi"),
    (0x86, "skinit"),
    (0x87, "rdtscp"),
    (0x8d, "xsetbv"),
    (0x400, "nested-page-fault"),
];

/// The name of a slot of the status' exit counters.
pub(crate) fn name(vendor: Option<Vendor>, slot: usize) -> String {
    let found = match vendor {
        Some(Vendor::Amd) => AMD
            .iter()
            .find(|(code, _)| detector::wire::exit_slot(*code as u64) == Some(slot))
            .map(|(_, name)| *name),
        _ => INTEL.get(slot).copied().filter(|name| !name.is_empty()),
    };
    found.map_or_else(|| format!("reason-{slot}"), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn known_reasons_have_their_numbers() {
        let intel = |slot| name(Some(Vendor::Intel), slot);
        for (slot, expected) in [
            (0, "exception-or-nmi"),
            (10, "cpuid"),
            (18, "vmcall"),
            (28, "control-register"),
            (37, "monitor-trap-flag"),
            (48, "ept-violation"),
            (52, "preemption-timer"),
            (55, "xsetbv"),
            (63, "xsaves"),
            (67, "umwait"),
            (79, "wrmsrlist"),
            (35, "reason-35"),
            (80, "reason-80"),
        ] {
            assert_eq!(intel(slot), expected);
        }
        assert_eq!(name(Some(Vendor::Amd), 0x12), "cpuid");
        assert_eq!(name(Some(Vendor::Amd), 72), "nested-page-fault");
        assert_eq!(name(Some(Vendor::Amd), 79), "exception");
    }

    #[test]
    fn no_two_reasons_share_a_name() {
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let names: BTreeSet<_> = (0..80).map(|slot| name(Some(vendor), slot)).collect();
            assert_eq!(names.len(), 80);
        }
    }
}
