//! Clients, their handles and their pending requests.
//!
//! Each client's tables are behind its own lock, never held across a call into
//! the I/O manager. A request is announced when its frame arrives, so that a
//! cancel that overtakes it on the workers still meets it.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use wdk_standin::wdk_sys::{FILE_OBJECT, PFILE_OBJECT};

use super::Origin;
use crate::ex::event::sleep_ms;
use crate::ex::nt;
use crate::io::{file, irp, request};
use crate::ke::spinlock::SpinLock;
use crate::ob;
use crate::ob::namespace::from_win32;
use crate::rtl::status::{
    STATUS_INVALID_HANDLE, STATUS_NOT_FOUND, STATUS_OBJECT_NAME_INVALID, STATUS_SUCCESS,
};

#[derive(Default)]
struct Request {
    token: Option<irp::Token>,
    cancelled: bool,
}

#[derive(Default)]
struct State {
    gone: bool,
    next_handle: u64,
    handles: BTreeMap<u64, usize>,
    requests: BTreeMap<u32, Request>,
}

type Client = Arc<SpinLock<State>>;

static CLIENTS: SpinLock<BTreeMap<u32, Client>> = SpinLock::new(BTreeMap::new());

fn client(number: u32) -> Client {
    let mut clients = CLIENTS.lock();
    let made = clients
        .entry(number)
        .or_insert_with(|| Arc::new(SpinLock::new(State::default())));
    Arc::clone(made)
}

fn pointer(address: usize) -> PFILE_OBJECT {
    core::ptr::with_exposed_provenance_mut::<FILE_OBJECT>(address)
}

/// Opens a device.
pub(super) fn open(origin: Origin, access: u32, path: &str) {
    let Some(path) = from_win32(path) else {
        return origin.reply(STATUS_OBJECT_NAME_INVALID, 0, &[]);
    };
    let file = match file::open(&path, access, nt::USER_MODE) {
        Ok(file) => file,
        Err(status) => return origin.reply(status, 0, &[]),
    };
    let client = client(origin.client);
    let handle = {
        let mut state = client.lock();
        if state.gone {
            None
        } else {
            state.next_handle += 4;
            let handle = state.next_handle;
            let _ = state.handles.insert(handle, file.expose_provenance());
            Some(handle)
        }
    };
    match handle {
        Some(handle) => origin.reply(STATUS_SUCCESS, handle, &[]),
        None => file::close(file),
    }
}

/// Notes a request whose frame has arrived.
pub(super) fn announce(origin: Origin) {
    let _ = client(origin.client)
        .lock()
        .requests
        .insert(origin.id, Request::default());
}

/// Issues a device control request.
pub(super) fn ioctl(origin: Origin, handle: u64, code: u32, capacity: u32, input: &[u8]) {
    let client = client(origin.client);
    let file = {
        let mut state = client.lock();
        let found = state.handles.get(&handle).copied().filter(|_| !state.gone);
        if let Some(file) = found {
            // Keeps the file until the request has its own reference.
            let _ = ob::reference(pointer(file).cast(), "NtDeviceIoControlFile");
        } else {
            let _ = state.requests.remove(&origin.id);
        }
        found
    };
    let Some(file) = file.map(pointer) else {
        return origin.reply(STATUS_INVALID_HANDLE, 0, &[]);
    };
    let owner = Arc::clone(&client);
    let reply: request::Reply = Box::new(move |status, information, output| {
        let _ = owner.lock().requests.remove(&origin.id);
        origin.reply(status, information, &output);
    });
    let mut issued = |token| {
        let cancelled = {
            let mut state = client.lock();
            let gone = state.gone;
            state.requests.get_mut(&origin.id).is_some_and(|request| {
                request.token = Some(token);
                request.cancelled || gone
            })
        };
        if cancelled {
            let _ = irp::cancel(token);
        }
    };
    request::device_control(file, code, input, capacity, reply, &mut issued);
    let _ = ob::dereference(file.cast(), "NtDeviceIoControlFile");
}

/// Cancels a pending request.
pub(super) fn cancel(origin: Origin, id: u32) {
    let found = {
        let client = client(origin.client);
        let mut state = client.lock();
        state.requests.get_mut(&id).map(|request| {
            request.cancelled = true;
            request.token
        })
    };
    match found {
        None => origin.reply(STATUS_NOT_FOUND, 0, &[]),
        Some(token) => {
            if let Some(token) = token {
                let _ = irp::cancel(token);
            }
            origin.reply(STATUS_SUCCESS, 0, &[]);
        }
    }
}

/// Closes a handle.
pub(super) fn close(origin: Origin, handle: u64) {
    let file = client(origin.client).lock().handles.remove(&handle);
    match file {
        Some(file) => {
            file::close(pointer(file));
            origin.reply(STATUS_SUCCESS, 0, &[]);
        }
        None => origin.reply(STATUS_INVALID_HANDLE, 0, &[]),
    }
}

/// Ends a client: cancels its requests, then cleans up and closes its handles.
pub(super) fn gone(origin: Origin) {
    /// How long cancelled requests are waited for before the handles are closed,
    /// in milliseconds (Windows waits for 5 minutes).
    const PATIENCE: u32 = 2000;
    let client = client(origin.client);
    let (tokens, handles): (Vec<irp::Token>, Vec<usize>) = {
        let mut state = client.lock();
        state.gone = true;
        let tokens = state.requests.values_mut().filter_map(|request| {
            request.cancelled = true;
            request.token
        });
        let tokens = tokens.collect();
        (
            tokens,
            core::mem::take(&mut state.handles).into_values().collect(),
        )
    };
    for token in tokens {
        let _ = irp::cancel(token);
    }
    for _ in 0..PATIENCE {
        if client
            .lock()
            .requests
            .values()
            .all(|request| request.token.is_none())
        {
            break;
        }
        sleep_ms(1);
    }
    for file in handles {
        file::close(pointer(file));
    }
    let _ = CLIENTS.lock().remove(&origin.client);
    origin.reply(STATUS_SUCCESS, 0, &[]);
}
