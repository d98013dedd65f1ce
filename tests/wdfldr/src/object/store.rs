//! Every framework object of every driver: handles, parents, reference counts.
//!
//! Pure: the payload is a type parameter. One store lives under one spin lock
//! (`object::STORE`); nothing here calls a driver.
//!
//! A handle is a number, not an address: a slot, a generation that a reused slot
//! counts up, and a mark in its top bits that makes it non-canonical, so that a
//! driver that dereferences a handle faults at once and a stale one is told from
//! a live one.
//!
//! Source: Windows drivers, "Framework Object Life Cycle".

use alloc::vec::Vec;

/// Top 16 bits of every handle.
const MARK: u64 = 0x5744;
/// Slots are numbered from 1 and shifted by 3: KMDF's handles are aligned.
const SLOT_SHIFT: u32 = 3;
const SLOT_BITS: u32 = 21;
const GENERATION_SHIFT: u32 = SLOT_SHIFT + SLOT_BITS;
const GENERATION_MASK: u64 = (1 << 24) - 1;

/// What a driver holds instead of an address. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Handle(pub(crate) u64);

/// Why a handle names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// Zero.
    Null,
    /// Never was a handle.
    Foreign,
    /// Its object is gone.
    Stale,
}

struct Node<T> {
    payload: T,
    parent: Option<Handle>,
    children: Vec<Handle>,
    references: u32,
    deleted: bool,
}

struct Slot<T> {
    generation: u64,
    node: Option<Node<T>>,
}

/// The objects.
pub(crate) struct Store<T> {
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
}

