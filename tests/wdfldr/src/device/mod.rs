//! Control devices: the device object, its links, its queues, its handles.

mod dispatch;
mod functions;
mod init;

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering};

use wdk_standin::wdk_sys::{
    DO_DEVICE_INITIALIZING, PDEVICE_OBJECT, PFILE_OBJECT, WDF_FILEOBJECT_CONFIG,
    ntddk::{IoDeleteDevice, IoDeleteSymbolicLink, IoUnregisterShutdownNotification},
};

pub(crate) use dispatch::dispatch;
pub(crate) use functions::*;
pub(crate) use init::*;

use crate::{
    nt::{spinlock::SpinLock, text::Text},
    object::{Attributes, Object, store::Handle},
    queue,
};

pub(crate) struct Device {
    pub(crate) wdm: PDEVICE_OBJECT,
    finished: AtomicBool,
    settings: init::Settings,
    default_queue: SpinLock<Option<Handle>>,
    queues: SpinLock<Vec<Handle>>,
    links: SpinLock<Vec<Text>>,
    files: SpinLock<Vec<(usize, Handle)>>,
}

// SAFETY: the device object lives until `retire`.
unsafe impl Send for Device {}
// SAFETY: the rest is under locks or constant.
unsafe impl Sync for Device {}

impl Device {
    fn new(wdm: PDEVICE_OBJECT, settings: init::Settings) -> Self {
        Self {
            wdm,
            finished: AtomicBool::new(false),
            settings,
            default_queue: SpinLock::new(None),
            queues: SpinLock::new(Vec::new()),
            links: SpinLock::new(Vec::new()),
            files: SpinLock::new(Vec::new()),
        }
    }

    /// Whether the driver has called WdfControlFinishInitializing.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    fn finish(&self) {
        // SAFETY: our own device object; nobody else changes its flags now.
        let device = unsafe { &mut *self.wdm };
        device.Flags &= !DO_DEVICE_INITIALIZING;
        self.finished.store(true, Ordering::Release);
    }

    pub(crate) fn file_config(&self) -> Option<&WDF_FILEOBJECT_CONFIG> {
        self.settings.file_config.as_ref()
    }

    pub(crate) const fn file_attributes(&self) -> &Attributes {
        &self.settings.file_attributes
    }

    pub(crate) const fn request_attributes(&self) -> &Attributes {
        &self.settings.request_attributes
    }

    pub(crate) const fn io_type(&self) -> i32 {
        self.settings.io_type
    }

    pub(crate) fn default_queue(&self) -> Option<Handle> {
        *self.default_queue.lock()
    }

    /// False when there is one already.
    pub(crate) fn set_default_queue(&self, queue: Handle) -> bool {
        let mut slot = self.default_queue.lock();
        if slot.is_some() {
            return false;
        }
        *slot = Some(queue);
        true
    }

    pub(crate) fn add_queue(&self, queue: Handle) {
        self.queues.lock().push(queue);
    }

    pub(crate) fn forget_queue(&self, queue: Handle) {
        self.queues.lock().retain(|other| *other != queue);
        let mut default = self.default_queue.lock();
        if *default == Some(queue) {
            *default = None;
        }
    }

    pub(crate) fn queues(&self) -> Vec<Handle> {
        self.queues.lock().clone()
    }

    pub(crate) fn add_file(&self, wdm: PFILE_OBJECT, file: Handle) {
        self.files.lock().push((wdm.addr(), file));
    }

    pub(crate) fn file(&self, wdm: PFILE_OBJECT) -> Option<Handle> {
        self.files
            .lock()
            .iter()
            .find(|(address, _)| *address == wdm.addr())
            .map(|(_, file)| *file)
    }

    pub(crate) fn take_file(&self, wdm: PFILE_OBJECT) -> Option<Handle> {
        let mut files = self.files.lock();
        let index = files
            .iter()
            .position(|(address, _)| *address == wdm.addr())?;
        Some(files.swap_remove(index).1)
    }

    /// No more requests; what waits is cancelled.
    pub(crate) fn dispose(&self, _object: &Arc<Object>) {
        self.finished.store(false, Ordering::Release);
        for queue in self.queues() {
            queue::refuse_and_cancel(queue);
        }
    }

    /// The links and the device object go.
    pub(crate) fn retire(&self) {
        let links = core::mem::take(&mut *self.links.lock());
        for link in links.iter().rev() {
            let mut name = link.as_unicode();
            // SAFETY: the name lives across the call.
            let _ = unsafe { IoDeleteSymbolicLink(&raw mut name) };
        }
        if self.settings.shutdown.is_some() {
            // SAFETY: our own device object, registered when it was made.
            unsafe { IoUnregisterShutdownNotification(self.wdm) };
        }
        // SAFETY: our own device object; nothing uses it any more.
        unsafe { IoDeleteDevice(self.wdm) };
    }
}
