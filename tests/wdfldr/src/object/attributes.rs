//! WDF_OBJECT_ATTRIBUTES, checked as each kind of object wants it.

use alloc::vec::Vec;

use wdk_standin::wdk_sys::{
    _WDF_EXECUTION_LEVEL as Level, _WDF_SYNCHRONIZATION_SCOPE as Scope, NTSTATUS,
    PCWDF_OBJECT_CONTEXT_TYPE_INFO, PWDF_OBJECT_ATTRIBUTES, STATUS_OBJECT_NAME_INVALID,
    WDF_OBJECT_ATTRIBUTES, WDF_OBJECT_CONTEXT_TYPE_INFO,
};

use super::{context::Context, store::Handle};
use crate::{call::Call, nt::violation};

const STATUS_WDF_PARENT_ASSIGNMENT_NOT_ALLOWED: NTSTATUS = 0xC020_020F_u32.cast_signed();
const STATUS_WDF_SYNCHRONIZATION_SCOPE_INVALID: NTSTATUS = 0xC020_0210_u32.cast_signed();
const STATUS_WDF_EXECUTION_LEVEL_INVALID: NTSTATUS = 0xC020_0211_u32.cast_signed();
const STATUS_WDF_PARENT_NOT_SPECIFIED: NTSTATUS = 0xC020_0212_u32.cast_signed();

/// What a kind of object says about `ParentObject`.
#[derive(Clone, Copy)]
pub(crate) enum Parent {
    /// The driver may not name one; this is it.
    Fixed(Option<Handle>),
    /// This one unless the driver names another.
    Default(Handle),
    /// The driver must name one.
    Required,
}

/// A checked copy of the driver's structure.
#[derive(Clone, Copy, Default)]
pub(crate) struct Attributes {
    given: Option<WDF_OBJECT_ATTRIBUTES>,
}

// SAFETY: pointers to the driver's static type info and callbacks only.
unsafe impl Send for Attributes {}
// SAFETY: as above.
unsafe impl Sync for Attributes {}

impl Attributes {
    /// Copies and checks; a null pointer means defaults.
    pub(crate) fn read(call: &Call, attributes: PWDF_OBJECT_ATTRIBUTES) -> Result<Self, NTSTATUS> {
        if attributes.is_null() {
            return Ok(Self::default());
        }
        let given: WDF_OBJECT_ATTRIBUTES = call.read(attributes, "WDF_OBJECT_ATTRIBUTES");
        call.size(
            "WDF_OBJECT_ATTRIBUTES",
            given.Size,
            size_of::<WDF_OBJECT_ATTRIBUTES>(),
        );
        if !(Level::WdfExecutionLevelInheritFromParent..=Level::WdfExecutionLevelDispatch)
            .contains(&given.ExecutionLevel)
        {
            violation::print(format_args!(
                "{}: ExecutionLevel {} is invalid; WDF_OBJECT_ATTRIBUTES needs InheritFromParent",
                call.name(),
                given.ExecutionLevel
            ));
            return Err(STATUS_WDF_EXECUTION_LEVEL_INVALID);
        }
        if !(Scope::WdfSynchronizationScopeInheritFromParent..=Scope::WdfSynchronizationScopeNone)
            .contains(&given.SynchronizationScope)
        {
            violation::print(format_args!(
                "{}: SynchronizationScope {} is invalid; WDF_OBJECT_ATTRIBUTES needs InheritFromParent",
                call.name(),
                given.SynchronizationScope
            ));
            return Err(STATUS_WDF_SYNCHRONIZATION_SCOPE_INVALID);
        }
        call.require(
            !matches!(
                given.SynchronizationScope,
                Scope::WdfSynchronizationScopeDevice | Scope::WdfSynchronizationScopeQueue
            ),
            format_args!("this framework serialises no callbacks: use WdfSynchronizationScopeNone"),
        );
        if given.ContextTypeInfo.is_null() {
            call.require(
                given.ContextSizeOverride == 0,
                format_args!("ContextSizeOverride without ContextTypeInfo"),
            );
        } else {
            let info = type_info(call, given.ContextTypeInfo);
            if info.ContextName.is_null() {
                return Err(STATUS_OBJECT_NAME_INVALID);
            }
            call.require(
                given.ContextSizeOverride == 0 || given.ContextSizeOverride >= info.ContextSize,
                format_args!("ContextSizeOverride is smaller than the context type"),
            );
        }
        Ok(Self { given: Some(given) })
    }

