//! Edits of exemptions in the text of policy files. What an edit is not about stays as it is, byte
//! for byte: comments, order, notation. Pure.
//!
//! Edits go by positions that the parser gives which reads the files for the agent, too. What
//! comes out is read again: an edit that would say anything else than what was meant is refused.

mod layout;

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::Policy;
use super::changes::{Change, Kind, Section, compare};
use super::loader::{Circumstances, Loader, SourceFile};
use crate::diagnostic::{Diagnostic, Severity};
use crate::yaml::write::{self, Place};
use layout::Layout;

/// What a file holds before anybody has written to it.
const EMPTY_FILE: &[u8] = b"schema: 1\n";

/// An exemption that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewExemption {
    /// Its id.
    pub id: String,
    /// Id of the customer it is for.
    pub customer: String,
    /// Why it is granted.
    pub reason: String,
    /// The ticket it is granted under.
    pub ticket: String,
    /// Who grants it.
    pub approved_by: String,
    /// When it begins; at once where nothing is said.
    pub starts: Option<Timestamp>,
    /// When it ends.
    pub expires: Timestamp,
    /// `any` alone, or prefixes and names of allowlists.
    pub to: Vec<String>,
}

/// What is done to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// An exemption is added behind the others.
    Add(NewExemption),
    /// Values of an exemption are replaced.
    Set {
        /// Its id.
        id: String,
        /// The new values.
        values: Vec<Value>,
    },
    /// An exemption is taken out.
    Remove {
        /// Its id.
        id: String,
    },
}

/// A value of an exemption that can be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// When it ends.
    Expires(Timestamp),
    /// The ticket it was granted under.
    Ticket(String),
    /// Who granted it.
    ApprovedBy(String),
}

/// A file as it is, and as it would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// The file.
    pub file: Arc<Path>,
    /// What it holds; `None` if there is no such file.
    pub before: Option<Vec<u8>>,
    /// What it would hold.
    pub after: Vec<u8>,
    /// What the policy would say differently.
    pub change: Change,
    /// What the policy would say.
    pub policy: Policy,
}

/// Why an edit is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The files are no valid set as they are.
    #[error("the policy is not valid as it is: mend it first")]
    Invalid(Vec<Diagnostic>),
    /// The files would be no valid set.
    #[error("the policy would not be valid")]
    Refused(Vec<Diagnostic>),
    /// The file says it in a way that is not edited.
    #[error("line {line} of {}: {why}: edit it by hand", file.display())]
    Unusual {
        /// The file.
        file: Arc<Path>,
        /// From 1.
        line: usize,
        /// What is unusual there.
        why: &'static str,
    },
    /// The exemption is not in the file.
    #[error("there is no exemption {id} in {}", file.display())]
    Absent {
        /// The file.
        file: Arc<Path>,
        /// The exemption's id.
        id: String,
    },
    /// What would come out is not what was meant.
    #[error("the edit of {} would change something else: edit it by hand", file.display())]
    Astray {
        /// The file.
        file: Arc<Path>,
    },
}

impl Edit {
    /// The exemption that it is about.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Add(NewExemption { id, .. }) | Self::Set { id, .. } | Self::Remove { id } => id,
        }
    }

    /// Whether `change` is what the edit is for.
    fn means(&self, change: &Change) -> bool {
        let Change {
            section,
            name,
            change,
            fields,
        } = change;
        let kind = match self {
            Self::Add(_) => Kind::Added,
            Self::Set { .. } => Kind::Changed,
            Self::Remove { .. } => Kind::Removed,
        };
        let meant = match self {
            Self::Add(_) | Self::Remove { .. } => true,
            Self::Set { id: _, values } => fields.iter().all(|field| {
                let value = values.iter().find(|value| value.key() == field.field);
                value.is_some_and(|value| field.added == [value.meaning()])
            }),
        };
        *section == Section::Exemptions && name == self.id() && *change == kind && meant
    }
}

