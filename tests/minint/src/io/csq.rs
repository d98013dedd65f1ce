//! Cancel-safe IRP queues: the driver keeps the queue and its lock, these routines
//! keep the cancel protocol ("Cancel-Safe IRP Queues").
//!
//! The queue is remembered in `Tail.Overlay.DriverContext[3]` of a queued IRP,
//! or the context of the insertion, as documented. IRQL at most DISPATCH_LEVEL.

use core::ffi::c_void;

use wdk_standin::wdk_sys::{
    IO_CSQ, NTSTATUS, PDEVICE_OBJECT, PIO_CSQ, PIO_CSQ_ACQUIRE_LOCK, PIO_CSQ_COMPLETE_CANCELED_IRP,
    PIO_CSQ_INSERT_IRP, PIO_CSQ_INSERT_IRP_EX, PIO_CSQ_IRP_CONTEXT, PIO_CSQ_PEEK_NEXT_IRP,
    PIO_CSQ_RELEASE_LOCK, PIO_CSQ_REMOVE_IRP, PIRP, PVOID,
};

use super::irp::{IoReleaseCancelSpinLock, exchange_cancel_routine};
use super::stack;
use crate::ke::irql::{DISPATCH_LEVEL, require_irql};
use crate::ob::argument::{borrow, own, put};
use crate::rtl::status::STATUS_SUCCESS;

const TYPE_CSQ_IRP_CONTEXT: u32 = 1;
const TYPE_CSQ: u32 = 2;
const TYPE_CSQ_EX: u32 = 3;

/// `DriverContext[3]`.
fn slot<'a>(irp: PIRP) -> &'a mut *mut c_void {
    let header = own!(irp);
    // SAFETY: plain members of a union; the slot belongs to the queue meanwhile.
    let overlay = unsafe { &mut header.Tail.Overlay };
    // SAFETY: as above.
    let anonymous = unsafe { &mut overlay.__bindgen_anon_1.__bindgen_anon_1 };
    own!(&raw mut anonymous.DriverContext[3])
}

fn acquire(csq: PIO_CSQ) -> u8 {
    let mut irql = 0;
    if let Some(acquire) = own!(csq).CsqAcquireLock {
        // SAFETY: the driver's routine for its own queue.
        unsafe { acquire(csq, &raw mut irql) };
    }
    irql
}

fn release(csq: PIO_CSQ, irql: u8) {
    if let Some(release) = own!(csq).CsqReleaseLock {
        // SAFETY: the driver's routine for its own queue, its lock held.
        unsafe { release(csq, irql) };
    }
}

fn remove(csq: PIO_CSQ, irp: PIRP) {
    if let Some(remove) = own!(csq).CsqRemoveIrp {
        // SAFETY: as above, for an IRP of the queue.
        unsafe { remove(csq, irp) };
    }
}

fn complete_cancelled(csq: PIO_CSQ, irp: PIRP) {
    if let Some(complete) = own!(csq).CsqCompleteCanceledIrp {
        // SAFETY: as above; the IRP is out of the queue.
        unsafe { complete(csq, irp) };
    }
}

unsafe extern "C" fn cancelled(_device: PDEVICE_OBJECT, irp: PIRP) {
    let irql = own!(irp).CancelIrql;
    // SAFETY: IoCancelIrp holds it.
    unsafe { IoReleaseCancelSpinLock(irql) };
    let kept = *slot(irp);
    let csq: PIO_CSQ = match *own!(kept.cast::<u32>()) {
        TYPE_CSQ | TYPE_CSQ_EX => kept.cast(),
        _ => own!(kept.cast::<wdk_standin::wdk_sys::IO_CSQ_IRP_CONTEXT>()).Csq,
    };
    own!(csq).ReservePointer = core::ptr::null_mut();
    let irql = acquire(csq);
    remove(csq, irp);
    forget_context(kept);
    *slot(irp) = core::ptr::null_mut();
    release(csq, irql);
    complete_cancelled(csq, irp);
}

