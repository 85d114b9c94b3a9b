//! Lists in which everything stands once.

use std::borrow::Cow;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::scalar::Prefix;
use crate::diagnostic::{Diagnostic, Location, Position, Problems, quoted};
use crate::yaml::read::{At, FromNode, Reader};
use crate::yaml::tree::Node;

/// The prefixes of an allowlist: the policy shares them with the file they were read from.
#[derive(Debug, Clone)]
pub(crate) struct Prefixes {
    /// Sorted, each once.
    pub(crate) nets: Arc<[IpNet]>,
    /// Where each was written.
    places: Box<[Position]>,
}

impl Prefixes {
    /// Every prefix and where it was written.
    pub(crate) fn placed(&self) -> impl Iterator<Item = (IpNet, Position)> {
        self.nets.iter().copied().zip(self.places.iter().copied())
    }
}

impl FromNode for Prefixes {
    fn from_node(node: &Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let written: Vec<At<Prefix>> = Vec::from_node(node, reader)?;
        let list = written.iter().map(|one| (one.value.0, one.at)).collect();
        let (file, problems) = reader.parts();
        let (nets, places): (Vec<_>, Vec<_>) = distinct(file, list, problems).into_iter().unzip();
        Some(Self {
            nets: nets.into(),
            places: places.into(),
        })
    }
}

impl JsonSchema for Prefixes {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Prefixes".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Vec::<At<Prefix>>::json_schema(generator)
    }
}

/// The items sorted, each once; those that are there twice are reported.
pub(super) fn distinct<T: Ord + Display>(
    file: &Arc<Path>,
    mut list: Vec<(T, Position)>,
    problems: &mut Problems,
) -> Vec<(T, Position)> {
    list.sort_unstable();
    list.dedup_by(|(item, at), (kept, first)| {
        let is_duplicate = item == kept;
        if is_duplicate {
            let message = format!("{} is listed twice", quoted(&item.to_string()));
            problems.push(
                Diagnostic::error("duplicate-item", Location::at(file, *at), message)
                    .help("remove one of them")
                    .related(Location::at(file, *first), "first listed here"),
            );
        }
        is_duplicate
    });
    list
}
