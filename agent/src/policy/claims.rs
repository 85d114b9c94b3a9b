//! What customers claim: patterns for interfaces and cgroups.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

use super::listed::distinct;
use super::scalar::cgroups::OwnedCgroup;
use super::scalar::{HostPattern, OwnedInterface};
use super::{Origin, Selector, Workload};
use crate::diagnostic::Problems;
use crate::yaml::read::{At, Fault, FromNode, Reader, keys};
use crate::yaml::tree::{Kind, Node};

/// The patterns of a customer: the policy shares them with the file they were read from.
#[derive(Debug, Clone)]
pub(crate) struct Claims(pub(crate) Arc<[Workload]>);

impl FromNode for Claims {
    fn from_node(node: &Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let maps: Vec<ClaimMap> = Vec::from_node(node, reader)?;
        let (file, problems) = reader.parts();
        let claims = maps
            .into_iter()
            .filter_map(|map| claim(file, map, problems));
        Some(Self(claims.collect()))
    }
}

impl JsonSchema for Claims {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Claims".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Vec::<ClaimMap>::json_schema(generator)
    }
}

fn claim(file: &Arc<Path>, map: ClaimMap, problems: &mut Problems) -> Option<Workload> {
    let ClaimMap(WorkloadMap {
        interface,
        cgroup,
        hosts,
    }) = map;
    let (selector, at) = match (interface, cgroup) {
        (Some(At { value, at }), _) => {
            let OwnedInterface(pattern) = value;
            (Selector::Interface(pattern), at)
        }
        (None, Some(At { value, at })) => {
            let OwnedCgroup(pattern) = value;
            (Selector::Cgroup(pattern), at)
        }
        // Reported where it was read.
        (None, None) => return None,
    };
    let hosts = hosts.unwrap_or_default().into_iter();
    let hosts = hosts.map(|host| (host.value.0, host.at)).collect();
    let hosts = distinct(file, hosts, problems);
    let origin = Origin {
        file: Arc::clone(file),
        line: at.line,
        column: at.column,
    };
    Some(Workload {
        selector,
        hosts: hosts.into_iter().map(|(host, _)| host).collect(),
        origin,
    })
}

keys! {
    /// A pattern that claims workloads.
    struct WorkloadMap {
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
struct ClaimMap(WorkloadMap);

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
