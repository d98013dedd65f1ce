//! One framework object: its kind, its contexts, its birth and its end.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use wdk_standin::wdk_sys::{NTSTATUS, STATUS_DELETE_PENDING, WDFOBJECT};

use super::{
    attributes::{Attributes, Parent},
    context::Context,
    store::{Bad, Handle, Store},
};
use crate::{
    call::Call,
    client::Client,
    device::Device,
    driver::Driver,
    file::File,
    lock::{SpinLockObject, WaitLock},
    memory::Memory,
    nt::{
        irql,
        spinlock::SpinLock,
        violation::{self, Code},
    },
    queue::Queue,
    registry::Key,
    request::Request,
    string::StringObject,
    timing::{Dpc, Timer, WorkItem},
};

/// The objects of all drivers.
pub(crate) static STORE: SpinLock<Store<Arc<Object>>> = SpinLock::new(Store::new());

/// What kind of object a handle names.
pub(crate) enum Kind {
    Driver(Driver),
    Device(Device),
    Queue(Queue),
    Request(Request),
    File(File),
    Timer(Timer),
    Dpc(Dpc),
    WorkItem(WorkItem),
    WaitLock(WaitLock),
    SpinLock(SpinLockObject),
    Memory(Memory),
    Key(Key),
    String(StringObject),
    General,
}

impl Kind {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Driver(_) => "WDFDRIVER",
            Self::Device(_) => "WDFDEVICE",
            Self::Queue(_) => "WDFQUEUE",
            Self::Request(_) => "WDFREQUEST",
            Self::File(_) => "WDFFILEOBJECT",
            Self::Timer(_) => "WDFTIMER",
            Self::Dpc(_) => "WDFDPC",
            Self::WorkItem(_) => "WDFWORKITEM",
            Self::WaitLock(_) => "WDFWAITLOCK",
            Self::SpinLock(_) => "WDFSPINLOCK",
            Self::Memory(_) => "WDFMEMORY",
            Self::Key(_) => "WDFKEY",
            Self::String(_) => "WDFSTRING",
            Self::General => "WDFOBJECT",
        }
    }

    /// Its end waits for something: PASSIVE_LEVEL only.
    const fn waits(&self) -> bool {
        matches!(
            self,
            Self::Driver(_)
                | Self::Device(_)
                | Self::Queue(_)
                | Self::Timer(_)
                | Self::Dpc(_)
                | Self::WorkItem(_)
                | Self::Key(_)
        )
    }

    /// `WdfObjectDelete` may be called for it.
    pub(crate) const fn deletable(&self) -> bool {
        !matches!(
            self,
            Self::Driver(_) | Self::Queue(_) | Self::Request(_) | Self::File(_)
        )
    }
}

/// An object. Lives in an `Arc`: its address does not change.
pub(crate) struct Object {
    pub(crate) client: Arc<Client>,
    pub(crate) kind: Kind,
    handle: AtomicU64,
    contexts: SpinLock<Vec<Context>>,
    /// The level its callbacks run at: PASSIVE, or whatever the caller is at.
    pub(crate) passive: bool,
}

impl Object {
    pub(crate) fn handle(&self) -> Handle {
        Handle(self.handle.load(Ordering::Acquire))
    }

    /// As a driver sees it.
    pub(crate) fn pointer<T>(&self) -> *mut T {
        self.handle().0 as *mut T
    }

    /// The block of that context type.
    pub(crate) fn context(
        &self,
        unique_type: wdk_standin::wdk_sys::PCWDF_OBJECT_CONTEXT_TYPE_INFO,
    ) -> Option<wdk_standin::wdk_sys::PVOID> {
        self.contexts
            .lock()
            .iter()
            .find_map(|context| context.block(unique_type))
    }

    pub(crate) fn add_context(&self, context: Context) {
        self.contexts.lock().push(context);
    }

    /// Everything below it can still be used; its callbacks stop.
    fn dispose(self: &Arc<Self>) {
        match &self.kind {
            Kind::Timer(timer) => timer.dispose(),
            Kind::Dpc(dpc) => dpc.dispose(),
            Kind::WorkItem(item) => item.dispose(),
            Kind::Queue(_) => crate::queue::dispose(self),
            Kind::Device(device) => device.dispose(self),
            _ => {}
        }
    }