impl Value {
    /// The key that it stands behind.
    pub(crate) const fn key(&self) -> &'static str {
        match self {
            Self::Expires(_) => "expires",
            Self::Ticket(_) => "ticket",
            Self::ApprovedBy(_) => "approved_by",
        }
    }

    fn meaning(&self) -> String {
        match self {
            Self::Expires(time) => time.to_string(),
            Self::Ticket(text) | Self::ApprovedBy(text) => text.clone(),
        }
    }

    /// As it is written, whatever stands around it.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Expires(time) => time.to_string(),
            Self::Ticket(text) | Self::ApprovedBy(text) => write::text(text, Place::Brackets),
        }
    }
}

impl NewExemption {
    /// Its keys and values as they are written in `place`.
    fn entries(&self, place: Place) -> Vec<(&'static str, String)> {
        let Self {
            id,
            customer,
            reason,
            ticket,
            approved_by,
            starts,
            expires,
            to,
        } = self;
        let text = |text: &str| write::text(text, place);
        let destinations = match &to[..] {
            [any] if any == super::ANY => any.clone(),
            listed => {
                let listed = listed.iter().map(|one| write::text(one, Place::Brackets));
                format!("[{}]", listed.collect::<Vec<_>>().join(", "))
            }
        };
        let mut entries = vec![
            ("id", text(id)),
            ("customer", text(customer)),
            ("reason", text(reason)),
            ("ticket", text(ticket)),
            ("approved_by", text(approved_by)),
        ];
        entries.extend(starts.map(|starts| ("starts", starts.to_string())));
        entries.push(("expires", expires.to_string()));
        entries.push(("to", destinations));
        entries
    }
}

/// Whether the file has a section of exemptions, be it an empty one.
#[must_use]
pub fn has_exemptions(file: &SourceFile) -> bool {
    Layout::read(&file.path, &file.bytes).is_ok_and(|layout| layout.has_section())
}

/// Edits `file` of a set, and reads the set that would come out. `circumstances` are those of
/// `gate25 check`.
///
/// # Errors
/// [`EditError`]: nothing else than the edit's meaning may change, and the set must be valid before
/// and after.
pub fn edit(
    files: &[SourceFile],
    file: &Arc<Path>,
    edit: &Edit,
    circumstances: &Circumstances,
) -> Result<Edited, EditError> {
    let mut loader = Loader::default();
    let invalid = |diagnostics: Vec<Diagnostic>| {
        let errors = diagnostics.into_iter();
        errors.filter(|it| it.severity == Severity::Error).collect()
    };
    let earlier = loader
        .load(files, circumstances)
        .map_err(|refused| EditError::Invalid(invalid(refused.diagnostics)))?;
    let before = files.iter().find(|it| it.path == *file);
    let text = before.map_or(EMPTY_FILE, |file| &*file.bytes);
    let after = apply(file, text, edit)?;
    let mut edited: Vec<SourceFile> = files
        .iter()
        .filter(|it| it.path != *file)
        .cloned()
        .collect();
    edited.push(SourceFile {
        path: Arc::clone(file),
        bytes: Arc::from(after.as_slice()),
    });
    let later = loader
        .load(&edited, circumstances)
        .map_err(|refused| EditError::Refused(invalid(refused.diagnostics)))?;
    let mut changes = compare(&earlier.policy, &later.policy);
    match (changes.pop(), &changes[..]) {
        (Some(change), []) if edit.means(&change) => Ok(Edited {
            file: Arc::clone(file),
            before: before.map(|file| file.bytes.to_vec()),
            after,
            change,
            policy: later.policy,
        }),
        (Some(_) | None, _) => Err(EditError::Astray {
            file: Arc::clone(file),
        }),
    }
}

/// The text after an edit, not yet read again.
fn apply(file: &Arc<Path>, bytes: &[u8], edit: &Edit) -> Result<Vec<u8>, EditError> {
    let layout = Layout::read(file, bytes)?;
    let splices = match edit {
        Edit::Add(new) => layout.add(new)?,
        Edit::Set { id, values } => layout.set(id, values)?,
        Edit::Remove { id } => layout.remove(id)?,
    };
    Ok(layout.spliced(splices))
}
