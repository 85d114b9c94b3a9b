//! YAML read strictly, every value knowing its place.
//!
//! `tree` turns text into nodes and refuses what makes files surprising (aliases, tags, two
//! documents, repeated keys); `read` turns nodes into the types of a language whose keys are
//! listed once, by [`read::keys`], for the reader and the JSON schema alike.

pub(crate) mod read;
pub(crate) mod scalar;
pub(crate) mod tree;
pub(crate) mod write;
