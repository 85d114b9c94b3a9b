//! Where on the way to a directory its replacement would show.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use notify::Event;

/// Symlinks followed before a path counts as a loop, as in the kernel.
const MAX_LINKS: u32 = 40;

/// The directories that hold a component of a path, with the names that matter in each, and the
/// directory that the path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Points {
    names: BTreeMap<PathBuf, BTreeSet<OsString>>,
    target: Option<PathBuf>,
}

impl Points {
    /// Follows the absolute path `directory` for as far as it leads.
    pub(super) fn on_the_way_to(directory: &Path) -> Self {
        let mut names: BTreeMap<PathBuf, BTreeSet<OsString>> = BTreeMap::new();
        let mut rest: VecDeque<OsString> = components(directory);
        let mut here = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                here.pop();
                continue;
            }
            let next = here.join(&name);
            names.entry(here.clone()).or_default().insert(name);
            let Ok(metadata) = next.symlink_metadata() else {
                return Self {
                    names,
                    target: None,
                };
            };
            if !metadata.is_symlink() {
                here = next;
                continue;
            }
            links += 1;
            let Ok(to) = next.read_link() else {
                return Self {
                    names,
                    target: None,
                };
            };
            if links > MAX_LINKS {
                return Self {
                    names,
                    target: None,
                };
            }
            if to.is_absolute() {
                here = PathBuf::from("/");
            }
            for name in components(&to).into_iter().rev() {
                rest.push_front(name);
            }
        }
        Self {
            names,
            target: Some(here),
        }
    }

    /// The directories to watch for themselves, without what is below them.
    pub(super) fn holders(&self) -> impl Iterator<Item = &Path> {
        self.names.keys().map(PathBuf::as_path)
    }

    /// The directory that the path leads to, if it exists.
    pub(super) fn target(&self) -> Option<&Path> {
        self.target.as_deref()
    }

    /// Whether an event may concern the directory: a neighbour on the way to it does not.
    pub(super) fn concern(&self, event: &Event) -> bool {
        event.paths.is_empty() || event.paths.iter().any(|path| self.concerns(path))
    }

    fn concerns(&self, path: &Path) -> bool {
        if self
            .target
            .as_deref()
            .is_some_and(|target| path.starts_with(target))
        {
            return true;
        }
        // A holder itself is reported when it is removed or renamed.
        self.names.contains_key(path)
            || path
                .parent()
                .zip(path.file_name())
                .is_some_and(|(holder, name)| {
                    self.names
                        .get(holder)
                        .is_some_and(|names| names.contains(name))
                })
    }
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn points_of_a_plain_directory_name_every_component() {
        let root = root();
        std::fs::create_dir_all(root.path().join("etc/policy.d")).unwrap();
        let points = Points::on_the_way_to(&root.path().join("etc/policy.d"));
        assert_eq!(
            points.target(),
            Some(root.path().join("etc/policy.d").as_path())
        );
        assert_eq!(names(&points, &root.path().join("etc")), ["policy.d"]);
        assert_eq!(names(&points, root.path()), ["etc"]);
    }

    #[test]
    fn points_through_relative_and_absolute_links_include_where_they_lead() {
        let root = root();
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir_all(path("etc")).unwrap();
        std::fs::create_dir_all(path("srv/v1/policy")).unwrap();
        symlink("v1", path("srv/current")).unwrap();
        symlink(path("srv/current/policy"), path("abs")).unwrap();
        symlink("../abs", path("etc/policy.d")).unwrap();
        let points = Points::on_the_way_to(&path("etc/policy.d"));
        assert_eq!(points.target(), Some(path("srv/v1/policy").as_path()));
        assert_eq!(names(&points, &path("srv")), ["current", "v1"]);
        assert_eq!(names(&points, root.path()), ["abs", "etc", "srv"]);
    }

    #[test]
    fn points_of_a_missing_directory_end_at_the_first_missing_name() {
        let root = root();
        let points = Points::on_the_way_to(&root.path().join("a/b/c"));
        assert_eq!(points.target(), None);
        assert_eq!(names(&points, root.path()), ["a"]);
    }

    #[test]
    fn points_of_a_loop_lead_nowhere() {
        let root = root();
        symlink("b", root.path().join("a")).unwrap();
        symlink("a", root.path().join("b")).unwrap();
        assert_eq!(Points::on_the_way_to(&root.path().join("a")).target(), None);
    }

    #[test]
    fn concern_neighbours_of_the_directory_do_not() {
        let root = root();
        std::fs::create_dir_all(root.path().join("policy.d")).unwrap();
        let points = Points::on_the_way_to(&root.path().join("policy.d"));
        let about = |name: &str| {
            let kind = notify::EventKind::Any;
            points.concern(&Event::new(kind).add_path(root.path().join(name)))
        };
        assert!(about("policy.d") && about("policy.d/a.yaml") && about("policy.d/x/y.yaml"));
        assert!(!about("passwd") && !about("policy.d.bak"));
    }

    fn names(points: &Points, holder: &Path) -> Vec<String> {
        let names = &points.names[holder];
        names
            .iter()
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    /// A directory whose own path has no links in it.
    fn root() -> tempfile::TempDir {
        let base = std::env::temp_dir().canonicalize().unwrap();
        tempfile::tempdir_in(base).unwrap()
    }
}
