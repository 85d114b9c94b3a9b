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
    interfaces: Patterns<'p>,
    cgroups: Patterns<'p>,
}

/// A customer, and the pattern by which something is its own.
type Claim<'p> = (&'p str, &'p Workload);

/// Patterns of one kind, by how they are looked for. Almost all are plain names or end in their only
/// `*`: these are only sorted, since that is done for every change on the host.
#[derive(Debug, Default)]
struct Patterns<'p> {
    /// Those that match one name, sorted by it.
    names: Vec<(&'p str, Claim<'p>)>,
    /// Those that end in their only `*`, sorted by what is before it.
    beginnings: Vec<(&'p str, Claim<'p>)>,
    /// All others.
    others: Claims<'p>,
}

/// Patterns component by component: the node that a path leads to holds those that match it.
#[derive(Debug, Default)]
struct Claims<'p> {
    here: Vec<Claim<'p>>,
    below: Components<'p>,
}

/// What follows a node: patterns of one component by what a matching name starts with and by what
/// it ends with, backwards, so that few of them are tried on each name.
type Components<'p> = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<(Pattern, Claims<'p>)>>>;

impl<'p> Ownership<'p> {
    /// Prepares the patterns whose `hosts` match this host.
    #[must_use]
    pub fn new(policy: &'p Policy, host: &str) -> Self {
        let mut interfaces = Patterns::default();
        let mut cgroups = Patterns::default();
        for (customer, workload) in claims(policy, host) {
            let (patterns, pattern) = match &workload.selector {
                Selector::Interface(pattern) => (&mut interfaces, pattern),
                Selector::Cgroup(pattern) => (&mut cgroups, pattern),
            };
            patterns.add(pattern, (customer, workload));
        }
        interfaces.sort();
        cgroups.sort();
        Self {
            interfaces,
            cgroups,
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
        self.cgroups.nearest(path)
    }
}

/// Components of the longest pattern of control groups that applies on this host: nothing is claimed
/// exactly below this depth. 0 without such patterns.
#[must_use]
pub fn cgroup_depth(policy: &Policy, host: &str) -> usize {
    let depths = claims(policy, host).filter_map(|(_, workload)| match &workload.selector {
        Selector::Interface(_) => None,
        Selector::Cgroup(pattern) => Some(pattern.components()),
    });
    depths.max().unwrap_or_default()
}

/// Customers who claim control groups on this host; one who does so several times comes as often.
pub fn cgroup_customers<'p>(policy: &'p Policy, host: &str) -> impl Iterator<Item = &'p str> {
    claims(policy, host).filter_map(|(customer, workload)| match &workload.selector {
        Selector::Interface(_) => None,
        Selector::Cgroup(_) => Some(customer),
    })
}

/// The patterns whose `hosts` match this host.
fn claims<'p>(policy: &'p Policy, host: &str) -> impl Iterator<Item = Claim<'p>> {
    let all = policy.customers.iter().flat_map(|(customer, owner)| {
        let workloads = owner.workloads.iter();
        workloads.map(move |workload| (customer.as_str(), workload))
    });
    all.filter(move |(_, workload)| {
        let hosts = &workload.hosts;
        hosts.is_empty() || hosts.iter().any(|pattern| pattern.matches(host))
    })
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

impl<'p> Patterns<'p> {
    /// Before [`Self::sort`].
    fn add(&mut self, pattern: &'p Pattern, claim: Claim<'p>) {
        let text = pattern.as_str();
        match text.find(['*', '?']) {
            None => self.names.push((text, claim)),
            Some(at) if text.get(at..) == Some("*") => {
                self.beginnings.push((pattern.literal_prefix(), claim));
            }
            Some(_) => self.others.add(pattern, claim),
        }
    }

    fn sort(&mut self) {
        self.names.sort_by_key(|(name, _)| *name);
        self.beginnings.sort_by_key(|(beginning, _)| *beginning);
    }

    /// Who claims exactly this path; `None` where nobody does.
    fn of(&self, path: &str) -> Option<Owner<'p>> {
        let nodes = self
            .others
            .along(path)
            .nth(components(path).checked_sub(1)?);
        owner(self.claims(path, &nodes.unwrap_or_default()))
    }

    /// The deepest of a path and those above it that anybody claims, and who does.
    fn nearest<'n>(&self, path: &'n str) -> Option<(&'n str, Owner<'p>)> {
        let depth = components(path);
        let nodes = self.others.along(path).collect::<Vec<_>>();
        lineage(path).enumerate().find_map(|(above, ancestor)| {
            let nodes = nodes.get(depth.checked_sub(above + 1)?);
            let nodes = nodes.map(Vec::as_slice).unwrap_or_default();
            Some((ancestor, owner(self.claims(ancestor, nodes))?))
        })
    }

    /// The claims on a path, to which these nodes lead.
    fn claims<'a>(
        &'a self,
        path: &'a str,
        nodes: &'a [&Claims<'p>],
    ) -> impl Iterator<Item = Claim<'p>> {
        // `*` stands for nothing beyond the last component.
        let last = path.rfind('/').map_or(0, |slash| slash + 1);
        let beginnings = (last..=path.len())
            .filter_map(|end| path.get(..end))
            .flat_map(|beginning| equal(&self.beginnings, beginning));
        let others = nodes.iter().flat_map(|node| &node.here);
        let sorted = equal(&self.names, path).iter().chain(beginnings);
        sorted.map(|(_, claim)| claim).chain(others).copied()
    }
}

/// The entries of a sorted list that have this name.
fn equal<'a, 'p>(list: &'a [(&'p str, Claim<'p>)], name: &str) -> &'a [(&'p str, Claim<'p>)] {
    let from = list.partition_point(|(it, _)| *it < name);
    let rest = list.get(from..).unwrap_or_default();
    let count = rest.iter().take_while(|(it, _)| *it == name).count();
    rest.get(..count).unwrap_or_default()
}

impl<'p> Claims<'p> {
    fn add(&mut self, pattern: &Pattern, claim: Claim<'p>) {
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
        node.here.push(claim);
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
}

/// Whose these claims make something; `None` where there is none.
fn owner<'p>(claims: impl Iterator<Item = Claim<'p>>) -> Option<Owner<'p>> {
    let mut owners: BTreeMap<&'p str, &'p Workload> = BTreeMap::new();
    for (customer, workload) in claims {
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
