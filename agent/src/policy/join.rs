//! Files that were read one by one to one policy: names, references and limits across the set.

mod destinations;
mod exemptions;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::language::{AllowlistMap, CustomerMap, PolicyFile, ProfileMap, RulesMap, WorkloadMap};
use super::loader::Circumstances;
use super::overlap;
use super::scalar::{HostPattern, ListName, OwnedInterface};
use super::{
    Allowlist, Blocked, Customer, DEFAULT_PROFILE, Mode, Origin, Policy, Profile, Rules, Selector,
    UNASSIGNED, Workload,
};
use crate::diagnostic::{Diagnostic, Location, Position, Problems, quoted};
use crate::yaml::read::{At, Placed, Section, nearest};

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
    let names = Names {
        allowlists: index(
            files,
            "allowlist",
            |file| &file.allowlists,
            allowlist_name,
            problems,
        ),
        profiles: index(
            files,
            "profile",
            |file| &file.profiles,
            profile_name,
            problems,
        ),
        customers: index(
            files,
            "customer",
            |file| &file.customers,
            customer_name,
            problems,
        ),
    };
    let rules = rules(files, problems);
    let suggestions = MAX_SUGGESTIONS;
    let mut join = Join {
        names: &names,
        rules: &rules,
        complete,
        circumstances,
        problems,
        suggestions,
        used_lists: BTreeSet::new(),
        used_profiles: BTreeSet::from([DEFAULT_PROFILE]),
    };
    let allowlists = join.allowlists();
    let profiles = join.profiles();
    let customers = join.customers();
    let exemptions = join.exemptions(files);
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

/// An object and where it was written.
struct Named<'f, T> {
    file: &'f Arc<Path>,
    at: Position,
    map: &'f T,
}

impl<T> Named<'_, T> {
    fn origin(&self) -> Origin {
        origin(self.file, self.at)
    }

    fn location(&self) -> Location {
        Location::at(self.file, self.at)
    }
}

/// Where every name of the set was written.
struct Names<'f> {
    allowlists: BTreeMap<&'f str, Named<'f, AllowlistMap>>,
    profiles: BTreeMap<&'f str, Named<'f, ProfileMap>>,
    customers: BTreeMap<&'f str, Named<'f, CustomerMap>>,
}

struct Join<'f, 'a> {
    names: &'a Names<'f>,
    rules: &'a Rules,
    complete: bool,
    circumstances: &'a Circumstances,
    problems: &'a mut Problems,
    suggestions: usize,
    used_lists: BTreeSet<&'f str>,
    used_profiles: BTreeSet<&'f str>,
}

fn origin(file: &Arc<Path>, at: Position) -> Origin {
    Origin {
        file: Arc::clone(file),
        line: at.line,
        column: at.column,
    }
}

fn allowlist_name(map: &AllowlistMap) -> Option<(&str, Position)> {
    map.name
        .as_ref()
        .map(|name| (name.value.0.as_str(), name.at))
}

fn profile_name(map: &ProfileMap) -> Option<(&str, Position)> {
    map.name
        .as_ref()
        .map(|name| (name.value.0.as_str(), name.at))
}

fn customer_name(map: &CustomerMap) -> Option<(&str, Position)> {
    map.id.as_ref().map(|id| (id.value.0.as_str(), id.at))
}

/// The objects of a section by name. One whose name could not be read has been reported already.
fn index<'f, T>(
    files: &[(&'f Arc<Path>, &'f PolicyFile)],
    what: &str,
    section: fn(&PolicyFile) -> &Option<Section<T>>,
    name: fn(&T) -> Option<(&str, Position)>,
    problems: &mut Problems,
) -> BTreeMap<&'f str, Named<'f, T>> {
    let mut found: BTreeMap<&str, Named<'f, T>> = BTreeMap::new();
    for (file, content) in files {
        for map in section(content).iter().flat_map(|section| &section.0) {
            let Some((name, at)) = name(map) else {
                continue;
            };
            match found.get(name) {
                Some(first) => problems.push(
                    Diagnostic::error(
                        "duplicate-name",
                        Location::at(file, at),
                        format!("the {what} {} is defined twice", quoted(name)),
                    )
                    .help("rename or remove one of them: the order of files never decides")
                    .related(first.location(), "first defined here"),
                ),
                None => {
                    found.insert(name, Named { file, at, map });
                }
            }
        }
    }
    found
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
        let RulesMap {
            max_exemption_days,
            min_prefix_v4,
            min_prefix_v6,
        } = map;
        if let Some(days) = max_exemption_days {
            rules.max_exemption_days = days.value.0;
        }
        if let Some(bits) = min_prefix_v4 {
            rules.min_prefix_v4 = bits.value.0.try_into().unwrap_or(u8::MAX);
        }
        if let Some(bits) = min_prefix_v6 {
            rules.min_prefix_v6 = bits.value.0.try_into().unwrap_or(u8::MAX);
        }
    }
    rules
}

