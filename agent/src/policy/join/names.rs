//! Where every name of a set was written.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::origin;
use crate::diagnostic::{Diagnostic, Location, Position, Problems, quoted};
use crate::policy::Origin;
use crate::policy::language::{AllowlistMap, CustomerMap, ExemptionMap, PolicyFile, ProfileMap};
use crate::yaml::read::Section;

/// An object and where it was written.
pub(super) struct Named<'f, T> {
    pub(super) file: &'f Arc<Path>,
    pub(super) at: Position,
    pub(super) map: &'f T,
    used: Cell<bool>,
}

impl<T> Named<'_, T> {
    pub(super) fn origin(&self) -> Origin {
        origin(self.file, self.at)
    }

    pub(super) fn location(&self) -> Location {
        Location::at(self.file, self.at)
    }

    /// Remembers that something names it; says so, for use as a condition.
    pub(super) fn mark_used(&self) -> bool {
        self.used.set(true);
        true
    }

    pub(super) fn is_used(&self) -> bool {
        self.used.get()
    }
}

/// The objects of the set by name.
pub(super) struct Names<'f> {
    pub(super) allowlists: BTreeMap<&'f str, Named<'f, AllowlistMap>>,
    pub(super) profiles: BTreeMap<&'f str, Named<'f, ProfileMap>>,
    pub(super) customers: BTreeMap<&'f str, Named<'f, CustomerMap>>,
    pub(super) exemptions: BTreeMap<&'f str, Named<'f, ExemptionMap>>,
}

impl<'f> Names<'f> {
    pub(super) fn new(files: &[(&'f Arc<Path>, &'f PolicyFile)], problems: &mut Problems) -> Self {
        let mut index = Index { files, problems };
        Self {
            allowlists: index.section(
                "allowlist",
                |file| &file.allowlists,
                |map| {
                    map.name
                        .as_ref()
                        .map(|name| (name.value.0.as_str(), name.at))
                },
            ),
            profiles: index.section(
                "profile",
                |file| &file.profiles,
                |map| {
                    map.name
                        .as_ref()
                        .map(|name| (name.value.0.as_str(), name.at))
                },
            ),
            customers: index.section(
                "customer",
                |file| &file.customers,
                |map| map.id.as_ref().map(|id| (id.value.0.as_str(), id.at)),
            ),
            exemptions: index.section(
                "exemption",
                |file| &file.exemptions,
                |map| map.id.as_ref().map(|id| (id.value.0.as_str(), id.at)),
            ),
        }
    }
}

struct Index<'f, 'a> {
    files: &'a [(&'f Arc<Path>, &'f PolicyFile)],
    problems: &'a mut Problems,
}

impl<'f> Index<'f, '_> {
    /// The objects of a section. One whose name could not be read has been reported already.
    fn section<T>(
        &mut self,
        what: &str,
        section: fn(&PolicyFile) -> &Option<Section<T>>,
        name: fn(&T) -> Option<(&str, Position)>,
    ) -> BTreeMap<&'f str, Named<'f, T>> {
        let mut all = Vec::new();
        for (file, content) in self.files {
            for map in section(content).iter().flat_map(|section| &section.0) {
                if let Some((name, at)) = name(map) {
                    all.push((
                        name,
                        Named {
                            file,
                            at,
                            map,
                            used: Cell::new(false),
                        },
                    ));
                }
            }
        }
        // Stable, so that among equal names the first in the order of the files comes first.
        all.sort_by_key(|(name, _)| *name);
        all.dedup_by(|(name, named), (kept, first)| {
            let is_duplicate = name == kept;
            if is_duplicate {
                let message = format!("the {what} {} is defined twice", quoted(name));
                self.problems.push(
                    Diagnostic::error("duplicate-name", named.location(), message)
                        .help("rename or remove one of them: the order of files never decides")
                        .related(first.location(), "first defined here"),
                );
            }
            is_duplicate
        });
        all.into_iter().collect()
    }
}
