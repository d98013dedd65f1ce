//! WDFDPC.

use wdk_standin::wdk_sys::{
    BOOLEAN, KDPC, NTSTATUS, PVOID, PWDF_DPC_CONFIG, PWDF_DRIVER_GLOBALS, PWDF_OBJECT_ATTRIBUTES,
    STATUS_INVALID_DEVICE_REQUEST, WDF_DPC_CONFIG, WDFDPC,
    ntddk::{KeFlushQueuedDpcs, KeInitializeDpc, KeInsertQueueDpc, KeRemoveQueueDpc},
};

use super::{STATUS_WDF_INCOMPATIBLE_EXECUTION_LEVEL, live, parent_device};
use crate::{
    call::Call,
    nt::{irql, pinned::Pinned},
    object::{self, Attributes, Kind, Parent, check_irql, store::Handle},
};

pub(crate) struct Dpc {
    config: WDF_DPC_CONFIG,
    dpc: Pinned<KDPC>,
}

impl Dpc {
    /// Not queued any more, and the callback has returned.
    pub(crate) fn dispose(&self) {
        // SAFETY: initialised at creation.
        unsafe { KeRemoveQueueDpc(self.dpc.get()) };
        // SAFETY: PASSIVE_LEVEL, as deletion and waiting cancels require.
        unsafe { KeFlushQueuedDpcs() };
    }
}

unsafe extern "C" fn run(_dpc: *mut KDPC, context: PVOID, _a: PVOID, _b: PVOID) {
    if let Some(object) = live(Handle(context.addr() as u64))
        && let Kind::Dpc(dpc) = &object.kind
        && let Some(callback) = dpc.config.EvtDpcFunc
    {
        let before = irql::current();
        // SAFETY: the driver's callback with its own handle.
        unsafe { callback(object.pointer::<_>()) };
        check_irql(before, "EvtDpcFunc");
    }
}

pub(crate) unsafe extern "C" fn wdf_dpc_create(
    globals: PWDF_DRIVER_GLOBALS,
    config: PWDF_DPC_CONFIG,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    dpc: *mut WDFDPC,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDpcCreate", irql::DISPATCH, globals) };
    let config: WDF_DPC_CONFIG = call.read(config, "WDF_DPC_CONFIG");
    call.size("WDF_DPC_CONFIG", config.Size, size_of::<WDF_DPC_CONFIG>());
    call.require(
        config.EvtDpcFunc.is_some(),
        format_args!("EvtDpcFunc is null"),
    );
    let made = Attributes::read(&call, attributes).and_then(|attributes| {
        let (parent, device) = parent_device(&call, &attributes)?;
        if device.is_none() {
            return Err(STATUS_INVALID_DEVICE_REQUEST);
        }
        if config.AutomaticSerialization != 0 && parent.passive {
            return Err(STATUS_WDF_INCOMPATIBLE_EXECUTION_LEVEL);
        }
        let kind = Kind::Dpc(Dpc {
            config,
            dpc: Pinned::new(),
        });
        object::create(&call, &attributes, Parent::Required, kind)
    });
    if let Ok(object) = &made
        && let Kind::Dpc(inner) = &object.kind
    {
        // SAFETY: nonpaged, and it does not move any more.
        unsafe { KeInitializeDpc(inner.dpc.get(), Some(run), object.pointer()) };
    }
    call.finish(made, dpc)
}

pub(crate) unsafe extern "C" fn wdf_dpc_enqueue(
    globals: PWDF_DRIVER_GLOBALS,
    dpc: WDFDPC,
) -> BOOLEAN {
    // SAFETY: a driver's call; any IRQL is allowed, but the handle table's lock
    // is not to be taken above DISPATCH_LEVEL.
    let call = unsafe { Call::enter("WdfDpcEnqueue", irql::DISPATCH, globals) };
    let dpc = call.dpc(dpc);
    // SAFETY: initialised at creation.
    unsafe { KeInsertQueueDpc(dpc.dpc.get(), core::ptr::null_mut(), core::ptr::null_mut()) }
}

pub(crate) unsafe extern "C" fn wdf_dpc_cancel(
    globals: PWDF_DRIVER_GLOBALS,
    dpc: WDFDPC,
    wait: BOOLEAN,
) -> BOOLEAN {
    let highest = if wait == 0 {
        irql::DISPATCH
    } else {
        irql::PASSIVE
    };
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDpcCancel", highest, globals) };
    let dpc = call.dpc(dpc);
    // SAFETY: initialised at creation.
    let was_queued = unsafe { KeRemoveQueueDpc(dpc.dpc.get()) };
    if wait != 0 {
        // SAFETY: PASSIVE_LEVEL, checked above.
        unsafe { KeFlushQueuedDpcs() };
    }
    was_queued
}
