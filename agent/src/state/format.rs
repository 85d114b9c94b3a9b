//! The stored set as bytes: JSON in which one part holds the set and another the digest of that
//! part. Pure.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest as _, Sha256};

use super::StoredSet;
use crate::policy::loader::{SetHash, SourceFile};

/// The version that is written, and the only one that is read.
const VERSION: u64 = 1;

/// Why bytes are no stored set.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The end is missing.
    #[error("the file is truncated")]
    Truncated,
    /// Not JSON, or not of the form that is written.
    #[error("the file is corrupt")]
    Json(#[source] serde_json::Error),
    /// Written by another version of the program.
    #[error("the file has version {0}, this program reads version {VERSION}")]
    Version(u64),
    /// The digest does not fit.
    #[error("the file is corrupt: its SHA-256 does not fit its contents")]
    Digest,
    /// The digest fits, yet a field has no meaning.
    #[error("the file is corrupt: {0} of the stored set has no meaning")]
    Field(&'static str),
}

impl From<serde_json::Error> for FormatError {
    fn from(error: serde_json::Error) -> Self {
        if error.is_eof() {
            Self::Truncated
        } else {
            Self::Json(error)
        }
    }
}

/// Read before everything else, whose form depends on it.
#[derive(Deserialize)]
struct Version {
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    version: u64,
    /// Over the bytes of `set` as they are in the file.
    sha256: String,
    #[serde(borrow)]
    set: &'a RawValue,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    accepted: String,
    hash: String,
    files: Vec<FileContents>,
}

/// Base64, since names and contents of files are bytes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileContents {
    path_base64: String,
    contents_base64: String,
}

/// The part that tells whether a set is the stored one.
#[derive(Deserialize)]
struct HashOnly {
    hash: String,
}

/// The set as bytes.
///
/// # Errors
/// None that is known: what serde reports.
pub(super) fn encode(set: &StoredSet) -> Result<Vec<u8>, serde_json::Error> {
    let StoredSet {
        files,
        hash,
        accepted,
    } = set;
    let contents = Contents {
        accepted: accepted.to_string(),
        hash: hash.to_string(),
        files: files.iter().map(file_contents).collect(),
    };
    let contents = to_raw_value(&contents)?;
    let envelope = Envelope {
        version: VERSION,
        sha256: hex(&digest(&contents)),
        set: &contents,
    };
    let mut bytes = serde_json::to_vec(&envelope)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The set that was encoded.
///
/// # Errors
/// [`FormatError`].
pub(super) fn decode(bytes: &[u8]) -> Result<StoredSet, FormatError> {
    let Contents {
        accepted,
        hash,
        files,
    } = serde_json::from_str(verified(bytes)?.get())?;
    let Ok(accepted) = accepted.parse::<Timestamp>() else {
        return Err(FormatError::Field("the time"));
    };
    let files = files
        .iter()
        .map(source_file)
        .collect::<Result<Vec<_>, _>>()?;
    let paths: BTreeSet<&Path> = files.iter().map(|file| &*file.path).collect();
    if paths.len() != files.len() {
        return Err(FormatError::Field("a path that occurs twice"));
    }
    Ok(StoredSet {
        files: files.into(),
        hash: set_hash(&hash)?,
        accepted,
    })
}

/// Identifies the set that was encoded, without decoding its files.
///
/// # Errors
/// [`FormatError`].
pub(super) fn hash(bytes: &[u8]) -> Result<SetHash, FormatError> {
    let HashOnly { hash } = serde_json::from_str(verified(bytes)?.get())?;
    set_hash(&hash)
}

/// The part with the set, its digest checked.
fn verified(bytes: &[u8]) -> Result<&RawValue, FormatError> {
    let Version { version } = serde_json::from_slice(bytes)?;
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    let Envelope {
        version: _,
        sha256,
        set,
    } = serde_json::from_slice(bytes)?;
    if sha256 != hex(&digest(set)) {
        return Err(FormatError::Digest);
    }
    Ok(set)
}

fn file_contents(file: &SourceFile) -> FileContents {
    let SourceFile { path, bytes } = file;
    FileContents {
        path_base64: BASE64_STANDARD.encode(path.as_os_str().as_bytes()),
        contents_base64: BASE64_STANDARD.encode(bytes),
    }
}

fn source_file(file: &FileContents) -> Result<SourceFile, FormatError> {
    let FileContents {
        path_base64,
        contents_base64,
    } = file;
    let decode = |text: &str, field| match BASE64_STANDARD.decode(text) {
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(FormatError::Field(field)),
    };
    let path = OsString::from_vec(decode(path_base64, "a path")?);
    Ok(SourceFile {
        path: Arc::from(PathBuf::from(path)),
        bytes: decode(contents_base64, "a file")?.into(),
    })
}

fn digest(set: &RawValue) -> [u8; 32] {
    Sha256::digest(set.get()).into()
}

fn hex(bytes: &[u8; 32]) -> String {
    SetHash(*bytes).to_string()
}

pub(super) fn set_hash(text: &str) -> Result<SetHash, FormatError> {
    let wrong = FormatError::Field("the hash");
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() || !text.is_ascii() {
        return Err(wrong);
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        let digits = text.get(2 * index..2 * index + 2).unwrap_or_default();
        let Ok(value) = u8::from_str_radix(digits, 16) else {
            return Err(wrong);
        };
        *byte = value;
    }
    let hash = SetHash(bytes);
    // Neither capitals nor the signs that the number parser takes.
    if hash.to_string() == text {
        Ok(hash)
    } else {
        Err(wrong)
    }
}
