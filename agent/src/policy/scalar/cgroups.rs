//! Patterns for cgroups: paths below the cgroup2 mount.

use schemars::{Schema, json_schema};

use super::{Pattern, plain_glob};
use crate::diagnostic::quoted;
use crate::policy::{MAX_CGROUP_COMPONENT, MAX_CGROUP_COMPONENTS};
use crate::yaml::read::{Fault, Scalar};
use crate::yaml::tree::Style;

/// Hexadecimal digits that name a container for certain: what `podman ps` and `docker ps` print.
const SHORT_ID: usize = 12;

/// A pattern for cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CgroupPattern(pub(crate) Pattern);

impl Scalar for CgroupPattern {
    const EXPECTED: &'static str = "a pattern for cgroups";

    fn parse(text: &str, style: Style) -> Result<Self, Fault> {
        if style == Style::Escaped {
            let message = format!("{} is what YAML makes of this", quoted(text));
            return Err(Fault::new("escaped-pattern", message).help(
                "between double quotes YAML reads escapes, `\\x2d` as `-`: use single quotes, where a \
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

/// A pattern for the cgroups of one customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedCgroup(pub(crate) Pattern);

impl Scalar for OwnedCgroup {
    const EXPECTED: &'static str = CgroupPattern::EXPECTED;

    fn parse(text: &str, style: Style) -> Result<Self, Fault> {
        let CgroupPattern(pattern) = CgroupPattern::parse(text, style)?;
        if text
            .match_indices('*')
            .any(|(at, _)| ends_in_a_number(text.get(..at).unwrap_or_default()))
        {
            let message = format!("in {} the `*` continues a number", quoted(text));
            return Err(Fault::new("star-after-digit", message).help(format!(
                "`lxc/10*` takes lxc/101 too: end the number first; an id of {SHORT_ID} \
                 hexadecimal digits or more may be cut short"
            )));
        }
        Ok(Self(pattern))
    }

    fn schema() -> Schema {
        let mut schema = CgroupPattern::schema();
        // The reader's rule but for numbers after an escape, which look like parts of it.
        let pattern = "(^|/)[.]{1,2}(/|$)|[*][*]|\
                       (^|[^0-9A-Fa-fx]|(^|[^\\\\])x)[0-9A-Fa-f]{0,10}[0-9][*]";
        schema.insert("not".to_owned(), serde_json::json!({ "pattern": pattern }));
        schema
    }
}

/// Whether what stands before a `*` ends in a digit that neither belongs to one of systemd's
/// escapes (`\x20`) nor to an id long enough to be told from any other.
fn ends_in_a_number(text: &str) -> bool {
    if !text.ends_with(|c: char| c.is_ascii_digit()) {
        return false;
    }
    let escape = text
        .len()
        .checked_sub(4)
        .and_then(|at| text.get(at..))
        .and_then(|tail| tail.strip_prefix("\\x"));
    if escape.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return false;
    }
    let digits = text.bytes().rev();
    digits.take_while(u8::is_ascii_hexdigit).count() < SHORT_ID
}
