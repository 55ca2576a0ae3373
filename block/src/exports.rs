//! The disks that this process serves, by name.
//!
//! One list is shared by all frontends. A disk may be added or removed while they run: a removed
//! disk can't be opened any more, a client that has it open keeps it until it lets go. The list
//! lives in memory only; whoever starts the process fills it again.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Longest name of an export, in bytes: what a file name in the FUSE directory can hold.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest description of an export, in bytes: the NBD protocol's limit for a string.
pub const DESCRIPTION_BYTES_MAX: usize = 4096;

/// A disk under a name.
#[derive(Debug)]
pub struct Export<D> {
    /// Name that a client asks for; 1 to [`NAME_BYTES_MAX`] bytes, without `/` and NUL.
    pub name: String,
    /// A line for people, may be empty; at most [`DESCRIPTION_BYTES_MAX`] bytes, without NUL.
    pub description: String,
    /// The disk.
    pub device: Arc<D>,
}

impl<D> Clone for Export<D> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            description: self.description.clone(),
            device: Arc::clone(&self.device),
        }
    }
}

/// Why an export was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// The name is empty, too long, or can't be a file name.
    #[error(
        "{name:?} can't name an export: a name has 1 to 255 bytes, no '/' and no NUL, and is not \".\" or \"..\""
    )]
    Name {
        /// The name as given.
        name: String,
    },
    /// The description is too long or holds a NUL.
    #[error(
        "the description of export {name:?} is longer than 4096 bytes or holds a NUL; shorten it"
    )]
    Description {
        /// Name of the export.
        name: String,
    },
    /// Another export has this name.
    #[error("an export named {name:?} exists already; remove it first or choose another name")]
    Taken {
        /// The name as given.
        name: String,
    },
}

/// All exports, in the order of their names.
#[derive(Debug)]
pub struct ExportList<D> {
    by_name: RwLock<BTreeMap<String, Export<D>>>,
}

impl<D> Default for ExportList<D> {
    fn default() -> Self {
        Self::new()
    }
}

impl<D> ExportList<D> {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self { by_name: RwLock::new(BTreeMap::new()) }
    }

    /// Adds an export.
    ///
    /// # Errors
    /// [`ExportError`]; the list is then as before.
    pub fn add(&self, export: Export<D>) -> Result<(), ExportError> {
        if !is_valid_name(&export.name) {
            return Err(ExportError::Name { name: export.name });
        }
        if export.description.len() > DESCRIPTION_BYTES_MAX || export.description.contains('\0') {
            return Err(ExportError::Description { name: export.name });
        }
        let mut by_name = self.write();
        if by_name.contains_key(&export.name) {
            return Err(ExportError::Taken { name: export.name });
        }
        by_name.insert(export.name.clone(), export);
        Ok(())
    }

    /// Takes an export off the list; clients that have it open keep it.
    pub fn remove(&self, name: &str) -> Option<Export<D>> {
        self.write().remove(name)
    }

    /// The export of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Export<D>> {
        self.read().get(name).cloned()
    }

    /// The export, when there is exactly one.
    #[must_use]
    pub fn only(&self) -> Option<Export<D>> {
        let by_name = self.read();
        let mut exports = by_name.values();
        let first = exports.next()?;
        exports.next().is_none().then(|| first.clone())
    }

    /// All names, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.read().keys().cloned().collect()
    }

    // A panic of another holder can't leave the map half changed, so a poisoned lock is usable.
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Export<D>>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Export<D>>> {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_valid_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.contains(['/', '\0'])
        && name != "."
        && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(name: &str) -> Export<u8> {
        Export { name: name.to_owned(), description: String::new(), device: Arc::new(0) }
    }

    #[test]
    fn names_that_no_file_can_have_are_refused() {
        let list = ExportList::new();
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for name in ["", "a/b", "a\0b", ".", "..", &long] {
            assert!(matches!(list.add(export(name)), Err(ExportError::Name { .. })), "{name:?}");
        }
        assert_eq!(list.add(export(&long[1..])), Ok(()));
    }

    #[test]
    fn a_name_is_taken_until_it_is_removed() {
        let list = ExportList::new();
        assert_eq!(list.add(export("disk")), Ok(()));
        assert_eq!(list.add(export("disk")), Err(ExportError::Taken { name: "disk".to_owned() }));
        assert!(list.remove("disk").is_some());
        assert!(list.get("disk").is_none());
        assert_eq!(list.add(export("disk")), Ok(()));
    }

    #[test]
    fn only_is_there_for_a_single_export() {
        let list = ExportList::new();
        assert!(list.only().is_none());
        list.add(export("b")).expect("a fresh name");
        assert_eq!(list.only().map(|e| e.name), Some("b".to_owned()));
        list.add(export("a")).expect("a fresh name");
        assert!(list.only().is_none());
        assert_eq!(list.names(), ["a", "b"]);
    }
}
