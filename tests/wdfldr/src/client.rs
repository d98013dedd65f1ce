//! A bound driver: its globals, its driver object, its registry path.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU64, Ordering},
};

use wdk_standin::wdk_sys::{
    PDRIVER_OBJECT, PFN_WDF_DRIVER_UNLOAD, PWDF_DRIVER_GLOBALS, WDF_DRIVER_GLOBALS,
};

use crate::{
    nt::{spinlock::SpinLock, text::Text},
    object::store::Handle,
};

static CLIENTS: SpinLock<Vec<Arc<Client>>> = SpinLock::new(Vec::new());

pub(crate) struct Client {
    /// The driver reads it; the framework writes it in bind and create only.
    globals: Box<UnsafeCell<WDF_DRIVER_GLOBALS>>,
    pub(crate) driver_object: PDRIVER_OBJECT,
    pub(crate) registry_path: Text,
    /// The service's name, for messages.
    pub(crate) name: [u8; 32],
    driver: AtomicU64,
    unload: SpinLock<PFN_WDF_DRIVER_UNLOAD>,
    /// Addresses of the WDFDEVICE_INITs in the driver's hands.
    pub(crate) inits: SpinLock<Vec<usize>>,
}

// SAFETY: the globals are written before the driver runs or in its own call.
unsafe impl Sync for Client {}
// SAFETY: the driver object outlives the binding.
unsafe impl Send for Client {}

impl Client {
    pub(crate) fn new(driver_object: PDRIVER_OBJECT, registry_path: Text) -> Self {
        let mut name = [0; 32];
        let units = registry_path.units();
        let start = units
            .iter()
            .rposition(|unit| *unit == u16::from(b'\\'))
            .map_or(0, |at| at + 1);
        for (to, from) in name[..31].iter_mut().zip(&units[start..]) {
            *to = u8::try_from(*from).unwrap_or(b'?');
        }
        let globals = WDF_DRIVER_GLOBALS {
            Driver: core::ptr::null_mut(),
            DriverFlags: 0,
            DriverTag: u32::from_ne_bytes([name[0], name[1], name[2], name[3]]),
            DriverName: name.map(u8::cast_signed),
            // The stub puts itself in front of our unload routine.
            DisplaceDriverUnload: 1,
        };
        Self {
            globals: Box::new(UnsafeCell::new(globals)),
            driver_object,
            registry_path,
            name,
            driver: AtomicU64::new(0),
            unload: SpinLock::new(None),
            inits: SpinLock::new(Vec::new()),
        }
    }

    pub(crate) fn globals(&self) -> PWDF_DRIVER_GLOBALS {
        self.globals.get()
    }

    pub(crate) fn text_name(&self) -> &str {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(0);
        core::str::from_utf8(&self.name[..end]).unwrap_or("?")
    }

    pub(crate) fn driver(&self) -> Option<Handle> {
        Some(Handle(self.driver.load(Ordering::Acquire))).filter(|handle| handle.0 != 0)
    }

    pub(crate) fn set_driver(&self, driver: Option<Handle>) {
        let value = driver.map_or(0, |driver| driver.0);
        self.driver.store(value, Ordering::Release);
        // SAFETY: the record is ours; the driver only reads it.
        let globals = unsafe { &mut *self.globals() };
        globals.Driver = value as *mut _;
    }

    /// Whether the stub in the driver puts itself in front of DriverUnload.
    pub(crate) fn set_displace_unload(&self, displace: bool) {
        // SAFETY: the record is ours; the driver only reads it.
        let globals = unsafe { &mut *self.globals() };
        globals.DisplaceDriverUnload = u8::from(displace);
    }

    pub(crate) fn set_unload(&self, unload: PFN_WDF_DRIVER_UNLOAD) {
        *self.unload.lock() = unload;
    }

    pub(crate) fn take_unload(&self) -> PFN_WDF_DRIVER_UNLOAD {
        self.unload.lock().take()
    }
}

pub(crate) fn add(client: Arc<Client>) {
    CLIENTS.lock().push(client);
}

pub(crate) fn find(globals: PWDF_DRIVER_GLOBALS) -> Option<Arc<Client>> {
    CLIENTS
        .lock()
        .iter()
        .find(|client| client.globals() == globals)
        .cloned()
}

pub(crate) fn of_driver_object(driver_object: PDRIVER_OBJECT) -> Option<Arc<Client>> {
    CLIENTS
        .lock()
        .iter()
        .find(|client| client.driver_object == driver_object)
        .cloned()
}

pub(crate) fn remove(client: &Arc<Client>) {
    let mut clients = CLIENTS.lock();
    clients.retain(|other| !Arc::ptr_eq(other, client));
    if clients.is_empty() {
        *clients = Vec::new();
    }
}
