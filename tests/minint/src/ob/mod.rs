//! The object manager: reference counts, handles, names.
//!
//! An object is a kernel structure at some address; its counts and its type are
//! kept here, in one table behind one lock, not in a header in front of it. The
//! table is the only owner of the counts; whoever made an object passes the
//! routine that ends it, which runs at PASSIVE_LEVEL when the last reference is
//! gone, in the caller's thread or, above PASSIVE_LEVEL, in a system worker.
//! The locks are never held across a call into another component.

pub(crate) mod argument;
mod directory;
mod handle;
pub(crate) mod namespace;
mod reference;
mod types;

pub(crate) use directory::{
    insert_name, look_up, remove_name, remove_object_names, resolve, with_names,
};
pub(crate) use handle::{close_handle, insert_handle, insert_handle_with, object_of};
pub(crate) use reference::{
    count, dereference, forget, insert, kind_of, reference, reference_foreign,
};
pub(crate) use types::ObType;

use namespace::Node;

/// Makes the directories that the system has at start. PASSIVE_LEVEL, once.
pub(crate) fn start() {
    for path in [
        "\\Device",
        "\\??",
        "\\Driver",
        "\\FileSystem",
        "\\Callback",
        "\\BaseNamedObjects",
        "\\KernelObjects",
        "\\ObjectTypes",
        "\\Registry",
    ] {
        // The tree is empty: no name can collide.
        let _ = insert_name(path, Node::Directory);
    }
}
