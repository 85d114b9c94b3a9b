//! Who owns an interface or a cgroup on a host.

use std::collections::BTreeMap;
use std::iter::successors;
use std::ops::Bound;

use super::{Origin, Pattern, Policy, Selector, Workload};

/// Who owns a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner<'p> {
    /// One customer, by this pattern; the first in the order of the files where several match.
    Customer(&'p str, &'p Workload),
    /// Nobody: the built-in customer.
    Unassigned,
    /// Several customers, each by a pattern written at the place: the built-in customer's until
    /// somebody decides.
    Conflict(Vec<(&'p str, &'p Origin)>),
}

/// The patterns of a policy that apply on one host, made ready for many names.
#[derive(Debug)]
pub struct Ownership<'p> {
    interfaces: Claims<'p>,
    cgroups: Claims<'p>,
    cgroup_depth: usize,
}

/// Patterns component by component: the node that a path leads to holds those that match it.
#[derive(Debug, Default)]
struct Claims<'p> {
    here: Vec<(&'p str, &'p Workload)>,
    below: Components<'p>,
}

/// What follows a node: patterns of one component by what a matching name starts with and by what
/// it ends with, backwards, so that few of them are tried on each name.
type Components<'p> = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<(Pattern, Claims<'p>)>>>;

impl<'p> Ownership<'p> {
    /// Prepares the patterns whose `hosts` match this host.
    #[must_use]
    pub fn new(policy: &'p Policy, host: &str) -> Self {
        let mut interfaces = Claims::default();
        let mut cgroups = Claims::default();
        let mut cgroup_depth = 0;
        for (customer, owner) in &policy.customers {
            for workload in &owner.workloads {
                let Workload {
                    selector,
                    hosts,
                    origin: _,
                } = workload;
                if !hosts.is_empty() && !hosts.iter().any(|pattern| pattern.matches(host)) {
                    continue;
                }
                let (claims, pattern) = match selector {
                    Selector::Interface(pattern) => (&mut interfaces, pattern),
                    Selector::Cgroup(pattern) => {
                        cgroup_depth = cgroup_depth.max(pattern.components());
                        (&mut cgroups, pattern)
                    }
                };
                claims.add(pattern, customer, workload);
            }
        }
        Self {
            interfaces,
            cgroups,
            cgroup_depth,
        }
    }

    /// Who owns the interface of this name.
    #[must_use]
    pub fn of_interface(&self, name: &str) -> Owner<'p> {
        self.interfaces.of(name).unwrap_or(Owner::Unassigned)
    }

    /// Who owns the cgroup of this path below the mount (no leading or trailing slash): whoever
    /// claims the deepest of itself and its ancestors that anybody claims.
    #[must_use]
    pub fn of_cgroup(&self, path: &str) -> Owner<'p> {
        self.nearest_claim(path)
            .map_or(Owner::Unassigned, |(_, owner)| owner)
    }

    /// Who claims exactly the cgroup of this path, whatever is claimed above it.
    #[must_use]
    pub fn claim_of_cgroup(&self, path: &str) -> Option<Owner<'p>> {
        if path.is_empty() {
            return None;
        }
        self.cgroups.of(path)
    }

    /// The deepest of a cgroup and its ancestors that anybody claims, and who does.
    #[must_use]
    pub fn nearest_claim<'n>(&self, path: &'n str) -> Option<(&'n str, Owner<'p>)> {
        // `*` would match the mount itself.
        if path.is_empty() {
            return None;
        }
        let depth = components(path);
        let nodes = self.cgroups.along(path).collect::<Vec<_>>();
        let nearest = nodes.iter().rposition(|nodes| is_claimed(nodes))?;
        let ancestor = lineage(path).nth(depth.checked_sub(nearest + 1)?)?;
        Some((ancestor, owner(nodes.get(nearest)?)?))
    }

    /// Components of the longest cgroup pattern: nothing is claimed exactly below this depth. 0
    /// without such patterns.
    #[must_use]
    pub fn cgroup_depth(&self) -> usize {
        self.cgroup_depth
    }
}

