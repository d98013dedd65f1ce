//! Keys and values. Pure.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    /// Name as it was written.
    pub(super) name: String,
    /// `REG_*`.
    pub(super) kind: u32,
    /// Its bytes.
    pub(super) data: Vec<u8>,
}

#[derive(Debug)]
struct Key {
    name: String,
    values: BTreeMap<String, Value>,
}

/// All keys by their lower-case path.
#[derive(Debug)]
pub(super) struct Tree {
    keys: BTreeMap<String, Key>,
}

/// Lower case; the current control set is the first.
fn normalise(path: &str) -> String {
    let lower = path.trim_end_matches('\\').to_lowercase();
    lower.replace("\\currentcontrolset\\", "\\controlset001\\")
}

impl Tree {
    /// No keys.
    pub(super) const fn new() -> Self {
        Self {
            keys: BTreeMap::new(),
        }
    }

    /// Makes a key and those above it; `false` if it was there.
    pub(super) fn create(&mut self, path: &str) -> bool {
        let path = path.replace("\\CurrentControlSet\\", "\\ControlSet001\\");
        let mut ends: Vec<usize> = path.match_indices('\\').map(|(at, _)| at).skip(1).collect();
        ends.push(path.len());
        let mut created = false;
        for end in ends {
            let part = &path[..end];
            let name = part.rsplit('\\').next().unwrap_or(part).to_string();
            created = !self.keys.contains_key(&normalise(part));
            self.keys.entry(normalise(part)).or_insert_with(|| Key {
                name,
                values: BTreeMap::new(),
            });
        }
        created
    }

    /// Whether a key exists.
    pub(super) fn exists(&self, path: &str) -> bool {
        self.keys.contains_key(&normalise(path))
    }

    /// Whether the key above a path exists.
    pub(super) fn parent_exists(&self, path: &str) -> bool {
        let path = normalise(path);
        path.rfind('\\')
            .is_some_and(|at| self.keys.contains_key(&path[..at]))
    }

    /// Deletes a key without subkeys.
    pub(super) fn delete(&mut self, path: &str) -> bool {
        let path = normalise(path);
        if self.subkeys(&path).next().is_some() {
            return false;
        }
        self.keys.remove(&path).is_some()
    }

    fn subkeys<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a Key> + use<'a> {
        let prefix = path.to_string() + "\\";
        self.keys
            .iter()
            .filter(move |(other, _)| {
                other
                    .strip_prefix(&prefix)
                    .is_some_and(|rest| !rest.contains('\\'))
            })
            .map(|(_, key)| key)
    }

    /// Names of the keys directly below.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        self.subkeys(&normalise(path))
            .map(|key| key.name.clone())
            .collect()
    }

    /// Name of a key as it was made.
    pub(super) fn name(&self, path: &str) -> Option<String> {
        self.keys.get(&normalise(path)).map(|key| key.name.clone())
    }

    /// Values of a key.
    pub(super) fn values(&self, path: &str) -> Vec<Value> {
        let key = self.keys.get(&normalise(path));
        key.map_or_else(Vec::new, |key| key.values.values().cloned().collect())
    }

    /// One value.
    pub(super) fn get(&self, path: &str, name: &str) -> Option<Value> {
        self.keys
            .get(&normalise(path))?
            .values
            .get(&name.to_lowercase())
            .cloned()
    }

    /// Writes a value; nothing if there is no such key.
    pub(super) fn set(&mut self, path: &str, name: &str, kind: u32, data: Vec<u8>) {
        if let Some(key) = self.keys.get_mut(&normalise(path)) {
            key.values.insert(
                name.to_lowercase(),
                Value {
                    name: name.to_string(),
                    kind,
                    data,
                },
            );
        }
    }

    /// Deletes a value.
    pub(super) fn unset(&mut self, path: &str, name: &str) -> bool {
        let key = self.keys.get_mut(&normalise(path));
        key.is_some_and(|key| key.values.remove(&name.to_lowercase()).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_come_back() {
        let mut tree = Tree::new();
        assert!(tree.create("\\Registry\\Machine\\System\\CurrentControlSet\\Services\\probe"));
        assert!(!tree.create("\\registry\\machine\\system\\controlset001\\services\\PROBE"));
        let key = "\\REGISTRY\\MACHINE\\SYSTEM\\ControlSet001\\Services\\Probe";
        tree.set(key, "Start", 4, alloc::vec![3, 0, 0, 0]);
        assert_eq!(
            tree.get(key, "start").map(|value| value.data),
            Some(alloc::vec![3, 0, 0, 0])
        );
        assert!(tree.unset(key, "START"));
        assert_eq!(tree.get(key, "start"), None);
        assert_eq!(
            tree.names("\\Registry\\Machine\\System\\CurrentControlSet\\Services"),
            ["probe"]
        );
    }

    #[test]
    fn a_key_with_subkeys_stays() {
        let mut tree = Tree::new();
        let _ = tree.create("\\Registry\\A\\B");
        assert!(!tree.delete("\\Registry\\A"));
        assert!(tree.delete("\\Registry\\A\\B"));
        assert!(tree.delete("\\Registry\\A"));
        assert!(tree.parent_exists("\\Registry\\X") && !tree.parent_exists("\\Registry\\A\\X"));
    }
}
