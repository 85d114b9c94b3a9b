//! Files that were read one by one to one policy: names, references and limits across the set.

mod destinations;
mod exemptions;
mod names;
mod relay;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use self::names::{Named, Names};
use super::language::{
    AllowlistMap, ClaimMap, CustomerMap, PolicyFile, ProfileMap, RulesMap, WorkloadMap,
};
use super::loader::Circumstances;
use super::overlap;
use super::scalar::cgroups::OwnedCgroup;
use super::scalar::{Id, ListName, OwnedInterface};
use super::{
    Allowlist, Blocked, Customer, DEFAULT_PROFILE, Mode, Origin, Policy, Profile, Rules, Selector,
    UNASSIGNED, Workload,
};
use crate::diagnostic::{Diagnostic, Location, Position, Problems, quoted};
use crate::yaml::read::{At, Placed, nearest};

/// Unknown names that get a suggestion: looking through a large set takes milliseconds each.
const MAX_SUGGESTIONS: usize = 50;

/// Joins the files of a set. Whatever is wrong is added to `problems`; the policy is only
/// meaningful when no error is among them. `complete` says whether every file could be read:
/// without it, a name that leads nowhere may be in a file that could not.
pub(crate) fn join(
    files: &[(&Arc<Path>, &PolicyFile)],
    complete: bool,
    circumstances: &Circumstances,
    problems: &mut Problems,
) -> Policy {
    let names = Names::new(files, problems);
    let rules = rules(files, problems);
    let suggestions = MAX_SUGGESTIONS;
    let mut join = Join {
        names: &names,
        rules: &rules,
        complete,
        circumstances,
        problems,
        suggestions,
    };
    let allowlists = join.allowlists();
    let profiles = join.profiles();
    let customers = join.customers();
    let exemptions = join.exemptions();
    join.warn_of_unused();
    join.find_collisions();
    overlap::find(&customers, problems);
    Policy {
        rules,
        allowlists,
        profiles,
        customers,
        exemptions,
    }
}

struct Join<'f, 'a> {
    names: &'a Names<'f>,
    rules: &'a Rules,
    complete: bool,
    circumstances: &'a Circumstances,
    problems: &'a mut Problems,
    suggestions: usize,
}

fn origin(file: &Arc<Path>, at: Position) -> Origin {
    Origin {
        file: Arc::clone(file),
        line: at.line,
        column: at.column,
    }
}

fn rules(files: &[(&Arc<Path>, &PolicyFile)], problems: &mut Problems) -> Rules {
    let mut rules = Rules::default();
    let mut first: Option<Location> = None;
    for (file, content) in files {
        let Some(Placed { value: map, at }) = &content.rules else {
            continue;
        };
        let location = Location::at(file, *at);
        if let Some(first) = &first {
            let message = "the set has a second `rules` section";
            problems.push(
                Diagnostic::error("duplicate-rules", location, message)
                    .help("keep one of them")
                    .related(first.clone(), "first written here"),
            );
            continue;
        }
        first = Some(location);
        let Some(map) = &map.0 else { continue };
        let RulesMap {
            max_exemption_days,
            min_prefix_v4,
            min_prefix_v6,
        } = map;
        if let Some(days) = max_exemption_days {
            rules.max_exemption_days = days.value.0;
        }
        if let Some(bits) = min_prefix_v4 {
            rules.min_prefix_v4 = bits.value.0;
        }
        if let Some(bits) = min_prefix_v6 {
            rules.min_prefix_v6 = bits.value.0;
        }
    }
    rules
}

