//! The policy language: its keys, listed once for the reader and the JSON schema.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::scalar::cgroups::OwnedCgroup;
use super::scalar::relay::RelayAddress;
use super::scalar::{HostPattern, Id, ListName, OwnedInterface, Prefix, Target, Time, Told};
use super::{ANY, Blocked, Mode};
use crate::diagnostic::Problems;
use crate::yaml::read::{At, Fault, FromNode, Maybe, Placed, Reader, Section, keys};
use crate::yaml::scalar::{Number, Text, Version};
use crate::yaml::tree::{self, Kind, Node};

keys! {
    /// One file of a gate25 policy.
    pub(crate) struct PolicyFile {
        /// Version of the language: every file says `schema: 1`.
        required schema: At<Version>,
        /// Limits on what the policy may say; in one file of the set only.
        optional rules: Placed<Maybe<RulesMap>>,
        /// Named sets of destinations.
        optional allowlists: Section<AllowlistMap>,
        /// What happens to connections that nothing allows; `default` must be among them.
        optional profiles: Section<ProfileMap>,
        /// Who owns which workloads.
        optional customers: Section<CustomerMap>,
        /// Permissions to send, for one customer and a time.
        optional exemptions: Section<ExemptionMap>,
    }
}

keys! {
    /// Limits on what the policy may say.
    pub(crate) struct RulesMap {
        /// Longest term of an exemption in days; 90 where nothing is said.
        optional max_exemption_days: At<Number<1, 3650>>,
        /// Shortest IPv4 prefix of a destination; 16 where nothing is said.
        optional min_prefix_v4: At<Number<0, 32, u8>>,
        /// Shortest IPv6 prefix of a destination; 32 where nothing is said.
        optional min_prefix_v6: At<Number<0, 128, u8>>,
    }
}

keys! {
    /// A named set of destinations.
    pub(crate) struct AllowlistMap {
        /// Name by which profiles, customers and exemptions use it.
        required name: At<ListName>,
        /// Free text for people.
        optional description: At<Text>,
        /// Addresses and prefixes, IPv4 and IPv6.
        required to: Vec<At<Prefix>>,
    }
}

keys! {
    /// What happens to connections that nothing allows.
    pub(crate) struct ProfileMap {
        /// Name by which customers use it; `default` governs whatever no customer owns.
        required name: At<Id>,
        /// `enforce` (where nothing is said) refuses; `observe` counts only.
        optional mode: At<Mode>,
        /// How it is refused: `reject` (where nothing is said) answers, `drop` is silent, `redirect`
        /// sends it to the relay, `notice` answers with the provider's text.
        optional blocked: At<Blocked>,
        /// With `blocked: redirect`: the relay's addresses, at most one of IPv4 and one of IPv6. With
        /// `blocked: notice`: what the text names.
        optional relay: Placed<Vec<At<RelayAddress>>>,
        /// Allowlists open to every customer of the profile.
        optional allow: Vec<At<ListName>>,
        later limit;
    }
}

keys! {
    /// Somebody who owns workloads.
    pub(crate) struct CustomerMap {
        /// Identifies the customer, in metrics too.
        required id: At<Id>,
        /// Free text for people.
        optional name: At<Text>,
        /// Profile of the customer; `default` where nothing is said.
        optional profile: At<Id>,
        /// Further allowlists, open to this customer.
        optional allow: Vec<At<ListName>>,
        /// Patterns that claim workloads.
        optional workloads: Vec<ClaimMap>,
    }
}

keys! {
    /// A pattern that claims workloads.
    pub(crate) struct WorkloadMap {
        /// Pattern for names of network interfaces on the host; `*` and `?` are wildcards.
        optional interface: At<OwnedInterface>,
        /// Pattern for paths of cgroups below the cgroup2 mount; takes what lies below them, too.
        optional cgroup: At<OwnedCgroup>,
        /// Patterns for host names; every host where nothing is said.
        optional hosts: Vec<At<HostPattern>>,
    }
}

/// A pattern that claims workloads, either interfaces or cgroups.
#[derive(Debug, Clone)]
pub(crate) struct ClaimMap(pub(crate) WorkloadMap);

/// The keys of which a workload has one.
const SELECTORS: [&str; 2] = ["interface", "cgroup"];

impl FromNode for ClaimMap {
    fn from_node(node: &Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if let Kind::Map(entries) = &node.kind {
            let selectors = entries
                .iter()
                .filter(|entry| SELECTORS.contains(&&*entry.key));
            let fault = match selectors.count() {
                0 => Some(Fault::new(
                    "missing-key",
                    "the key `interface` or `cgroup` is missing",
                )),
                1 => None,
                _ => Some(Fault::new(
                    "two-selectors",
                    "a workload is either an interface or a cgroup",
                )),
            };
            if let Some(fault) = fault {
                let help = "write a workload for each: `- interface: PATTERN`, `- cgroup: PATTERN`";
                reader.fault(node.at, fault.help(help));
            }
        }
        WorkloadMap::from_node(node, reader).map(Self)
    }
}

impl JsonSchema for ClaimMap {
    fn schema_name() -> Cow<'static, str> {
        WorkloadMap::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = WorkloadMap::json_schema(generator);
        let one = SELECTORS.map(|key| serde_json::json!({ "required": [key] }));
        schema.insert("oneOf".to_owned(), Value::from(one.to_vec()));
        schema
    }
}

keys! {
    /// A permission to send, for one customer and a time.
    pub(crate) struct ExemptionMap {
        /// Identifies the exemption.
        required id: At<Id>,
        /// Id of the customer it is for.
        required customer: At<Id>,
        /// Why it was granted.
        required reason: At<Told>,
        /// The ticket it was granted under.
        required ticket: At<Told>,
        /// Who granted it.
        required approved_by: At<Told>,
        /// First moment at which it holds; it holds at once where nothing is said.
        optional starts: At<Time>,
        /// Moment at which it ends.
        required expires: At<Time>,
        /// Where the customer may send: `any`, or a list of prefixes and names of allowlists.
        required to: To,
        later limit;
    }
}

/// Where an exemption opens.
#[derive(Debug, Clone)]
pub(crate) enum To {
    Any,
    Listed(Vec<At<Target>>),
}

impl FromNode for To {
    fn from_node(node: &Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match &node.kind {
            Kind::Scalar(text, _) if text == ANY => Some(Self::Any),
            Kind::List(_) => Vec::from_node(node, reader).map(Self::Listed),
            Kind::Scalar(..) | Kind::Map(_) => {
                reader.wrong_kind(node, "`any` or a list of prefixes and allowlists");
                None
            }
            Kind::Refused => None,
        }
    }
}

impl JsonSchema for To {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "To".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "const": ANY }, generator.subschema_for::<Vec<At<Target>>>()] })
    }
}

/// Reads one file; `None` where nothing in it could be read.
pub(crate) fn read(file: &Arc<Path>, bytes: &[u8], problems: &mut Problems) -> Option<PolicyFile> {
    let root = tree::parse(file, bytes, problems)?;
    PolicyFile::from_entries(&root, &mut Reader::new(file, problems), true)
}

/// The JSON schema (draft 7) of a policy file.
#[must_use]
pub fn json_schema() -> Value {
    let mut schema = SchemaSettings::draft07()
        .into_generator()
        .into_root_schema_for::<PolicyFile>();
    schema.insert("title".to_owned(), Value::from("gate25 policy"));
    schema.to_value()
}
