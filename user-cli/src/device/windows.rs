//! `\\.\hvdetect`: the driver on this Windows.
//!
//! The only file of the tool with `unsafe`. The handle is opened for overlapped
//! I/O, so that a wait for findings can be cancelled by Ctrl-C: each request has
//! its own event and OVERLAPPED, and both it and the buffers outlive the request,
//! because a request that is cancelled is still awaited before they go.

use super::{Device, DeviceError, SERVICE};
use crate::interrupt::{TICK, Until};
use detector::wire::DEVICE_PATH;
use std::ptr;
use windows_sys::Win32::Foundation::{
    CloseHandle, ERROR_ACCESS_DENIED, ERROR_FILE_NOT_FOUND, ERROR_INVALID_FUNCTION,
    ERROR_IO_PENDING, ERROR_OPERATION_ABORTED, ERROR_PATH_NOT_FOUND, ERROR_REVISION_MISMATCH,
    ERROR_SERVICE_ALREADY_RUNNING, GENERIC_READ, GENERIC_WRITE, GetLastError, HANDLE,
    INVALID_HANDLE_VALUE, WAIT_TIMEOUT,
};
use windows_sys::Win32::Storage::FileSystem::{CreateFileW, FILE_FLAG_OVERLAPPED, OPEN_EXISTING};
use windows_sys::Win32::System::IO::{
    CancelIoEx, DeviceIoControl, GetOverlappedResult, OVERLAPPED,
};
use windows_sys::Win32::System::Services::{
    CloseServiceHandle, OpenSCManagerW, OpenServiceW, SC_HANDLE, SC_MANAGER_CONNECT, SERVICE_START,
    StartServiceW,
};
use windows_sys::Win32::System::Threading::{CreateEventW, WaitForSingleObject};

fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

fn last_error() -> u32 {
    // SAFETY: reads the thread's own last-error value.
    unsafe { GetLastError() }
}

/// A handle that is closed once.
struct Handle(HANDLE);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is valid and owned by this value alone.
        unsafe { CloseHandle(self.0) };
    }
}

/// A service-manager handle that is closed once.
struct Service(SC_HANDLE);

impl Drop for Service {
    fn drop(&mut self) {
        // SAFETY: the handle is valid and owned by this value alone.
        unsafe { CloseServiceHandle(self.0) };
    }
}

/// The open device.
pub(super) struct Windows {
    device: Handle,
}

pub(super) fn open() -> Result<Windows, DeviceError> {
    let path = wide(DEVICE_PATH);
    // SAFETY: `path` ends with zero and lives through the call; no other pointer.
    let handle = unsafe {
        CreateFileW(
            path.as_ptr(),
            GENERIC_READ | GENERIC_WRITE,
            0,
            ptr::null(),
            OPEN_EXISTING,
            FILE_FLAG_OVERLAPPED,
            ptr::null_mut(),
        )
    };
    if handle != INVALID_HANDLE_VALUE {
        return Ok(Windows {
            device: Handle(handle),
        });
    }
    match last_error() {
        ERROR_FILE_NOT_FOUND | ERROR_PATH_NOT_FOUND => Err(DeviceError::Absent(
            "the driver hvdetect is not loaded.".to_owned(),
        )),
        ERROR_ACCESS_DENIED => Err(DeviceError::AccessDenied),
        code => Err(DeviceError::Status {
            what: "open",
            code,
            output: Vec::new(),
        }),
    }
}

pub(super) fn load() -> Result<(), DeviceError> {
    // SAFETY: null names the local machine and the active database.
    let manager = unsafe { OpenSCManagerW(ptr::null(), ptr::null(), SC_MANAGER_CONNECT) };
    let manager = owned(manager)?;
    let name = wide(SERVICE);
    // SAFETY: the manager's handle is valid, `name` ends with zero.
    let service = unsafe { OpenServiceW(manager.0, name.as_ptr(), SERVICE_START) };
    let service = owned(service)?;
    // SAFETY: the service's handle is valid; there are no arguments.
    let started = unsafe { StartServiceW(service.0, 0, ptr::null()) };
    if started != 0 {
        return Ok(());
    }
    match last_error() {
        ERROR_SERVICE_ALREADY_RUNNING => Ok(()),
        code => Err(service_error(code)),
    }
}

