//! What must be refused, each with its own sentence and exit code, and with the
//! state unchanged.

use super::Stage;
use crate::machine::CpuidChange;
use anyhow::{Context, Result, ensure};
use lab_link::Message;

/// The machine cannot be monitored (`hvdetect`'s exit code).
const UNFIT: i32 = 5;
const OTHER: i32 = 1;
const DRIVER_ABSENT: i32 = 4;

/// Numbers of CPUID's registers.
const EBX: u32 = 1;
const ECX: u32 = 2;
const EDX: u32 = 3;
/// A hypervisor is present.
const HYPERVISOR: CpuidChange = CpuidChange::set(1, ECX, 1 << 31);

fn refused(stage: &mut Stage<'_>, says: &str) -> Result<()> {
    drop(stage.boot_with_driver()?);
    // Twice: a refusal leaves nothing behind that changes the second answer.
    for _ in 0..2 {
        stage.must_fail(&["start"], UNFIT, says)?;
        stage.witness_nothing()?;
    }
    stage.end()
}

pub(super) fn locked_off(stage: &mut Stage<'_>) -> Result<()> {
    stage.boot_words("feature_control=locked-off");
    refused(stage, "the firmware has switched virtualization off")
}

pub(super) fn not_on_second_processor(stage: &mut Stage<'_>) -> Result<()> {
    stage.boot_words("feature_control=bsp-only");
    refused(stage, "virtualization differently on different cores")
}

pub(super) fn vmx_in_use(stage: &mut Stage<'_>) -> Result<()> {
    stage.boot_words("vmxe=set");
    refused(stage, "somebody else uses VT-x")
}

/// What firmware leaves behind in unusual ways, and what `hvdetect start` and
/// `status` say of it.
pub(super) fn odd_firmware(stage: &mut Stage<'_>) -> Result<()> {
    const LOCKED_BY_US: &str = "firmware-locked";
    for (words, locks) in [
        ("feature_control=unlocked", true),
        ("feature_control=zero", true),
        ("mtrr=wb-default", false),
        ("mtrr=odd", false),
    ] {
        let one = |stage: &mut Stage<'_>| -> Result<()> {
            stage.forget_boot_words();
            stage.boot_words(words);
            drop(stage.boot_with_driver()?);
            stage.must(&["start"])?;
            stage.witness()?;
            let notes = stage.status()?["notes"].clone();
            let said = notes
                .as_array()
                .is_some_and(|notes| notes.iter().any(|note| note == LOCKED_BY_US));
            ensure!(said == locks, "notes: {notes}");
            stage.must(&["stop"])?;
            stage.witness_nothing()?;
            stage.end()
        };
        one(stage).with_context(|| words.to_owned())?;
    }
    Ok(())
}

pub(super) fn hypervisor_present(stage: &mut Stage<'_>) -> Result<()> {
    stage.options.cpuid = vec![HYPERVISOR];
    refused(stage, "a hypervisor runs already")
}

/// What AMD's processors and their firmware can lack.
pub(super) fn without_svm(stage: &mut Stage<'_>) -> Result<()> {
    let no_svm = CpuidChange::clear(0x8000_0001, ECX, 1 << 2);
    let no_nested_paging = CpuidChange::clear(0x8000_000A, EDX, 1);
    let one_asid = CpuidChange {
        function: 0x8000_000A,
        register: EBX,
        keep: 0,
        set: 1,
    };
    for (words, cpuid, says) in [
        (
            "svm=locked",
            None,
            "the firmware has switched virtualization off",
        ),
        (
            "svm=disabled",
            None,
            "AMD-V is switched off, but not locked",
        ),
        (
            "svm=bsp-only",
            None,
            "virtualization differently on different cores",
        ),
        ("svme=set", None, "somebody else uses"),
        ("", Some(HYPERVISOR), "a hypervisor runs already"),
        ("", Some(no_svm), "neither Intel VT-x nor AMD-V"),
        ("", Some(no_nested_paging), "no nested page tables"),
        ("", Some(one_asid), "no address-space identifier"),
    ] {
        stage.forget_boot_words();
        stage.boot_words(words);
        stage.options.cpuid = cpuid.into_iter().collect();
        refused(stage, says).with_context(|| format!("{words} {cpuid:x?}"))?;
    }
    Ok(())
}

pub(super) fn no_ept(stage: &mut Stage<'_>) -> Result<()> {
    refused(stage, "no nested page tables")
}

pub(super) fn no_vmx(stage: &mut Stage<'_>) -> Result<()> {
    refused(stage, "neither Intel VT-x nor AMD-V")
}

pub(super) fn start_and_stop_twice(stage: &mut Stage<'_>) -> Result<()> {
    drop(stage.boot_with_driver()?);
    stage.must_fail(&["stop"], OTHER, "monitoring does not run")?;
    stage.must(&["start"])?;
    stage.must_fail(&["start"], OTHER, "monitoring runs already")?;
    stage.witness()?;
    stage.must(&["stop"])?;
    stage.must_fail(&["stop"], OTHER, "monitoring does not run")?;
    stage.witness_nothing()?;
    stage.end()
}

pub(super) fn no_driver(stage: &mut Stage<'_>) -> Result<()> {
    for verb in ["start", "stop", "status", "watch"] {
        let output = stage.hvdetect_without_machine(&[verb])?;
        ensure!(
            output.code == DRIVER_ABSENT && output.stderr.contains("cargo lab run"),
            "`hvdetect {verb}` without a machine: exit code {} and \"{}\"",
            output.code,
            output.stderr.trim()
        );
    }
    // `start` loads the driver; all else says that it is not there.
    stage.boot()?;
    for verb in ["stop", "status", "watch"] {
        stage.must_fail(&[verb], DRIVER_ABSENT, "not loaded")?;
    }
    stage.must(&["start"])?;
    stage.must(&["stop"])?;
    stage.end()
}

/// Requests that no correct program sends.
pub(super) fn bad_requests(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot_with_driver()?;
    let before = stage.status()?;
    let opened = client.request(&Message::Open {
        access: 0xC000_0000,
        path: r"\\.\hvdetect",
    })?;
    ensure!(opened.status == 0, "open: {:#010x}", opened.status);
    let long = vec![0xA5u8; 5000];
    // CTL_CODE: device type 15:0 at bit 16, access at 14, function at 2, method at 0.
    let codes = (0..0x10).map(|function| 0x22_0000 | (0x800 + function) << 2);
    for code in codes.chain([0, u32::MAX, 0x22_0003, 0x09_0018]) {
        for access in [0u32, 1, 2, 3] {
            let code = code | access << 14;
            for input in [&[][..], &[1][..], &long[..]] {
                let reply = client.request(&Message::Ioctl {
                    handle: opened.information,
                    code,
                    capacity: 0,
                    input,
                })?;
                ensure!(
                    reply.status & 0xC000_0000 == 0xC000_0000,
                    "code {code:#x} with {} bytes in and none out: {:#010x}",
                    input.len(),
                    reply.status
                );
            }
        }
    }
    client.request(&Message::Close {
        handle: opened.information,
    })?;
    let after = stage.status()?;
    ensure!(
        before["state"] == after["state"],
        "the state has changed: {before} {after}"
    );
    stage.end()
}
