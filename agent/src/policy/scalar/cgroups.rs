//! Patterns for cgroups: paths below the cgroup2 mount.

use schemars::{Schema, json_schema};

use super::{Pattern, plain_glob};
use crate::diagnostic::quoted;
use crate::policy::{MAX_CGROUP_COMPONENT, MAX_CGROUP_COMPONENTS};
use crate::yaml::read::{Fault, Scalar};
use crate::yaml::tree::Style;

/// A pattern for cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CgroupPattern(pub(crate) Pattern);

impl Scalar for CgroupPattern {
    const EXPECTED: &'static str = "a pattern for cgroups";

    fn parse(text: &str, style: Style) -> Result<Self, Fault> {
        if style == Style::Escaped {
            let message = format!("{} is what YAML makes of this", quoted(text));
            return Err(Fault::new("escaped-pattern", message).help(
                "between double quotes, `\\x2d` is read as `-`: use single quotes, where a \
                 backslash is one",
            ));
        }
        if text.starts_with('/') || text.ends_with('/') {
            let message = format!("{} begins or ends with `/`", quoted(text));
            return Err(Fault::new("bad-path", message).help(
                "write the path below the cgroup2 mount, as in `machine.slice/libpod-*.scope`",
            ));
        }
        let pattern = plain_glob(text)?;
        if text.split('/').count() > MAX_CGROUP_COMPONENTS {
            let message = format!("{} is too deep", quoted(text));
            return Err(Fault::new("bad-path", message).help(format!(
                "a packet's cgroup is looked up {MAX_CGROUP_COMPONENTS} levels down at most"
            )));
        }
        for component in text.split('/') {
            judge_component(text, component)?;
        }
        Ok(Self(pattern))
    }

    fn schema() -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[^/\\[\\]{}]+(/[^/\\[\\]{}]+)*$",
            "not": { "pattern": "(^|/)[.]{1,2}(/|$)|[*][*]" },
        })
    }
}

fn judge_component(text: &str, component: &str) -> Result<(), Fault> {
    if matches!(component, "" | "." | "..") {
        let message = format!("{} can never match a cgroup", quoted(text));
        return Err(Fault::new("pattern-never-matches", message)
            .help("leave out empty components, `.` and `..`"));
    }
    if Pattern::new(component).shortest() > MAX_CGROUP_COMPONENT {
        let message = format!("{} can never match a cgroup: it is too long", quoted(text));
        return Err(Fault::new("pattern-never-matches", message).help(format!(
            "a component has {MAX_CGROUP_COMPONENT} bytes at most"
        )));
    }
    if component.contains("**") {
        let message = format!("{} holds `**`", quoted(text));
        return Err(Fault::new("pattern-syntax", message)
            .help("`*` stays within one component; what matches takes all that lies below it"));
    }
    Ok(())
}