fn owned(handle: SC_HANDLE) -> Result<Service, DeviceError> {
    if handle.is_null() {
        Err(service_error(last_error()))
    } else {
        Ok(Service(handle))
    }
}

fn service_error(code: u32) -> DeviceError {
    if code == ERROR_ACCESS_DENIED {
        return DeviceError::AccessDenied;
    }
    let system = std::io::Error::from_raw_os_error(code.cast_signed());
    DeviceError::Absent(format!("the driver could not be loaded: {system}"))
}

impl Device for Windows {
    fn ioctl(
        &mut self,
        code: u32,
        input: &[u8],
        capacity: usize,
        until: Until,
    ) -> Result<Option<Vec<u8>>, DeviceError> {
        // SAFETY: no attributes, no name: a new manual-reset event, not signalled.
        let event = unsafe { CreateEventW(ptr::null(), 1, 0, ptr::null()) };
        if event.is_null() {
            return Err(failed(last_error(), false));
        }
        let event = Handle(event);
        let mut overlapped = OVERLAPPED {
            hEvent: event.0,
            ..OVERLAPPED::default()
        };
        let mut output = vec![0_u8; capacity];
        // SAFETY: the buffers and `overlapped` live until the request has ended:
        // below, the result is awaited on every path that leaves it pending.
        let done = unsafe {
            DeviceIoControl(
                self.device.0,
                code,
                input.as_ptr().cast(),
                u32::try_from(input.len()).unwrap_or(0),
                output.as_mut_ptr().cast(),
                u32::try_from(capacity).unwrap_or(0),
                ptr::null_mut(),
                &raw mut overlapped,
            )
        };
        if done == 0 {
            let error = last_error();
            if error != ERROR_IO_PENDING {
                return Err(failed(error, false));
            }
        }
        let mut cancelled = false;
        while pending(&event) {
            if !cancelled && until.over() {
                cancelled = true;
                // SAFETY: names this very request, which is still pending or has
                // just ended; both are fine.
                unsafe { CancelIoEx(self.device.0, &raw const overlapped) };
            }
        }
        let mut length = 0;
        // SAFETY: `overlapped` belongs to this request, which has ended.
        let good = unsafe {
            GetOverlappedResult(self.device.0, &raw const overlapped, &raw mut length, 1)
        };
        if good == 0 {
            let error = last_error();
            if cancelled && error == ERROR_OPERATION_ABORTED {
                return Ok(None);
            }
            return Err(failed(error, cancelled));
        }
        output.truncate(usize::try_from(length).unwrap_or(0));
        Ok(Some(output))
    }
}

/// Waits a little for the end of a request; whether it is still under way.
fn pending(event: &Handle) -> bool {
    let tick = u32::try_from(TICK.as_millis()).unwrap_or(50);
    // SAFETY: the event is open while its owner is borrowed.
    let waited = unsafe { WaitForSingleObject(event.0, tick) };
    waited == WAIT_TIMEOUT
}

fn failed(code: u32, cancelled: bool) -> DeviceError {
    match code {
        ERROR_INVALID_FUNCTION | ERROR_REVISION_MISMATCH => DeviceError::UnknownRequest,
        ERROR_ACCESS_DENIED => DeviceError::AccessDenied,
        ERROR_OPERATION_ABORTED if !cancelled => {
            DeviceError::Gone("the driver has been unloaded.".to_owned())
        }
        code => DeviceError::Status {
            what: "request",
            code,
            output: Vec::new(),
        },
    }
}
