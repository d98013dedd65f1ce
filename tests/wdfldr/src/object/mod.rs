//! Framework objects: one tree for all drivers, one spin lock.

pub(crate) mod store;

#[cfg(not(test))]
mod attributes;
#[cfg(not(test))]
mod context;
#[cfg(not(test))]
mod functions;
#[cfg(not(test))]
mod instance;

#[cfg(not(test))]
pub(crate) use attributes::{Attributes, Parent};
#[cfg(not(test))]
pub(crate) use functions::*;
#[cfg(not(test))]
pub(crate) use instance::{Kind, Object, STORE, check_irql, create, delete};
