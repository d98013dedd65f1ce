//! Thin, checked covers of the WDM calls that the framework stands on.

pub(crate) mod event;
pub(crate) mod irp;
pub(crate) mod irql;
pub(crate) mod pinned;
pub(crate) mod spinlock;
pub(crate) mod text;
pub(crate) mod violation;
pub(crate) mod worker;
