//! One call of a driver into the framework: who calls, what is asked, at which
//! IRQL; and the checks of arguments that all functions share.
//!
//! A `Call` is made at the top of each entry of the table. From there on the
//! driver's pointers are trusted to be what the function's documentation asks,
//! null excepted, which is checked.
//!
//! Handles are looked up under a spin lock, so nothing is callable above
//! DISPATCH_LEVEL, not even the few functions that Windows allows there.

use alloc::sync::Arc;
use core::fmt;

use wdk_standin::wdk_sys::{KIRQL, NTSTATUS, PWDF_DRIVER_GLOBALS, STATUS_SUCCESS};

use crate::{
    client::{self, Client},
    device::Device,
    file::File,
    nt::{
        irql,
        violation::{self, Code},
    },
    object::{
        Kind, Object, STORE,
        store::{Bad, Handle},
    },
    queue::Queue,
    request::Request,
};

pub(crate) struct Call {
    name: &'static str,
    client: Arc<Client>,
}

macro_rules! of_kind {
    ($function:ident, $kind:ident, $type:ty) => {
        /// The object and what it is; any other kind is a violation.
        pub(crate) fn $function<T>(&self, handle: *mut T) -> Of<$type> {
            let object = self.object(handle);
            let Kind::$kind(inner) = &object.kind else {
                self.wrong_kind(&object, stringify!($kind))
            };
            let inner: *const $type = inner;
            Of { object, inner }
        }
    };
}

/// An object together with its kind.
pub(crate) struct Of<T> {
    pub(crate) object: Arc<Object>,
    inner: *const T,
}

impl<T> core::ops::Deref for Of<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: points into `object`, which is kept and does not move.
        unsafe { &*self.inner }
    }
}

impl Call {
    /// # Safety
    /// The caller is a driver that passes what the function's documentation says.
    pub(crate) unsafe fn enter(
        name: &'static str,
        highest: KIRQL,
        globals: PWDF_DRIVER_GLOBALS,
    ) -> Self {
        let now = irql::current();
        if now > highest {
            violation::raise(
                Code::Irql,
                u64::from(now),
                u64::from(highest),
                format_args!("{name}: called at IRQL {now}, allowed up to {highest}"),
            );
        }
        let Some(client) = client::find(globals) else {
            violation::raise(
                Code::Argument,
                globals.addr() as u64,
                0,
                format_args!("{name}: WdfDriverGlobals is not what WdfVersionBind gave"),
            );
        };
        Self { name, client }
    }

    /// For the framework's own doings on behalf of a driver.
    pub(crate) const fn internal(name: &'static str, client: Arc<Client>) -> Self {
        Self { name, client }
    }

    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) const fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// The rule, or a violation.
    pub(crate) fn require(&self, holds: bool, rule: fmt::Arguments) {
        if !holds {
            violation::raise(Code::Argument, 0, 0, format_args!("{}: {rule}", self.name));
        }
    }

    /// The `Size` of a structure.
    pub(crate) fn size(&self, structure: &str, given: u32, wanted: usize) {
        self.require(
            given as usize == wanted,
            format_args!("{structure}.Size is {given}, should be {wanted}"),
        );
    }

    /// Copies a structure of the driver's.
    pub(crate) fn read<T: Copy>(&self, from: *const T, what: &str) -> T {
        self.require(!from.is_null(), format_args!("{what} is null"));
        // SAFETY: not null; otherwise the driver's promise at `enter`.
        unsafe { from.read() }
    }

    /// Gives a result through a pointer that must not be null.
    pub(crate) fn write<T>(&self, to: *mut T, value: T) {
        self.require(!to.is_null(), format_args!("the result pointer is null"));
        // SAFETY: not null; otherwise the driver's promise at `enter`.
        unsafe { to.write(value) };
    }

    /// Gives a result through a pointer that may be null.
    pub(crate) fn write_optional<T>(&self, to: *mut T, value: T) {
        if !to.is_null() {
            self.write(to, value);
        }
    }

    /// A created object's handle, or why there is none.
    pub(crate) fn finish<T>(
        &self,
        made: Result<Arc<Object>, NTSTATUS>,
        to: *mut *mut T,
    ) -> NTSTATUS {
        match made {
            Ok(object) => {
                self.write(to, object.pointer());
                STATUS_SUCCESS
            }
            Err(status) => {
                self.write_optional(to, core::ptr::null_mut());
                status
            }
        }
    }

    /// The driver's own object. A violation before WdfDriverCreate.
    pub(crate) fn driver(&self) -> Handle {
        let driver = self.client.driver();
        self.require(
            driver.is_some(),
            format_args!("called before WdfDriverCreate"),
        );
        driver.unwrap_or(Handle(0))
    }

    /// Any object of the driver's.
    pub(crate) fn object<T>(&self, handle: *mut T) -> Arc<Object> {
        self.any(Handle(handle.addr() as u64))
    }

    /// The same by number.
    pub(crate) fn any(&self, handle: Handle) -> Arc<Object> {
        let found = STORE.lock().get(handle).cloned();
        match found {
            Ok(object) if Arc::ptr_eq(&object.client, &self.client) => object,
            Ok(_) | Err(Bad::Foreign) => self.bad_handle(handle, "is not a handle of this driver"),
            Err(Bad::Null) => self.bad_handle(handle, "is null"),
            Err(Bad::Stale) if self.name.starts_with("WdfRequestComplete") => self.bad_handle(
                handle,
                "is gone: double completion, unless it never was a request",
            ),
            Err(Bad::Stale) => self.bad_handle(handle, "names an object that is gone"),
        }
    }

    fn bad_handle(&self, handle: Handle, why: &str) -> ! {
        violation::raise(
            Code::Handle,
            handle.0,
            0,
            format_args!("{}: handle {:#x} {why}", self.name, handle.0),
        )
    }

    pub(crate) fn wrong_kind(&self, object: &Object, wanted: &str) -> ! {
        violation::raise(
            Code::Handle,
            object.handle().0,
            0,
            format_args!(
                "{}: the handle is a {}, not a {wanted}",
                self.name,
                object.kind.name()
            ),
        )
    }

    of_kind!(device, Device, Device);
    of_kind!(queue, Queue, Queue);
    of_kind!(request, Request, Request);
    of_kind!(file, File, File);
    of_kind!(timer, Timer, crate::timing::Timer);
    of_kind!(dpc, Dpc, crate::timing::Dpc);
    of_kind!(work_item, WorkItem, crate::timing::WorkItem);
    of_kind!(wait_lock, WaitLock, crate::lock::WaitLock);
    of_kind!(spin_lock, SpinLock, crate::lock::SpinLockObject);
    of_kind!(memory, Memory, crate::memory::Memory);
    of_kind!(key, Key, crate::registry::Key);
    of_kind!(string, String, crate::string::StringObject);
    of_kind!(driver_object, Driver, crate::driver::Driver);
}