    /// The parent to take, by the rule of the kind.
    pub(crate) fn parent(&self, call: &Call, rule: Parent) -> Result<Option<Handle>, NTSTATUS> {
        let given = self
            .given
            .map(|given| Handle(given.ParentObject as u64))
            .filter(|handle| handle.0 != 0);
        if let Some(parent) = given {
            let _ = call.any(parent);
        }
        match (rule, given) {
            (Parent::Fixed(_), Some(_)) => Err(STATUS_WDF_PARENT_ASSIGNMENT_NOT_ALLOWED),
            (Parent::Fixed(parent), None) => Ok(parent),
            (Parent::Default(_) | Parent::Required, Some(parent))
            | (Parent::Default(parent), None) => Ok(Some(parent)),
            (Parent::Required, None) => Err(STATUS_WDF_PARENT_NOT_SPECIFIED),
        }
    }

    /// The execution level asked for, if any.
    pub(crate) fn passive(&self) -> Option<bool> {
        match self.given?.ExecutionLevel {
            Level::WdfExecutionLevelPassive => Some(true),
            Level::WdfExecutionLevelDispatch => Some(false),
            _ => None,
        }
    }

    /// The first context of an object made with these attributes.
    pub(crate) fn contexts(&self, object: Handle) -> Vec<Context> {
        let mut contexts = Vec::new();
        if let Some(given) = self.given {
            let (unique, bytes) = unique_type(&given);
            contexts.push(Context::new(
                object,
                unique,
                bytes,
                given.EvtCleanupCallback,
                given.EvtDestroyCallback,
            ));
        }
        contexts
    }

    /// Whether they carry a context type.
    pub(crate) fn context_type(&self) -> PCWDF_OBJECT_CONTEXT_TYPE_INFO {
        self.given
            .map_or(core::ptr::null(), |given| unique_type(&given).0)
    }
}

fn type_info(call: &Call, info: PCWDF_OBJECT_CONTEXT_TYPE_INFO) -> WDF_OBJECT_CONTEXT_TYPE_INFO {
    let info: WDF_OBJECT_CONTEXT_TYPE_INFO = call.read(info, "WDF_OBJECT_CONTEXT_TYPE_INFO");
    call.size(
        "WDF_OBJECT_CONTEXT_TYPE_INFO",
        info.Size,
        size_of::<WDF_OBJECT_CONTEXT_TYPE_INFO>(),
    );
    info
}

/// The type that stands for all of its name, and the size of the block.
fn unique_type(given: &WDF_OBJECT_ATTRIBUTES) -> (PCWDF_OBJECT_CONTEXT_TYPE_INFO, usize) {
    // SAFETY: checked when the attributes were read; static data of the driver.
    let Some(info) = (unsafe { given.ContextTypeInfo.as_ref() }) else {
        return (core::ptr::null(), 0);
    };
    let unique = if let Some(function) = info.EvtDriverGetUniqueContextType {
        // SAFETY: the driver's function takes nothing and gives a static.
        unsafe { function() }
    } else if info.UniqueType.is_null() {
        given.ContextTypeInfo
    } else {
        info.UniqueType
    };
    let bytes = if given.ContextSizeOverride == 0 {
        info.ContextSize
    } else {
        given.ContextSizeOverride
    };
    (unique, bytes)
}
