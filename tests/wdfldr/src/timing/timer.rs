//! WDFTIMER.

use core::ffi::c_void;

use wdk_standin::wdk_sys::{
    _TIMER_TYPE, BOOLEAN, KDPC, KTIMER, LARGE_INTEGER, LONG, LONGLONG, NTSTATUS, PDEVICE_OBJECT,
    PVOID, PWDF_DRIVER_GLOBALS, PWDF_OBJECT_ATTRIBUTES, PWDF_TIMER_CONFIG,
    STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_DEVICE_REQUEST, WDF_TIMER_CONFIG, WDFOBJECT,
    WDFTIMER,
    ntddk::{KeCancelTimer, KeFlushQueuedDpcs, KeInitializeDpc, KeInitializeTimerEx, KeSetTimerEx},
};

use super::{STATUS_WDF_INCOMPATIBLE_EXECUTION_LEVEL, live, parent_device, passive::Passive};
use crate::{
    call::Call,
    nt::{irql, pinned::Pinned},
    object::{self, Attributes, Kind, Object, Parent, STORE, check_irql, store::Handle},
};

pub(crate) struct Timer {
    config: WDF_TIMER_CONFIG,
    kernel: Pinned<KTIMER>,
    dpc: Pinned<KDPC>,
    passive: Option<Passive>,
}

impl Timer {
    /// The timer fires no more and its callback has returned.
    pub(crate) fn dispose(&self) {
        // SAFETY: initialised at creation.
        unsafe { KeCancelTimer(self.kernel.get()) };
        self.settle();
    }

    fn settle(&self) {
        // SAFETY: PASSIVE_LEVEL, as deletion and waiting stops require.
        unsafe { KeFlushQueuedDpcs() };
        if let Some(passive) = &self.passive {
            passive.wait();
        }
    }
}

fn fire(object: &Object) {
    let Kind::Timer(timer) = &object.kind else {
        return;
    };
    if let Some(callback) = timer.config.EvtTimerFunc {
        let before = irql::current();
        // SAFETY: the driver's callback with its own handle.
        unsafe { callback(object.pointer::<_>()) };
        check_irql(before, "EvtTimerFunc");
    }
}

unsafe extern "C" fn expired(_dpc: *mut KDPC, context: PVOID, _a: PVOID, _b: PVOID) {
    let Some(object) = live(Handle(context.addr() as u64)) else {
        return;
    };
    let Kind::Timer(timer) = &object.kind else {
        return;
    };
    match &timer.passive {
        Some(passive) => passive.queue(expired_passive, object.handle()),
        None => fire(&object),
    }
}

unsafe extern "C" fn expired_passive(_device: PDEVICE_OBJECT, context: *mut c_void) {
    let found = STORE.lock().get(Handle(context.addr() as u64)).cloned();
    if let Ok(object) = found
        && let Kind::Timer(timer) = &object.kind
        && let Some(passive) = &timer.passive
    {
        passive.run(|| fire(&object));
    }
}

pub(crate) unsafe extern "C" fn wdf_timer_create(
    globals: PWDF_DRIVER_GLOBALS,
    config: PWDF_TIMER_CONFIG,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    timer: *mut WDFTIMER,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfTimerCreate", irql::DISPATCH, globals) };
    let config: WDF_TIMER_CONFIG = call.read(config, "WDF_TIMER_CONFIG");
    call.size(
        "WDF_TIMER_CONFIG",
        config.Size,
        size_of::<WDF_TIMER_CONFIG>(),
    );
    call.require(
        config.EvtTimerFunc.is_some(),
        format_args!("EvtTimerFunc is null"),
    );
    call.require(
        LONG::try_from(config.Period).is_ok(),
        format_args!("Period is too long"),
    );
    call.require(
        config.UseHighResolutionTimer == 0 || config.TolerableDelay == 0,
        format_args!("TolerableDelay with UseHighResolutionTimer"),
    );
    let made = Attributes::read(&call, attributes).and_then(|attributes| {
        let (parent, device) = parent_device(&call, &attributes)?;
        let passive = attributes.passive() == Some(true);
        if config.AutomaticSerialization != 0 && parent.passive && !passive {
            return Err(STATUS_WDF_INCOMPATIBLE_EXECUTION_LEVEL);
        }
        let passive = if passive {
            let device = device.ok_or(STATUS_INVALID_DEVICE_REQUEST)?;
            Some(Passive::new(device).ok_or(STATUS_INSUFFICIENT_RESOURCES)?)
        } else {
            None
        };
        let kind = Kind::Timer(Timer {
            config,
            kernel: Pinned::new(),
            dpc: Pinned::new(),
            passive,
        });
        object::create(&call, &attributes, Parent::Required, kind)
    });
    if let Ok(object) = &made
        && let Kind::Timer(inner) = &object.kind
    {
        if let Some(passive) = &inner.passive {
            passive.initialize();
        }
        // SAFETY: nonpaged, and it does not move any more.
        unsafe { KeInitializeTimerEx(inner.kernel.get(), _TIMER_TYPE::NotificationTimer) };
        // SAFETY: as above.
        unsafe { KeInitializeDpc(inner.dpc.get(), Some(expired), object.pointer()) };
    }
    call.finish(made, timer)
}

pub(crate) unsafe extern "C" fn wdf_timer_start(
    globals: PWDF_DRIVER_GLOBALS,
    timer: WDFTIMER,
    due: LONGLONG,
) -> BOOLEAN {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfTimerStart", irql::DISPATCH, globals) };
    let timer = call.timer(timer);
    call.require(
        live(timer.object.handle()).is_some(),
        format_args!("the timer is being deleted"),
    );
    let mut time = LARGE_INTEGER::default();
    time.QuadPart = due;
    let period = timer.config.Period.cast_signed();
    // SAFETY: initialised at creation.
    unsafe { KeSetTimerEx(timer.kernel.get(), time, period, timer.dpc.get()) }
}

pub(crate) unsafe extern "C" fn wdf_timer_stop(
    globals: PWDF_DRIVER_GLOBALS,
    timer: WDFTIMER,
    wait: BOOLEAN,
) -> BOOLEAN {
    let highest = if wait == 0 {
        irql::DISPATCH
    } else {
        irql::PASSIVE
    };
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfTimerStop", highest, globals) };
    let timer = call.timer(timer);
    // SAFETY: initialised at creation.
    let was_queued = unsafe { KeCancelTimer(timer.kernel.get()) };
    if wait != 0 {
        timer.settle();
    }
    was_queued
}

pub(crate) unsafe extern "C" fn wdf_timer_get_parent_object(
    globals: PWDF_DRIVER_GLOBALS,
    timer: WDFTIMER,
) -> WDFOBJECT {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfTimerGetParentObject", irql::DISPATCH, globals) };
    let handle = call.timer(timer).object.handle();
    let parent = STORE.lock().parent(handle).ok().flatten();
    parent.map_or(core::ptr::null_mut(), |parent| parent.0 as WDFOBJECT)
}
