//! The object manager's name space: directories, symbolic links and named
//! objects.
//!
//! Pure and generic over what an object is; [`super`] keeps the one instance
//! behind its lock. Names compare without case, as `OBJ_CASE_INSENSITIVE` lookups
//! do. `\DosDevices` and `\GLOBAL??` are `\??` here: there is one session.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node<T> {
    /// A directory.
    Directory,
    /// A symbolic link to another path.
    Link(String),
    /// An object.
    Object(T),
}

/// Why a name was refused; NTSTATUS names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameError {
    /// `STATUS_OBJECT_NAME_INVALID`.
    Invalid,
    /// `STATUS_OBJECT_NAME_NOT_FOUND`.
    NotFound,
    /// `STATUS_OBJECT_PATH_NOT_FOUND`.
    PathNotFound,
    /// `STATUS_OBJECT_NAME_COLLISION`.
    Collision,
}

/// The tree, as full paths.
pub(crate) struct Namespace<T> {
    nodes: BTreeMap<String, Node<T>>,
}

/// Symbolic links followed in one lookup before it is given up.
const LONGEST_CHAIN: usize = 16;

impl<T: Clone> Namespace<T> {
    /// An empty tree with only its root.
    pub(crate) const fn new() -> Self {
        Self {
            nodes: BTreeMap::new(),
        }
    }

    /// Adds a node whose parent directory exists.
    ///
    /// # Errors
    /// [`NameError::Invalid`], [`NameError::PathNotFound`] or
    /// [`NameError::Collision`].
    pub(crate) fn insert(&mut self, path: &str, node: Node<T>) -> Result<(), NameError> {
        let key = normalise(path)?;
        let parent = key.rfind('\\').map_or("", |at| &key[..at]);
        if !parent.is_empty()
            && self
                .nodes
                .get(parent)
                .is_none_or(|n| !matches!(n, Node::Directory))
        {
            return Err(NameError::PathNotFound);
        }
        if self.nodes.contains_key(&key) {
            return Err(NameError::Collision);
        }
        self.nodes.insert(key, node);
        Ok(())
    }

    /// Removes the node of exactly this name and returns it.
    ///
    /// # Errors
    /// [`NameError::Invalid`] or [`NameError::NotFound`].
    pub(crate) fn remove(&mut self, path: &str) -> Result<Node<T>, NameError> {
        self.nodes
            .remove(&normalise(path)?)
            .ok_or(NameError::NotFound)
    }

    /// The node of exactly this name, links not followed.
    pub(crate) fn get(&self, path: &str) -> Option<&Node<T>> {
        self.nodes.get(&normalise(path).ok()?)
    }

    /// Follows links to an object; the second value is what of the path is left
    /// behind the object's name (`\rest`), for the object to parse.
    ///
    /// # Errors
    /// [`NameError::Invalid`], [`NameError::NotFound`] or
    /// [`NameError::PathNotFound`].
    pub(crate) fn resolve(&self, path: &str) -> Result<(T, String), NameError> {
        let mut path = path.to_string();
        for _ in 0..LONGEST_CHAIN {
            let key = normalise(&path)?;
            match self.step(&key)? {
                Step::Object(object, rest) => return Ok((object, rest)),
                Step::Again(next) => path = next,
            }
        }
        Err(NameError::NotFound)
    }

    fn step(&self, key: &str) -> Result<Step<T>, NameError> {
        let ends = key.match_indices('\\').map(|(at, _)| at).skip(1);
        for end in ends.chain(core::iter::once(key.len())) {
            match self.nodes.get(&key[..end]) {
                Some(Node::Directory) => {}
                Some(Node::Link(target)) => {
                    return Ok(Step::Again(target.clone() + &key[end..]));
                }
                Some(Node::Object(object)) => {
                    return Ok(Step::Object(object.clone(), key[end..].to_string()));
                }
                None if end == key.len() => return Err(NameError::NotFound),
                None => return Err(NameError::PathNotFound),
            }
        }
        Err(NameError::NotFound)
    }

