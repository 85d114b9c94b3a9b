//! The roots below which cgroups are workloads.

use std::collections::BTreeMap;

use schemars::{Schema, json_schema};

use super::Cgroups;
use super::language::Judge;
use crate::diagnostic::{Diagnostic, Location, Position, quoted};
use crate::policy::Pattern;
use crate::policy::ownership::lineage;
use crate::policy::scalar::cgroups::CgroupPattern;
use crate::yaml::read::{At, Fault, Scalar};
use crate::yaml::tree::Style;

/// Cgroups of the host's own services, which are never judged.
const PROTECTED: [&str; 3] = ["system.slice", "init.scope", "user.slice"];

/// A pattern for roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CgroupRoot(Pattern);

impl Scalar for CgroupRoot {
    const EXPECTED: &'static str = CgroupPattern::EXPECTED;

    fn parse(text: &str, style: Style) -> Result<Self, Fault> {
        if text == "/" {
            return Err(protected(text, "it takes every service of the host"));
        }
        let CgroupPattern(pattern) = CgroupPattern::parse(text, style)?;
        let (first, below) = match text.split_once('/') {
            Some((first, below)) => (Pattern::new(first), Some(below)),
            None => (pattern.clone(), None),
        };
        let Some(taken) = PROTECTED.into_iter().find(|name| first.matches(name)) else {
            return Ok(Self(pattern));
        };
        match below {
            // A certain cgroup below one, as Docker's scopes in system.slice, is somebody's choice.
            Some(below) if first.is_literal() && !below.starts_with(['*', '?']) => {
                Ok(Self(pattern))
            }
            Some(_) | None => Err(protected(text, &format!("it takes {taken}"))),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "allOf": [CgroupPattern::schema()] })
    }
}

fn protected(text: &str, why: &str) -> Fault {
    let message = format!("{} cannot be a root: {why}", quoted(text));
    Fault::new("protected-cgroup", message)
        .help("the host's own services are never judged: name the cgroups that hold the guests")
}

impl Cgroups {
    /// The cgroup, this one or one above it, below which it is a workload, and the pattern that
    /// says so; `None` where it is none.
    #[must_use]
    pub fn root_of<'n>(&self, path: &'n str) -> Option<(&'n str, &Pattern)> {
        lineage(path).find_map(|ancestor| {
            let root = self.roots.iter().find(|root| root.matches(ancestor))?;
            Some((ancestor, root))
        })
    }
}

impl Judge<'_> {
    /// The roots, none of which lies below another: what is below both would be judged twice.
    pub(super) fn roots(&mut self, list: Vec<At<CgroupRoot>>) -> Vec<Pattern> {
        let mut seen = BTreeMap::new();
        for At {
            value: CgroupRoot(pattern),
            at,
        } in &list
        {
            self.once(&mut seen, pattern.clone(), *at);
        }
        let roots: Vec<(&Pattern, Position)> = list
            .iter()
            .map(|At { value, at }| (&value.0, *at))
            .collect();
        for (inner, at) in &roots {
            if let Some((outer, place)) = roots.iter().find(|(outer, _)| encloses(outer, inner)) {
                let message = format!(
                    "{} can lie below {}",
                    quoted(inner.as_str()),
                    quoted(outer.as_str())
                );
                let location = Location::at(self.file, *at);
                self.problems.push(
                    Diagnostic::error("nested-roots", location, message)
                        .help("a packet from there would be judged twice: keep one of them")
                        .related(Location::at(self.file, *place), "which is a root too"),
                );
            }
        }
        list.into_iter().map(|root| root.value.0).collect()
    }
}

/// Whether a cgroup that `inner` matches can lie below one that `outer` matches.
fn encloses(outer: &Pattern, inner: &Pattern) -> bool {
    let depth = outer.as_str().split('/').count();
    let mut ends = inner.as_str().match_indices('/').map(|(at, _)| at);
    let ancestor = ends
        .nth(depth - 1)
        .and_then(|end| inner.as_str().get(..end));
    ancestor.is_some_and(|ancestor| Pattern::new(ancestor).shortest_common(outer).is_some())
}
