//! `start` and `stop`. Neither prints data: what happened is said on standard
//! error and in the exit code.

use crate::args::Start;
use crate::failure::Failure;
use crate::session::Session;
use detector::wire::StartFlags;

pub(super) fn start(start: &Start) -> Result<(), Failure> {
    let mut flags = StartFlags::empty();
    flags.set(StartFlags::NO_MTF, start.no_mtf);
    flags.set(StartFlags::NO_MBEC, start.no_mbec);
    flags.set(StartFlags::NO_NEXT_RIP, start.no_next_rip);
    flags.set(StartFlags::NO_FLUSH_BY_ASID, start.no_flush_by_asid);
    let mut session = Session::open_or_load()?;
    session.start(flags)?;
    let cores = session.status()?.cores;
    eprintln!("Monitoring {cores} cores.");
    Ok(())
}

pub(super) fn stop() -> Result<(), Failure> {
    Session::open()?.stop()?;
    eprintln!("Stopped. The machine is as it was.");
    Ok(())
}