    /// After its cleanup callbacks.
    fn retire(&self) {
        match &self.kind {
            Kind::Device(device) => device.retire(),
            Kind::Key(key) => key.close(),
            _ => {}
        }
    }

    fn run(&self, callbacks: Vec<unsafe extern "C" fn(WDFOBJECT)>, which: &str) {
        for callback in callbacks {
            let before = irql::current();
            // SAFETY: the driver gave this callback for this object.
            unsafe { callback(self.pointer()) };
            check_irql(before, which);
        }
    }
}

/// A callback must come back at the IRQL at which it was called.
pub(crate) fn check_irql(before: u8, callback: &str) {
    let after = irql::current();
    if after != before {
        violation::raise(
            Code::Irql,
            u64::from(before),
            u64::from(after),
            format_args!("{callback} was called at IRQL {before} and returned at IRQL {after}"),
        );
    }
}

/// Makes an object and puts it into the tree.
pub(crate) fn create(
    call: &Call,
    attributes: &Attributes,
    parent: Parent,
    kind: Kind,
) -> Result<Arc<Object>, NTSTATUS> {
    let parent = attributes.parent(call, parent)?;
    let inherited = parent.is_some_and(|parent| call.any(parent).passive);
    let object = Arc::new(Object {
        client: call.client().clone(),
        kind,
        handle: AtomicU64::new(0),
        contexts: SpinLock::new(Vec::new()),
        passive: attributes.passive().unwrap_or(inherited),
    });
    let inserted = STORE.lock().insert(parent, object.clone());
    let handle = inserted.map_err(|_| STATUS_DELETE_PENDING)?;
    object.handle.store(handle.0, Ordering::Release);
    for context in attributes.contexts(handle) {
        object.add_context(context);
    }
    Ok(object)
}

/// Deletes an object and all below it: stop, clean up (children first), drop the
/// framework's references. `who` names the caller in a violation.
pub(crate) fn delete(handle: Handle, who: &str) {
    let doomed = {
        let mut store = STORE.lock();
        let Ok(order) = store.doom(handle) else {
            drop(store);
            violation::raise(
                Code::Deletion,
                handle.0,
                0,
                format_args!("{who}: the handle is stale"),
            );
        };
        order
            .into_iter()
            .filter_map(|handle| store.get(handle).ok().cloned())
            .collect::<Vec<_>>()
    };
    if doomed.is_empty() {
        violation::raise(
            Code::Deletion,
            handle.0,
            0,
            format_args!("{who}: the object has been deleted before"),
        );
    }
    if irql::current() > irql::PASSIVE
        && let Some(object) = doomed.iter().find(|object| object.kind.waits())
    {
        violation::raise(
            Code::Irql,
            handle.0,
            u64::from(irql::current()),
            format_args!(
                "{who}: a {} is deleted at PASSIVE_LEVEL only",
                object.kind.name()
            ),
        );
    }
    for object in &doomed {
        object.dispose();
        let callbacks = object
            .contexts
            .lock()
            .iter()
            .filter_map(|c| c.cleanup)
            .collect();
        object.run(callbacks, "EvtCleanupCallback");
        object.retire();
    }
    for object in doomed {
        dereference(object.handle(), who);
    }
}

/// Drops a reference; the last one runs the destroy callbacks and frees.
pub(crate) fn dereference(handle: Handle, who: &str) {
    let (last, object) = {
        let mut store = STORE.lock();
        let object = store.get(handle).cloned();
        (store.dereference(handle), object)
    };
    let (Ok(last), Ok(object)) = (last, object) else {
        violation::raise(
            Code::Handle,
            handle.0,
            0,
            format_args!("{who}: no reference is left to drop"),
        );
    };
    if !last {
        return;
    }
    if !STORE.lock().is_deleted(handle).unwrap_or(true) {
        violation::raise(
            Code::Deletion,
            handle.0,
            0,
            format_args!(
                "{who}: a {} lost its last reference undeleted",
                object.kind.name()
            ),
        );
    }
    let callbacks = object
        .contexts
        .lock()
        .iter()
        .filter_map(|c| c.destroy)
        .collect();
    object.run(callbacks, "EvtDestroyCallback");
    let removed: Result<Arc<Object>, Bad> = STORE.lock().remove(handle);
    drop(removed);
}
