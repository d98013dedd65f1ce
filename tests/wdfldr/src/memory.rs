//! WDFMEMORY: a block of the framework's, or a view of a request's buffer.

use alloc::boxed::Box;

use wdk_standin::wdk_sys::{
    _POOL_TYPE, NTSTATUS, POOL_TYPE, PVOID, PWDF_DRIVER_GLOBALS, PWDF_OBJECT_ATTRIBUTES,
    STATUS_INVALID_PARAMETER, ULONG, WDFMEMORY,
};

use crate::{
    call::Call,
    nt::irql,
    object::{self, Attributes, Kind, Parent},
};

pub(crate) struct Memory {
    address: PVOID,
    length: usize,
    _owned: Option<Box<[u128]>>,
}

// SAFETY: an address and a length; what lies there is the driver's business.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Somebody else's memory.
    pub(crate) const fn borrowed(address: PVOID, length: usize) -> Self {
        Self {
            address,
            length,
            _owned: None,
        }
    }

    fn owned(length: usize) -> Self {
        let mut block = alloc::vec![0_u128; length.div_ceil(16)].into_boxed_slice();
        Self {
            address: block.as_mut_ptr().cast(),
            length,
            _owned: Some(block),
        }
    }
}

pub(crate) unsafe extern "C" fn wdf_memory_create(
    globals: PWDF_DRIVER_GLOBALS,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    pool: POOL_TYPE,
    _tag: ULONG,
    size: usize,
    memory: *mut WDFMEMORY,
    buffer: *mut PVOID,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfMemoryCreate", irql::DISPATCH, globals) };
    call.require(
        pool != _POOL_TYPE::PagedPool || irql::current() <= irql::APC,
        format_args!("paged pool at IRQL {}", irql::current()),
    );
    call.require(
        pool != _POOL_TYPE::NonPagedPool,
        format_args!("executable pool: use NonPagedPoolNx"),
    );
    if size == 0 {
        return STATUS_INVALID_PARAMETER;
    }
    let made = Attributes::read(&call, attributes).and_then(|attributes| {
        let kind = Kind::Memory(Memory::owned(size));
        object::create(&call, &attributes, Parent::Default(call.driver()), kind)
    });
    if let Ok(made) = &made
        && let Kind::Memory(inner) = &made.kind
    {
        call.write_optional(buffer, inner.address);
    }
    call.finish(made, memory)
}

pub(crate) unsafe extern "C" fn wdf_memory_get_buffer(
    globals: PWDF_DRIVER_GLOBALS,
    memory: WDFMEMORY,
    size: *mut usize,
) -> PVOID {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfMemoryGetBuffer", irql::DISPATCH, globals) };
    let memory = call.memory(memory);
    call.write_optional(size, memory.length);
    memory.address
}
