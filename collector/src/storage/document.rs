//! Small documents that hold what must not be lost: JSON, for the person who has nothing but the
//! disk left, with a checksum over the same text without one.
//!
//! What enters: a document's fields, or the bytes of a file. What leaves: the bytes, or the fields
//! once format, version and checksum are right. [`replace`] writes to another name, syncs, renames
//! and syncs the directory, so a crash leaves the old document or the new one.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidemark_wire::checksum;

use super::{Storage, StorageFile};

/// The fields of one kind of document.
pub(crate) trait Document: Serialize + DeserializeOwned {
    /// What kind it is.
    const FORMAT: &'static str;
    /// Its version; no other is read.
    const VERSION: u32;

    /// Kind and version, as the document says.
    fn head(&self) -> (&str, u32);

    /// Where its checksum stands.
    fn checksum(&mut self) -> &mut String;
}

/// The bytes of a document, with its checksum.
pub(crate) fn encode<D: Document>(mut document: D) -> Vec<u8> {
    let sum = sum(&mut document);
    *document.checksum() = sum;
    let mut bytes = serde_json::to_vec_pretty(&document).expect("plain fields always serialize");
    bytes.push(b'\n');
    bytes
}

/// A document from its bytes; else what is wrong with them.
pub(crate) fn decode<D: Document>(bytes: &[u8]) -> Result<D, String> {
    let mut document: D = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let (format, version) = document.head();
    if format != D::FORMAT {
        return Err(format!("format {format:?} is not {:?}", D::FORMAT));
    }
    if version != D::VERSION {
        return Err(format!("version {version}, this program knows {}", D::VERSION));
    }
    let (wanted, found) = (sum(&mut document), document.checksum());
    if *found != wanted {
        return Err(format!("checksum {found} does not match, it should be {wanted}"));
    }
    // It has done its work; two documents with the same fields are the same.
    document.checksum().clear();
    Ok(document)
}

/// XXH3-64 of the document without its checksum.
fn sum<D: Document>(document: &mut D) -> String {
    let given = std::mem::take(document.checksum());
    let bytes = serde_json::to_vec(document).expect("plain fields always serialize");
    *document.checksum() = given;
    format!("{:016x}", checksum::sum(&bytes))
}

/// A step of a replacement that has failed.
pub(crate) struct ReplaceError {
    pub(crate) doing: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

/// Replaces the file at `path`; it is durable on return. After an error the old one or the new one
/// may be there.
pub(crate) fn replace<S: Storage>(
    storage: &S,
    path: &Path,
    bytes: &[u8],
) -> Result<(), ReplaceError> {
    fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReplaceError {
        let path = path.to_owned();
        move |source| ReplaceError { doing, path, source }
    }
    let new = path.with_extension("json.new");
    match storage.remove(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &new)(error));
        }
        _ => {}
    }
    let file = storage.create(&new).map_err(failed("create", &new))?;
    file.write_at(bytes, 0).map_err(failed("write", &new))?;
    file.datasync().map_err(failed("sync", &new))?;
    storage.rename(&new, path).map_err(failed("replace", path))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    storage.sync_dir(dir).map_err(failed("sync", dir))
}