impl<T> Store<T> {
    pub(crate) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Adds an object with one reference. `parent` must be live and not deleted.
    pub(crate) fn insert(&mut self, parent: Option<Handle>, payload: T) -> Result<Handle, Bad> {
        if let Some(parent) = parent
            && self.node(parent)?.deleted
        {
            return Err(Bad::Stale);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                node: None,
            });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        slot.node = Some(Node {
            payload,
            parent,
            children: Vec::new(),
            references: 1,
            deleted: false,
        });
        let handle = Handle(
            (MARK << 48)
                | (slot.generation << GENERATION_SHIFT)
                | ((index as u64 + 1) << SLOT_SHIFT),
        );
        if let Some(parent) = parent
            && let Ok(parent) = self.node_mut(parent)
        {
            parent.children.push(handle);
        }
        Ok(handle)
    }

    fn index(&self, handle: Handle) -> Result<usize, Bad> {
        if handle.0 == 0 {
            return Err(Bad::Null);
        }
        let low = handle.0 & ((1 << SLOT_SHIFT) - 1);
        let slot = (handle.0 >> SLOT_SHIFT) & ((1 << SLOT_BITS) - 1);
        if handle.0 >> 48 != MARK || low != 0 || slot == 0 || slot > self.slots.len() as u64 {
            return Err(Bad::Foreign);
        }
        let index = usize::try_from(slot - 1).map_err(|_| Bad::Foreign)?;
        let generation = (handle.0 >> GENERATION_SHIFT) & GENERATION_MASK;
        let slot = &self.slots[index];
        if slot.node.is_some() && slot.generation == generation {
            Ok(index)
        } else {
            Err(Bad::Stale)
        }
    }

    fn node(&self, handle: Handle) -> Result<&Node<T>, Bad> {
        let index = self.index(handle)?;
        self.slots[index].node.as_ref().ok_or(Bad::Stale)
    }

    fn node_mut(&mut self, handle: Handle) -> Result<&mut Node<T>, Bad> {
        let index = self.index(handle)?;
        self.slots[index].node.as_mut().ok_or(Bad::Stale)
    }

    /// The object, alive or deleted but still referenced.
    pub(crate) fn get(&self, handle: Handle) -> Result<&T, Bad> {
        self.node(handle).map(|node| &node.payload)
    }

    /// The parent.
    pub(crate) fn parent(&self, handle: Handle) -> Result<Option<Handle>, Bad> {
        self.node(handle).map(|node| node.parent)
    }

    /// Whether deletion has begun.
    pub(crate) fn is_deleted(&self, handle: Handle) -> Result<bool, Bad> {
        self.node(handle).map(|node| node.deleted)
    }

    /// Adds a reference.
    pub(crate) fn reference(&mut self, handle: Handle) -> Result<(), Bad> {
        self.node_mut(handle).map(|node| node.references += 1)
    }

    /// Drops a reference; `true` when it was the last one. The object stays until
    /// [`Store::remove`], so that its destroy callbacks can still find it.
    pub(crate) fn dereference(&mut self, handle: Handle) -> Result<bool, Bad> {
        let node = self.node_mut(handle)?;
        node.references = node.references.checked_sub(1).ok_or(Bad::Stale)?;
        Ok(node.references == 0)
    }

    /// Takes an object without references out of the store.
    pub(crate) fn remove(&mut self, handle: Handle) -> Result<T, Bad> {
        let index = self.index(handle)?;
        if let Some(parent) = self.node(handle)?.parent
            && let Ok(parent) = self.node_mut(parent)
        {
            parent.children.retain(|child| *child != handle);
        }
        let node = self.slots[index].node.take().ok_or(Bad::Stale)?;
        self.free.push(index);
        Ok(node.payload)
    }

    /// References now; the framework's own is one of them.
    pub(crate) fn references(&self, handle: Handle) -> Result<u32, Bad> {
        self.node(handle).map(|node| node.references)
    }

    /// Marks an object and all below it as deleted and gives those that were not
    /// deleted before, children before their parents: the order in which cleanup
    /// callbacks run. An empty list: it had been deleted already.
    pub(crate) fn doom(&mut self, handle: Handle) -> Result<Vec<Handle>, Bad> {
        self.node(handle)?;
        let mut order = Vec::new();
        self.doom_below(handle, &mut order);
        Ok(order)
    }

    fn doom_below(&mut self, handle: Handle, order: &mut Vec<Handle>) {
        let Ok(node) = self.node_mut(handle) else {
            return;
        };
        if node.deleted {
            return;
        }
        node.deleted = true;
        // Youngest first, as they may lean on their elder siblings.
        let children: Vec<Handle> = node.children.iter().rev().copied().collect();
        for child in children {
            self.doom_below(child, order);
        }
        order.push(handle);
    }

    /// Gives the memory back when there is no object: the framework's image is
    /// unloaded with its last driver.
    pub(crate) fn trim(&mut self) {
        if self.slots.iter().all(|slot| slot.node.is_none()) {
            *self = Self::new();
        }
    }

    /// Every live object.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Handle, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let node = slot.node.as_ref()?;
            let handle = Handle(
                (MARK << 48)
                    | (slot.generation << GENERATION_SHIFT)
                    | ((index as u64 + 1) << SLOT_SHIFT),
            );
            Some((handle, &node.payload))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_cleaned_up_before_their_parents_and_the_youngest_first() {
        let mut store = Store::new();
        let driver = store.insert(None, "driver").unwrap();
        let device = store.insert(Some(driver), "device").unwrap();
        let first = store.insert(Some(device), "first queue").unwrap();
        let second = store.insert(Some(device), "second queue").unwrap();
        let timer = store.insert(Some(first), "timer").unwrap();
        assert_eq!(
            store.doom(driver).unwrap(),
            [second, timer, first, device, driver]
        );
        assert!(store.doom(driver).unwrap().is_empty());
        assert_eq!(store.insert(Some(device), "late"), Err(Bad::Stale));
    }

    #[test]
    fn a_referenced_object_outlives_its_deletion() {
        let mut store = Store::new();
        let object = store.insert(None, 7).unwrap();
        store.reference(object).unwrap();
        assert_eq!(store.doom(object).unwrap(), [object]);
        assert_eq!(store.dereference(object), Ok(false));
        assert_eq!(store.get(object), Ok(&7));
        assert_eq!(store.dereference(object), Ok(true));
        assert_eq!(store.get(object), Ok(&7));
        assert_eq!(store.remove(object), Ok(7));
        assert_eq!(store.get(object), Err(Bad::Stale));
    }

    #[test]
    fn a_stale_handle_does_not_name_the_slots_next_owner() {
        let mut store = Store::new();
        let old = store.insert(None, 1).unwrap();
        store.remove(old).unwrap();
        let new = store.insert(None, 2).unwrap();
        assert_ne!(old, new);
        assert_eq!(store.get(old), Err(Bad::Stale));
        assert_eq!(store.get(new), Ok(&2));
        assert_eq!(store.get(Handle(0)), Err(Bad::Null));
        assert_eq!(store.get(Handle(0xFFFF_8000_0000_1000)), Err(Bad::Foreign));
    }

    #[test]
    fn a_destroyed_child_leaves_its_parent() {
        let mut store = Store::new();
        let parent = store.insert(None, 1).unwrap();
        let child = store.insert(Some(parent), 2).unwrap();
        store.doom(child).unwrap();
        store.remove(child).unwrap();
        assert_eq!(store.doom(parent).unwrap(), [parent]);
    }
}