/// Marks the context of an insertion as used up.
fn forget_context(kept: *mut c_void) {
    if *own!(kept.cast::<u32>()) == TYPE_CSQ_IRP_CONTEXT {
        own!(kept.cast::<wdk_standin::wdk_sys::IO_CSQ_IRP_CONTEXT>()).Irp = core::ptr::null_mut();
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoCsqInitialize(
    csq: PIO_CSQ,
    insert: PIO_CSQ_INSERT_IRP,
    remove: PIO_CSQ_REMOVE_IRP,
    peek: PIO_CSQ_PEEK_NEXT_IRP,
    acquire: PIO_CSQ_ACQUIRE_LOCK,
    release: PIO_CSQ_RELEASE_LOCK,
    complete: PIO_CSQ_COMPLETE_CANCELED_IRP,
) -> NTSTATUS {
    put!(
        csq,
        IO_CSQ {
            Type: TYPE_CSQ,
            CsqInsertIrp: insert,
            CsqRemoveIrp: remove,
            CsqPeekNextIrp: peek,
            CsqAcquireLock: acquire,
            CsqReleaseLock: release,
            CsqCompleteCanceledIrp: complete,
            ReservePointer: core::ptr::null_mut(),
        },
        "IoCsqInitialize"
    );
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoCsqInitializeEx(
    csq: PIO_CSQ,
    insert: PIO_CSQ_INSERT_IRP_EX,
    remove: PIO_CSQ_REMOVE_IRP,
    peek: PIO_CSQ_PEEK_NEXT_IRP,
    acquire: PIO_CSQ_ACQUIRE_LOCK,
    release: PIO_CSQ_RELEASE_LOCK,
    complete: PIO_CSQ_COMPLETE_CANCELED_IRP,
) -> NTSTATUS {
    // SAFETY: the type in the structure says which prototype the routine has.
    let insert: PIO_CSQ_INSERT_IRP = unsafe { core::mem::transmute(insert) };
    // SAFETY: the same contract.
    let status = unsafe { IoCsqInitialize(csq, insert, remove, peek, acquire, release, complete) };
    own!(csq).Type = TYPE_CSQ_EX;
    status
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoCsqInsertIrpEx(
    csq: PIO_CSQ,
    irp: PIRP,
    context: PIO_CSQ_IRP_CONTEXT,
    insert_context: PVOID,
) -> NTSTATUS {
    const API: &str = "IoCsqInsertIrpEx";
    require_irql(DISPATCH_LEVEL, API);
    let kind = borrow!(csq, API).Type;
    crate::require!(
        kind == TYPE_CSQ || kind == TYPE_CSQ_EX,
        API,
        "{:p} is not a queue",
        csq
    );
    *slot(irp) = if context.is_null() {
        csq.cast()
    } else {
        let context_data = borrow!(context, API);
        context_data.Type = TYPE_CSQ_IRP_CONTEXT;
        context_data.Irp = irp;
        context_data.Csq = csq;
        context.cast()
    };
    own!(csq).ReservePointer = core::ptr::null_mut();
    let irql = acquire(csq);
    own!(stack::current(irp)).Control |= stack::PENDING_RETURNED;
    let status = insert(csq, irp, insert_context, kind);
    if status < 0 {
        own!(stack::current(irp)).Control &= !stack::PENDING_RETURNED;
        forget_context(*slot(irp));
        *slot(irp) = core::ptr::null_mut();
        release(csq, irql);
        return status;
    }
    let _ = exchange_cancel_routine(irp, Some(cancelled));
    // Cancelled before the routine was set: nobody else will call it.
    if own!(irp).Cancel != 0 && exchange_cancel_routine(irp, None).is_some() {
        let kept = *slot(irp);
        remove(csq, irp);
        forget_context(kept);
        *slot(irp) = core::ptr::null_mut();
        release(csq, irql);
        complete_cancelled(csq, irp);
        return status;
    }
    release(csq, irql);
    status
}

fn insert(csq: PIO_CSQ, irp: PIRP, context: PVOID, kind: u32) -> NTSTATUS {
    let Some(routine) = own!(csq).CsqInsertIrp else {
        return STATUS_SUCCESS;
    };
    if kind == TYPE_CSQ_EX {
        // SAFETY: `IoCsqInitializeEx` stored a routine of this type.
        let routine: PIO_CSQ_INSERT_IRP_EX = unsafe { core::mem::transmute(routine) };
        // SAFETY: the driver's routine for its own queue, its lock held.
        routine.map_or(STATUS_SUCCESS, |routine| unsafe {
            routine(csq, irp, context)
        })
    } else {
        // SAFETY: as above.
        unsafe { routine(csq, irp) };
        STATUS_SUCCESS
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoCsqInsertIrp(
    csq: PIO_CSQ,
    irp: PIRP,
    context: PIO_CSQ_IRP_CONTEXT,
) {
    // SAFETY: the same contract.
    let _ = unsafe { IoCsqInsertIrpEx(csq, irp, context, core::ptr::null_mut()) };
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoCsqRemoveNextIrp(csq: PIO_CSQ, context: PVOID) -> PIRP {
    const API: &str = "IoCsqRemoveNextIrp";
    require_irql(DISPATCH_LEVEL, API);
    let peek = borrow!(csq, API).CsqPeekNextIrp;
    let irql = acquire(csq);
    let mut irp: PIRP = core::ptr::null_mut();
    loop {
        if let Some(peek) = peek {
            // SAFETY: the driver's routine for its own queue, its lock held.
            irp = unsafe { peek(csq, irp, context) };
        }
        if irp.is_null() {
            break;
        }
        // Without its cancel routine the IRP is being cancelled: skip it.
        if exchange_cancel_routine(irp, None).is_some() {
            let kept = *slot(irp);
            remove(csq, irp);
            forget_context(kept);
            *slot(irp) = core::ptr::null_mut();
            break;
        }
    }
    release(csq, irql);
    irp
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoCsqRemoveIrp(csq: PIO_CSQ, context: PIO_CSQ_IRP_CONTEXT) -> PIRP {
    const API: &str = "IoCsqRemoveIrp";
    require_irql(DISPATCH_LEVEL, API);
    let irql = acquire(csq);
    let kept = borrow!(context, API);
    let mut irp = kept.Irp;
    if !irp.is_null() {
        if exchange_cancel_routine(irp, None).is_some() {
            remove(csq, irp);
            kept.Irp = core::ptr::null_mut();
            *slot(irp) = core::ptr::null_mut();
        } else {
            irp = core::ptr::null_mut();
        }
    }
    release(csq, irql);
    irp
}