impl<'f> Join<'f, '_> {
    fn allowlists(&mut self) -> BTreeMap<String, Allowlist> {
        let mut allowlists = Vec::with_capacity(self.names.allowlists.len());
        for (name, named) in &self.names.allowlists {
            let AllowlistMap {
                name: _,
                description,
                to,
            } = named.map;
            let to = to.as_deref().unwrap_or_default();
            let to = to
                .iter()
                .map(|prefix| (prefix.value.0, prefix.at))
                .collect();
            let to = self.prefixes(named.file, to);
            let description = description.as_ref().map(|text| text.value.0.clone());
            let description = description.unwrap_or_default();
            let origin = named.origin();
            allowlists.push((
                (*name).to_owned(),
                Allowlist {
                    description,
                    to,
                    origin,
                },
            ));
        }
        allowlists.into_iter().collect()
    }

    fn profiles(&mut self) -> BTreeMap<String, Profile> {
        let mut profiles = BTreeMap::new();
        for (name, named) in &self.names.profiles {
            let ProfileMap {
                name: _,
                mode,
                blocked,
                relay,
                allow,
            } = named.map;
            let profile = Profile {
                mode: mode.as_ref().map_or(Mode::Enforce, |mode| mode.value),
                blocked: blocked
                    .as_ref()
                    .map_or(Blocked::Reject, |blocked| blocked.value),
                relay: self.relay(named, blocked.as_ref(), relay.as_ref()),
                allow: self.allow(named.file, allow.as_deref().unwrap_or_default()),
                origin: named.origin(),
            };
            profiles.insert((*name).to_owned(), profile);
        }
        if self.complete && !profiles.contains_key(DEFAULT_PROFILE) {
            let message = format!("the set has no profile `{DEFAULT_PROFILE}`");
            // No line is to blame: the error is about the directory.
            let set: Arc<Path> = Arc::from(Path::new("."));
            self.problems.push(
                Diagnostic::error("no-default-profile", Location::whole(&set), message).help(
                    "it governs whatever no customer owns: add `profiles: [{name: default}]`",
                ),
            );
        }
        profiles
    }

    fn customers(&mut self) -> BTreeMap<String, Customer> {
        let mut customers = Vec::with_capacity(self.names.customers.len());
        for (id, named) in &self.names.customers {
            let CustomerMap {
                id: _,
                name,
                profile,
                allow,
                workloads,
            } = named.map;
            let workloads = workloads.as_deref().unwrap_or_default();
            let customer = Customer {
                name: name
                    .as_ref()
                    .map(|name| name.value.0.clone())
                    .unwrap_or_default(),
                profile: self.profile(named.file, profile.as_ref()).to_owned(),
                allow: self.allow(named.file, allow.as_deref().unwrap_or_default()),
                workloads: workloads
                    .iter()
                    .filter_map(|workload| self.workload(named.file, workload))
                    .collect(),
                origin: named.origin(),
            };
            customers.push(((*id).to_owned(), customer));
        }
        customers.into_iter().collect()
    }

    fn profile(&mut self, file: &Arc<Path>, profile: Option<&'f At<Id>>) -> &'f str {
        let Some(At {
            value: Id(name),
            at,
        }) = profile
        else {
            return DEFAULT_PROFILE;
        };
        if !self
            .names
            .profiles
            .get(name.as_str())
            .is_some_and(Named::mark_used)
        {
            let known = self.names.profiles.keys().copied();
            let unknown = self.unknown(Location::at(file, *at), "profile", name, known);
            self.problems_unless_incomplete(unknown);
        }
        name
    }

    fn workload(&mut self, file: &Arc<Path>, map: &ClaimMap) -> Option<Workload> {
        let ClaimMap(WorkloadMap {
            interface,
            cgroup,
            hosts,
        }) = map;
        let (selector, at) = match (interface, cgroup) {
            (Some(At { value, at }), _) => {
                let OwnedInterface(pattern) = value;
                (Selector::Interface(pattern.clone()), at)
            }
            (None, Some(At { value, at })) => {
                let OwnedCgroup(pattern) = value;
                (Selector::Cgroup(pattern.clone()), at)
            }
            // Reported where it was read.
            (None, None) => return None,
        };
        let hosts = hosts.as_deref().unwrap_or_default();
        let hosts = hosts.iter().map(|host| (&host.value.0, host.at)).collect();
        let hosts = self.distinct(file, hosts);
        Some(Workload {
            selector,
            hosts: hosts.into_iter().map(|(host, _)| host.clone()).collect(),
            origin: origin(file, *at),
        })
    }

    /// The names of allowlists in an `allow` list, sorted.
    fn allow(&mut self, file: &Arc<Path>, list: &'f [At<ListName>]) -> Vec<String> {
        let list = list
            .iter()
            .map(|name| (name.value.0.as_str(), name.at))
            .collect();
        let list = self.distinct(file, list);
        for (name, at) in &list {
            if !self
                .names
                .allowlists
                .get(name)
                .is_some_and(Named::mark_used)
            {
                let known = self.names.allowlists.keys().copied();
                let unknown = self.unknown(Location::at(file, *at), "allowlist", name, known);
                self.problems_unless_incomplete(unknown);
            }
        }
        list.into_iter().map(|(name, _)| name.to_owned()).collect()
    }

    /// The items sorted, each once; those that are there twice are reported.
    fn distinct<T: Ord + Display>(
        &mut self,
        file: &Arc<Path>,
        mut list: Vec<(T, Position)>,
    ) -> Vec<(T, Position)> {
        list.sort_unstable();
        list.dedup_by(|(item, at), (kept, first)| {
            let is_duplicate = item == kept;
            if is_duplicate {
                let message = format!("{} is listed twice", quoted(&item.to_string()));
                self.problems.push(
                    Diagnostic::error("duplicate-item", Location::at(file, *at), message)
                        .help("remove one of them")
                        .related(Location::at(file, *first), "first listed here"),
                );
            }
            is_duplicate
        });
        list
    }

    fn unknown<'k>(
        &mut self,
        location: Location,
        what: &str,
        name: &str,
        known: impl Iterator<Item = &'k str>,
    ) -> Diagnostic {
        let message = format!("there is no {what} {}", quoted(name));
        let diagnostic = Diagnostic::error("unknown-name", location, message);
        let near = if self.suggestions > 0 {
            nearest(name, known)
        } else {
            None
        };
        self.suggestions = self.suggestions.saturating_sub(1);
        match near {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None => diagnostic.help(format!("define it in `{what}s`, in any file of the set")),
        }
    }

    fn problems_unless_incomplete(&mut self, unknown: Diagnostic) {
        if self.complete {
            self.problems.push(unknown);
        }
    }

    fn warn_of_unused(&mut self) {
        if !self.complete {
            return;
        }
        let unused = self
            .names
            .allowlists
            .iter()
            .filter(|(_, named)| !named.is_used());
        for (name, named) in unused {
            let message = format!("nothing uses the allowlist {}", quoted(name));
            self.problems.push(
                Diagnostic::warning("unused-allowlist", named.location(), message)
                    .help("name it in the `allow` of a profile or a customer, or remove it"),
            );
        }
        let unused = self
            .names
            .profiles
            .iter()
            .filter(|(_, named)| !named.is_used());
        for (name, named) in unused.filter(|(name, _)| **name != DEFAULT_PROFILE) {
            let message = format!("no customer uses the profile {}", quoted(name));
            self.problems.push(
                Diagnostic::warning("unused-profile", named.location(), message)
                    .help("name it in the `profile` of a customer, or remove it"),
            );
        }
    }

    /// Counters and policies are kept by a number made of the id: two ids must not share one.
    fn find_collisions(&mut self) {
        let key = self.circumstances.customer_key;
        let customers = self.names.customers.iter();
        let mut keys: Vec<_> = customers
            .map(|(id, named)| (key(id), Some((*id, named))))
            .collect();
        keys.push((key(UNASSIGNED), None));
        keys.sort_unstable_by_key(|(key, customer)| (*key, customer.map(|(id, _)| id)));
        for pair in keys.windows(2) {
            let [(first, other), (second, Some((id, named)))] = pair else {
                continue;
            };
            if first != second {
                continue;
            }
            let message = format!("the id {} has the same number as another one", quoted(id));
            let error = Diagnostic::error("id-collision", named.location(), message);
            self.problems.push(match other {
                Some((_, other)) => error
                    .help("ids are known to the kernel by a hash: rename one of them")
                    .related(other.location(), "the other one"),
                None => error.help(format!(
                    "ids are known to the kernel by a hash, and this one's is that of the built-in \
                     customer `{UNASSIGNED}`: rename it"
                )),
            });
        }
    }
}