/// A path and those above it, deepest first, the mount left out.
pub fn lineage(path: &str) -> impl Iterator<Item = &str> {
    successors(Some(path), |path| path.rsplit_once('/').map(|(up, _)| up))
}

impl Pattern {
    /// Components of the paths that the pattern matches.
    #[must_use]
    pub fn components(&self) -> usize {
        components(self.as_str())
    }
}

fn components(path: &str) -> usize {
    path.split('/').count()
}

impl<'p> Claims<'p> {
    fn add(&mut self, pattern: &Pattern, customer: &'p str, workload: &'p Workload) {
        let mut node = self;
        for component in pattern.as_str().split('/').map(Pattern::new) {
            let start = component.literal_prefix().as_bytes().to_vec();
            let end = component.literal_suffix().bytes().rev().collect();
            let alike = node.below.entry(start).or_default().entry(end).or_default();
            let at = match alike.iter().position(|(known, _)| *known == component) {
                Some(at) => at,
                None => {
                    alike.push((component, Claims::default()));
                    alike.len() - 1
                }
            };
            let Some((_, next)) = alike.get_mut(at) else {
                return;
            };
            node = next;
        }
        node.here.push((customer, workload));
    }

    /// The nodes that each component of the path leads to, for as long as there are any.
    fn along<'a>(&'a self, path: &'a str) -> impl Iterator<Item = Vec<&'a Self>> {
        path.split('/').scan(vec![self], |nodes, name| {
            let backwards: Vec<u8> = name.bytes().rev().collect();
            *nodes = nodes
                .iter()
                .flat_map(|node| beginnings(&node.below, name.as_bytes()))
                .flat_map(|ends| beginnings(ends, &backwards))
                .flatten()
                .filter(|(component, _)| component.matches(name))
                .map(|(_, next)| next)
                .collect();
            (!nodes.is_empty()).then(|| nodes.clone())
        })
    }

    /// Who claims exactly this path; `None` where nobody does.
    fn of(&self, path: &str) -> Option<Owner<'p>> {
        owner(&self.along(path).nth(components(path).checked_sub(1)?)?)
    }
}

fn is_claimed(nodes: &[&Claims<'_>]) -> bool {
    nodes.iter().any(|node| !node.here.is_empty())
}

/// Whose the patterns at these nodes are; `None` where there is none.
fn owner<'p>(nodes: &[&Claims<'p>]) -> Option<Owner<'p>> {
    let mut owners: BTreeMap<&'p str, &'p Workload> = BTreeMap::new();
    for (customer, workload) in nodes.iter().flat_map(|node| &node.here) {
        let first = owners.entry(customer).or_insert(workload);
        if workload.origin < first.origin {
            *first = workload;
        }
    }
    let mut all = owners.iter();
    match (all.next(), all.next()) {
        (None, _) => None,
        (Some((customer, workload)), None) => Some(Owner::Customer(customer, workload)),
        (Some(_), Some(_)) => Some(Owner::Conflict(
            owners
                .into_iter()
                .map(|(customer, workload)| (customer, &workload.origin))
                .collect(),
        )),
    }
}

/// The values of the keys that `name` begins with.
fn beginnings<'m, V>(map: &'m BTreeMap<Vec<u8>, V>, name: &[u8]) -> impl Iterator<Item = &'m V> {
    let mut rest = Some(name);
    std::iter::from_fn(move || {
        loop {
            let bound = rest.take()?;
            let (key, value) = map
                .range::<[u8], _>((Bound::Unbounded, Bound::Included(bound)))
                .next_back()?;
            let common = key.iter().zip(bound).take_while(|(a, b)| a == b).count();
            if common < key.len() {
                // Whatever `name` begins with and is longer would lie between the two.
                rest = bound.get(..common);
                continue;
            }
            rest = common.checked_sub(1).and_then(|end| bound.get(..end));
            return Some(value);
        }
    })
}