    /// Every path with its node, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Node<T>)> {
        self.nodes.iter()
    }
}

enum Step<T> {
    Object(T, String),
    Again(String),
}

/// Lower case, `\DosDevices` and `\GLOBAL??` spelled `\??`.
fn normalise(path: &str) -> Result<String, NameError> {
    let lower = path.to_lowercase();
    if !lower.starts_with('\\') || lower.contains("\\\\") || lower.len() < 2 {
        return Err(NameError::Invalid);
    }
    for alias in ["\\dosdevices", "\\global??"] {
        if let Some(rest) = lower.strip_prefix(alias)
            && (rest.is_empty() || rest.starts_with('\\'))
        {
            return Ok("\\??".to_string() + rest);
        }
    }
    Ok(lower)
}

/// The object manager's path of a Win32 device path: `\\.\name` becomes
/// `\??\name`.
pub(crate) fn from_win32(path: &str) -> Option<String> {
    let rest = path
        .strip_prefix("\\\\.\\")
        .or_else(|| path.strip_prefix("\\\\?\\"))?;
    (!rest.is_empty()).then(|| "\\??\\".to_string() + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Namespace<u32> {
        let mut tree = Namespace::new();
        for directory in ["\\Device", "\\??"] {
            tree.insert(directory, Node::Directory).unwrap();
        }
        tree.insert("\\Device\\Probe", Node::Object(7)).unwrap();
        tree.insert("\\DosDevices\\probe", Node::Link("\\Device\\Probe".into()))
            .unwrap();
        tree
    }

    #[test]
    fn links_lead_to_objects_without_case() {
        assert_eq!(tree().resolve("\\??\\PROBE"), Ok((7, String::new())));
        assert_eq!(
            tree().resolve("\\GLOBAL??\\Probe\\x\\Y"),
            Ok((7, "\\x\\y".to_string()))
        );
        assert_eq!(tree().resolve("\\device\\probe"), Ok((7, String::new())));
    }

    #[test]
    fn what_is_missing_says_where() {
        assert_eq!(tree().resolve("\\Device\\None"), Err(NameError::NotFound));
        assert_eq!(
            tree().resolve("\\None\\Probe"),
            Err(NameError::PathNotFound)
        );
        assert_eq!(tree().resolve("Probe"), Err(NameError::Invalid));
        assert_eq!(tree().resolve("\\Device"), Err(NameError::NotFound));
    }

    #[test]
    fn names_are_unique_and_need_their_directory() {
        let mut tree = tree();
        assert_eq!(
            tree.insert("\\device\\PROBE", Node::Object(8)),
            Err(NameError::Collision)
        );
        assert_eq!(
            tree.insert("\\Nowhere\\x", Node::Object(8)),
            Err(NameError::PathNotFound)
        );
        assert_eq!(
            tree.insert("\\Device\\Probe\\x", Node::Object(8)),
            Err(NameError::PathNotFound)
        );
        assert_eq!(
            tree.remove("\\??\\probe"),
            Ok(Node::Link("\\Device\\Probe".into()))
        );
        assert_eq!(tree.remove("\\??\\probe"), Err(NameError::NotFound));
    }

    #[test]
    fn a_circle_of_links_ends() {
        let mut tree = tree();
        tree.insert("\\??\\a", Node::Link("\\??\\b".into()))
            .unwrap();
        tree.insert("\\??\\b", Node::Link("\\??\\a".into()))
            .unwrap();
        assert_eq!(tree.resolve("\\??\\a"), Err(NameError::NotFound));
    }

    #[test]
    fn win32_paths() {
        assert_eq!(
            from_win32("\\\\.\\hvdetect").as_deref(),
            Some("\\??\\hvdetect")
        );
        assert_eq!(from_win32("\\\\.\\"), None);
        assert_eq!(from_win32("hvdetect"), None);
    }
}
