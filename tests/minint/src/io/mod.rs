//! The I/O manager: drivers, devices, files, IRPs and what serves them.
//!
//! Structures that drivers see have the DDK's layout and are the drivers' to use
//! as documented; what the I/O manager itself remembers of them lies in tables
//! of this folder, keyed by address, each behind its own lock. No lock is held
//! while a driver's routine runs.

pub(crate) mod access;
mod build;
mod csq;
pub(crate) mod device;
pub(crate) mod driver;
mod errorlog;
pub(crate) mod file;
pub(crate) mod irp;
pub(crate) mod mdl;
mod queue;
mod remove_lock;
pub(crate) mod request;
pub(crate) mod shutdown;
pub(crate) mod stack;
mod thread;
mod timer;
pub(crate) mod workitem;
