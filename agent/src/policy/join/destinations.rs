//! Destinations: prefixes that are listed once and are long enough.

use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;

use super::Join;
use crate::diagnostic::{Diagnostic, Location, Position, quoted};

impl Join<'_, '_> {
    /// The prefixes of one list, sorted.
    pub(super) fn prefixes(
        &mut self,
        file: &Arc<Path>,
        list: Vec<(IpNet, Position)>,
    ) -> Vec<IpNet> {
        let list = self.distinct(file, list);
        self.judge_lengths(file, list.iter().copied());
        list.into_iter().map(|(net, _)| net).collect()
    }

    /// Reports prefixes that are wider than the rules of the set allow.
    pub(super) fn judge_lengths(
        &mut self,
        file: &Arc<Path>,
        list: impl Iterator<Item = (IpNet, Position)>,
    ) {
        for (net, at) in list {
            self.judge_length(file, net, at);
        }
    }

    fn judge_length(&mut self, file: &Arc<Path>, net: IpNet, at: Position) {
        let (least, rule) = match net {
            IpNet::V4(_) => (self.rules.min_prefix_v4, "min_prefix_v4"),
            IpNet::V6(_) => (self.rules.min_prefix_v6, "min_prefix_v6"),
        };
        if net.prefix_len() >= least {
            return;
        }
        let message = format!("{} is too wide", quoted(&net.to_string()));
        self.problems.push(
            Diagnostic::error("prefix-too-wide", Location::at(file, at), message).help(format!(
                "`rules.{rule}` accepts /{least} and longer; an exemption from everything says \
                 `to: any`"
            )),
        );
    }
}