impl<'f> Join<'f, '_> {
    fn allowlists(&mut self) -> BTreeMap<String, Allowlist> {
        let mut allowlists = BTreeMap::new();
        for (name, named) in &self.names.allowlists {
            let AllowlistMap {
                name: _,
                description,
                to,
            } = named.map;
            let to = to.as_deref().unwrap_or_default();
            let to = self.prefixes(
                named.file,
                to.iter().map(|prefix| (prefix.value.0, prefix.at)),
            );
            let description = description.as_ref().map(|text| text.value.0.clone());
            let description = description.unwrap_or_default();
            let origin = named.origin();
            allowlists.insert(
                (*name).to_owned(),
                Allowlist {
                    description,
                    to,
                    origin,
                },
            );
        }
        allowlists
    }

    fn profiles(&mut self) -> BTreeMap<String, Profile> {
        let mut profiles = BTreeMap::new();
        for (name, named) in &self.names.profiles {
            let ProfileMap {
                name: _,
                mode,
                blocked,
                allow,
            } = named.map;
            let profile = Profile {
                mode: mode.as_ref().map_or(Mode::Enforce, |mode| mode.value),
                blocked: blocked
                    .as_ref()
                    .map_or(Blocked::Reject, |blocked| blocked.value),
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
        let mut customers = BTreeMap::new();
        for (id, named) in &self.names.customers {
            let CustomerMap {
                id: _,
                name,
                profile,
                allow,
                workloads,
            } = named.map;
            let workloads = workloads.as_deref().unwrap_or_default();
            let profile = match profile {
                Some(profile) => {
                    let name = profile.value.0.as_str();
                    if self.names.profiles.contains_key(name) {
                        self.used_profiles.insert(name);
                    } else {
                        let known = self.names.profiles.keys().copied();
                        let location = Location::at(named.file, profile.at);
                        let unknown = self.unknown(location, "profile", name, known);
                        self.problems_unless_incomplete(unknown);
                    }
                    name
                }
                None => DEFAULT_PROFILE,
            };
            let customer = Customer {
                name: name
                    .as_ref()
                    .map(|name| name.value.0.clone())
                    .unwrap_or_default(),
                profile: profile.to_owned(),
                allow: self.allow(named.file, allow.as_deref().unwrap_or_default()),
                workloads: workloads
                    .iter()
                    .filter_map(|workload| self.workload(named.file, workload))
                    .collect(),
                origin: named.origin(),
            };
            customers.insert((*id).to_owned(), customer);
        }
        customers
    }

    fn workload(&mut self, file: &Arc<Path>, map: &WorkloadMap) -> Option<Workload> {
        let WorkloadMap { interface, hosts } = map;
        let At {
            value: OwnedInterface(pattern),
            at,
        } = interface.as_ref()?;
        let mut seen = BTreeMap::new();
        let mut kept = Vec::new();
        for At {
            value: HostPattern(host),
            at,
        } in hosts.as_deref().unwrap_or_default()
        {
            match seen.insert(host, *at) {
                Some(first) => self.duplicate(file, *at, first, host.as_str()),
                None => kept.push(host.clone()),
            }
        }
        let selector = Selector::Interface(pattern.clone());
        Some(Workload {
            selector,
            hosts: kept,
            origin: origin(file, *at),
        })
    }

    /// The names of allowlists in an `allow` list, sorted.
    fn allow(&mut self, file: &Arc<Path>, list: &'f [At<ListName>]) -> Vec<String> {
        let mut seen = BTreeMap::new();
        for At {
            value: ListName(name),
            at,
        } in list
        {
            if let Some(first) = seen.insert(name.as_str(), *at) {
                self.duplicate(file, *at, first, name);
            } else if self.names.allowlists.contains_key(name.as_str()) {
                self.used_lists.insert(name);
            } else {
                let known = self.names.allowlists.keys().copied();
                let unknown = self.unknown(Location::at(file, *at), "allowlist", name, known);
                self.problems_unless_incomplete(unknown);
            }
        }
        seen.into_keys().map(str::to_owned).collect()
    }

    fn duplicate(&mut self, file: &Arc<Path>, at: Position, first: Position, what: &str) {
        let message = format!("{} is listed twice", quoted(what));
        self.problems.push(
            Diagnostic::error("duplicate-item", Location::at(file, at), message)
                .help("remove one of them")
                .related(Location::at(file, first), "first listed here"),
        );
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
        for (name, named) in &self.names.allowlists {
            if !self.used_lists.contains(name) {
                let message = format!("nothing uses the allowlist {}", quoted(name));
                self.problems.push(
                    Diagnostic::warning("unused-allowlist", named.location(), message)
                        .help("name it in the `allow` of a profile or a customer, or remove it"),
                );
            }
        }
        for (name, named) in &self.names.profiles {
            if !self.used_profiles.contains(name) {
                let message = format!("no customer uses the profile {}", quoted(name));
                self.problems.push(
                    Diagnostic::warning("unused-profile", named.location(), message)
                        .help("name it in the `profile` of a customer, or remove it"),
                );
            }
        }
    }

    /// Counters and policies are kept by a number made of the id: two ids must not share one.
    fn find_collisions(&mut self) {
        let key = self.circumstances.customer_key;
        let mut seen: BTreeMap<u64, Option<&Named<'f, CustomerMap>>> =
            BTreeMap::from([(key(UNASSIGNED), None)]);
        for (id, named) in &self.names.customers {
            let Some(other) = seen.insert(key(id), Some(named)) else {
                continue;
            };
            let message = format!("the id {} has the same number as another one", quoted(id));
            let error = Diagnostic::error("id-collision", named.location(), message)
                .help("ids are known to the kernel by a hash: rename one of them");
            self.problems.push(match other {
                Some(other) => error.related(other.location(), "the other one"),
                None => error.help(format!(
                    "ids are known to the kernel by a hash, and this one's is that of the built-in \
                     customer `{UNASSIGNED}`: rename it"
                )),
            });
        }
    }
}
