//! The way to the driver: a control code and bytes in, bytes out.
//!
//! Two ways, chosen at compile time: `windows` opens `\\.\hvdetect`, `lab` speaks
//! the device link of the project's test machine over TCP. The verbs above know
//! neither. A device is used by one thread.

#[cfg(not(windows))]
mod lab;
#[cfg(windows)]
mod windows;

use crate::interrupt::Until;

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum DeviceError {
    /// The driver is not there; the text says how that was seen.
    Absent(String),
    /// The caller may not use it.
    AccessDenied,
    /// The driver does not know the request.
    UnknownRequest,
    /// It was there and went away.
    Gone(String),
    /// It refused; NTSTATUS or Win32 error, with whatever it said besides.
    Status {
        what: &'static str,
        code: u32,
        output: Vec<u8>,
    },
}

/// An open device.
pub(crate) trait Device {
    /// Sends one request and waits for its end; `Ok(None)` if `until` came first
    /// and the request was cancelled.
    fn ioctl(
        &mut self,
        code: u32,
        input: &[u8],
        capacity: usize,
        until: Until,
    ) -> Result<Option<Vec<u8>>, DeviceError>;
}

/// Opens the device.
pub(crate) fn open() -> Result<Box<dyn Device>, DeviceError> {
    #[cfg(windows)]
    let device = windows::open()?;
    #[cfg(not(windows))]
    let device = lab::open()?;
    Ok(Box::new(device))
}

/// Asks the system to load the installed driver; loading changes nothing yet.
pub(crate) fn load() -> Result<(), DeviceError> {
    #[cfg(windows)]
    return windows::load();
    #[cfg(not(windows))]
    lab::load()
}

/// The service's name.
const SERVICE: &str = "hvdetect";
