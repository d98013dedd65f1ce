//! Object types and the pointers to them that the kernel exports.
//!
//! Constants; any IRQL.

use core::ffi::c_void;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObType {
    /// `DEVICE_OBJECT`.
    Device,
    /// `DRIVER_OBJECT`.
    Driver,
    /// `FILE_OBJECT`.
    File,
    /// `KEVENT`.
    Event,
    /// `KSEMAPHORE`.
    Semaphore,
    /// `KMUTANT`.
    Mutant,
    /// `KTIMER`.
    Timer,
    /// `ETHREAD`.
    Thread,
    /// `EPROCESS`.
    Process,
    /// `CALLBACK_OBJECT`.
    Callback,
    /// A registry key.
    Key,
    /// A section.
    Section,
    /// An access token.
    Token,
}

/// An `OBJECT_TYPE`: opaque to drivers, which compare its address.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct ObjectType {
    kind: ObType,
}

/// An exported `POBJECT_TYPE` variable.
#[repr(transparent)]
#[derive(Debug)]
pub(crate) struct TypePointer(&'static ObjectType);

macro_rules! object_types {
    ($($kind:ident $export:ident;)*) => {
        $(
            #[doc = concat!("`POBJECT_TYPE` of ", stringify!($kind), " objects.")]
            #[unsafe(no_mangle)]
            pub(crate) static $export: TypePointer =
                TypePointer(&ObjectType { kind: ObType::$kind });
        )*

        /// The type that a driver's `POBJECT_TYPE` argument means; NULL is any.
        pub(crate) fn type_of(pointer: *const c_void) -> Option<ObType> {
            let address = pointer.addr();
            $(
                if core::ptr::from_ref($export.0).addr() == address {
                    return Some($export.0.kind);
                }
            )*
            None
        }
    };
}

object_types! {
    Device IoDeviceObjectType;
    Driver IoDriverObjectType;
    File IoFileObjectType;
    Event ExEventObjectType;
    Semaphore ExSemaphoreObjectType;
    Mutant ExMutantObjectType;
    Timer ExTimerObjectType;
    Thread PsThreadType;
    Process PsProcessType;
    Key CmKeyObjectType;
    Section MmSectionObjectType;
    Token SeTokenObjectType;
}
