//! The one name space of the system, behind its lock.
//!
//! Objects in it are addresses; a name holds no reference: whoever ends an object
//! removes its name first. IRQL at most DISPATCH_LEVEL.

use alloc::string::String;

use super::namespace::{NameError, Namespace, Node};
use crate::ke::spinlock::SpinLock;

static NAMES: SpinLock<Namespace<usize>> = SpinLock::new(Namespace::new());

/// Adds a name.
///
/// # Errors
/// As [`Namespace::insert`].
pub(crate) fn insert_name(path: &str, node: Node<usize>) -> Result<(), NameError> {
    NAMES.lock().insert(path, node)
}

/// Removes a name.
///
/// # Errors
/// As [`Namespace::remove`].
pub(crate) fn remove_name(path: &str) -> Result<Node<usize>, NameError> {
    NAMES.lock().remove(path)
}

/// The node of exactly this name.
pub(crate) fn look_up(path: &str) -> Option<Node<usize>> {
    NAMES.lock().get(path).cloned()
}

/// The object that a path leads to, and what is left of the path.
///
/// # Errors
/// As [`Namespace::resolve`].
pub(crate) fn resolve(path: &str) -> Result<(usize, String), NameError> {
    NAMES.lock().resolve(path)
}

/// Calls `visit` with each name under the lock; it must not come back here.
pub(crate) fn with_names(visit: &mut dyn FnMut(&str, &Node<usize>)) {
    let names = NAMES.lock();
    names.iter().for_each(|(path, node)| visit(path, node));
}

/// Removes every name of an object.
pub(crate) fn remove_object_names(object: usize) {
    let mut names = NAMES.lock();
    let found: alloc::vec::Vec<String> = names
        .iter()
        .filter(|(_, node)| matches!(node, Node::Object(address) if *address == object))
        .map(|(path, _)| path.clone())
        .collect();
    for path in found {
        let _ = names.remove(&path);
    }
}
