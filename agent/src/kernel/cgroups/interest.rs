//! Which control groups matter. No I/O.

use std::path::Path;

use super::Role;
use crate::policy::Pattern;

/// The roots, and how deep to look below them.
#[derive(Debug, Clone)]
pub(super) struct Interest {
    roots: Vec<Root>,
    depth: usize,
}

#[derive(Debug, Clone)]
struct Root {
    pattern: Pattern,
    /// What the ancestors of a matching path match, from the mount down.
    ancestors: Vec<Pattern>,
}

/// How a control group matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A root may appear below it.
    Way,
    /// It is at or below a root.
    Member(Role),
}

impl Interest {
    pub(super) fn new(roots: Vec<Pattern>, depth: usize) -> Self {
        let roots = roots.into_iter().map(Root::new).collect();
        Self { roots, depth }
    }

    pub(super) fn set_depth(&mut self, depth: usize) {
        self.depth = depth;
    }

    /// How the child `path` of a control group at `parent` matters, if it does.
    pub(super) fn place(&self, path: &Path, parent: Place) -> Option<Place> {
        // Patterns are text: in a name that is not UTF-8, wildcards match the bytes that are none.
        let text = path.to_string_lossy();
        let is_root = self.roots.iter().any(|root| root.pattern.matches(&text));
        let matters = is_root || self.leads_on(path);
        match parent {
            Place::Way if is_root => Some(Place::Member(Role::Root)),
            Place::Way => matters.then_some(Place::Way),
            Place::Member(_) => {
                let near = path.components().count() <= self.depth;
                (near || matters).then_some(Place::Member(Role::Below))
            }
        }
    }

    /// Whether what is directly below `path` may matter.
    pub(super) fn follows(&self, path: &Path, place: Place) -> bool {
        match place {
            Place::Way => true,
            Place::Member(_) => path.components().count() < self.depth || self.leads_on(path),
        }
    }

    /// Whether a root may appear below `path`.
    fn leads_on(&self, path: &Path) -> bool {
        let Some(last) = path.components().count().checked_sub(1) else {
            return !self.roots.is_empty();
        };
        let text = path.to_string_lossy();
        let mut ancestors = self
            .roots
            .iter()
            .filter_map(|root| root.ancestors.get(last));
        ancestors.any(|ancestor| ancestor.matches(&text))
    }
}

impl Root {
    fn new(pattern: Pattern) -> Self {
        let text = pattern.as_str();
        let ends = text.match_indices('/').map(|(end, _)| end);
        let ancestors = ends.map(|end| Pattern::new(&text[..end])).collect();
        Self { pattern, ancestors }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    const ROOT: Option<Place> = Some(Place::Member(Role::Root));
    const BELOW: Option<Place> = Some(Place::Member(Role::Below));

    #[test]
    fn place_of_what_leads_to_a_root_is_on_the_way() {
        let interest = interest(&["a/b*/c"], 0);
        assert_eq!(interest.place(Path::new("a"), Place::Way), Some(Place::Way));
        assert_eq!(
            interest.place(Path::new("a/bx"), Place::Way),
            Some(Place::Way)
        );
        assert_eq!(interest.place(Path::new("a/bx/c"), Place::Way), ROOT);
        assert_eq!(interest.place(Path::new("a/x"), Place::Way), None);
        assert_eq!(interest.place(Path::new("b"), Place::Way), None);
        assert!(!interest.follows(Path::new("a/bx/c"), Place::Member(Role::Root)));
    }

    #[test]
    fn place_below_a_root_ends_at_the_depth() {
        let interest = interest(&["a"], 2);
        let parent = Place::Member(Role::Root);
        assert_eq!(interest.place(Path::new("a/b"), parent), BELOW);
        assert_eq!(interest.place(Path::new("a/b/c"), parent), None);
        assert!(interest.follows(Path::new("a"), parent));
        assert!(!interest.follows(Path::new("a/b"), parent));
    }

    #[test]
    fn place_of_a_root_below_a_root_is_reached_beyond_the_depth() {
        let interest = interest(&["a", "a/b/c"], 1);
        let parent = Place::Member(Role::Root);
        assert_eq!(interest.place(Path::new("a/b"), parent), BELOW);
        assert_eq!(interest.place(Path::new("a/b/c"), parent), BELOW);
        assert_eq!(interest.place(Path::new("a/b/d"), parent), None);
    }

    #[test]
    fn place_of_a_name_that_is_not_utf8_matches_a_wildcard() {
        let path = Path::new(OsStr::from_bytes(b"lxc.payload.\xff"));
        let interest = interest(&["lxc.payload.*"], 0);
        assert_eq!(interest.place(path, Place::Way), ROOT);
    }

    #[test]
    fn place_of_an_escaped_name_is_taken_literally() {
        let path = Path::new("machine.slice/machine-lxc\\x2d1 a.scope");
        let interest = interest(&["machine.slice/machine-lxc\\x2d*.scope"], 0);
        assert_eq!(interest.place(path, Place::Way), ROOT);
    }

    fn interest(roots: &[&str], depth: usize) -> Interest {
        Interest::new(
            roots.iter().map(|root| Pattern::new(*root)).collect(),
            depth,
        )
    }
}
