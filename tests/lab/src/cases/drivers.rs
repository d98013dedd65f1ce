//! Other people's drivers.

use super::Stage;
use crate::machine::Client;
use anyhow::{Result, bail, ensure};
use lab_link::Message;
use std::thread;
use std::time::Duration;

const PLUS_ONE: u32 = 0x22_2000;
const TICKS: u32 = 0x22_2004;

pub(super) fn in_c(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot()?.client()?;
    client.start_service("simple_wdm")?;
    use_it(&client)?;
    client.stop_service("simple_wdm")?;
    stage.machine()?.shut_down()
}

pub(super) fn in_c_monitored(stage: &mut Stage<'_>) -> Result<()> {
    let client = stage.boot_with_driver()?;
    stage.must(&["start"])?;
    client.start_service("simple_wdm")?;
    use_it(&client)?;
    stage.witness()?;
    client.stop_service("simple_wdm")?;
    let findings = stage.findings()?;
    ensure!(
        findings.is_empty(),
        "a benign driver caused {}",
        findings[0].describe()
    );
    stage.must(&["stop"])?;
    stage.end()
}

/// Opens the device, has bytes incremented, waits for its timer to tick.
fn use_it(client: &Client) -> Result<()> {
    let opened = client.request(&Message::Open {
        access: 0xC000_0000,
        path: r"\\.\simple_wdm",
    })?;
    ensure!(opened.status == 0, "open: {:#010x}", opened.status);
    let handle = opened.information;
    let reply = client.request(&Message::Ioctl {
        handle,
        code: PLUS_ONE,
        capacity: 16,
        input: &[1, 2, 255],
    })?;
    ensure!(
        reply.status == 0 && reply.output == [2, 3, 0],
        "plus one: {reply:?}"
    );
    let mut ticks = 0;
    for _ in 0..100 {
        let reply = client.request(&Message::Ioctl {
            handle,
            code: TICKS,
            capacity: 4,
            input: &[],
        })?;
        ticks = match reply.output.as_slice().try_into() {
            Ok(bytes) => u32::from_le_bytes(bytes),
            Err(_) => bail!("ticks: {reply:?}"),
        };
        if ticks > 3 {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    ensure!(ticks > 3, "its timer does not tick");
    let unknown = client.request(&Message::Ioctl {
        handle,
        code: 0x22_2ABC,
        capacity: 0,
        input: &[],
    })?;
    ensure!(
        unknown.status == 0xC000_0010,
        "an unknown code: {:#010x}",
        unknown.status
    );
    let closed = client.request(&Message::Close { handle })?;
    ensure!(closed.status == 0, "close: {:#010x}", closed.status);
    Ok(())
}

pub(super) fn unresolved_import(stage: &mut Stage<'_>) -> Result<()> {
    let machine = stage.boot()?;
    let client = machine.client()?;
    let Err(error) = client.start_service("unresolved") else {
        bail!("a driver with an unresolved import was loaded");
    };
    let text = format!("{error:#}\n{}", machine.console());
    ensure!(
        text.contains("HvlabNoSuchRoutine") && text.contains("ntoskrnl.exe"),
        "the error does not name the import: {error:#}"
    );
    // Nothing is left: another driver loads, and the machine ends cleanly.
    client.start_service("simple_wdm")?;
    client.stop_service("simple_wdm")?;
    machine.shut_down()
}
