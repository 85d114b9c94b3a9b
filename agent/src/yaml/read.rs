//! Nodes to the types of a language.
//!
//! Reading never stops at an error: what could not be read is reported and left out, and what
//! surrounds it is still read, so that one run shows everything that is wrong with a file.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};

use super::tree::{Entry, Kind, Node, Style};
use crate::diagnostic::{Diagnostic, Location, Position, Problems, quoted};

/// A value that can be read from a node.
pub(crate) trait FromNode: Sized {
    /// The value, or `None` after reporting why there is none.
    fn from_node(node: &Node<'_>, reader: &mut Reader<'_>) -> Option<Self>;
}

/// A value written as one word or text.
pub(crate) trait Scalar: Sized {
    /// What a writer is told to put here, such as "a time".
    const EXPECTED: &'static str;

    /// Reads the text as written.
    fn parse(text: &str, style: Style) -> Result<Self, Fault>;

    /// What the JSON schema says about it.
    fn schema() -> Schema;
}

/// Why a scalar is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Fault {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            help: None,
        }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// A scalar and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) at: Position,
}

/// A list or a map, and where it starts.
#[derive(Debug, Clone)]
pub(crate) struct Placed<T> {
    pub(crate) value: T,
    pub(crate) at: Position,
}

/// A list in a section: nothing written below the key means an empty one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section<T>(pub(crate) Vec<T>);

/// A map in a section: nothing written below the key means that no key is.
#[derive(Debug, Clone)]
pub(crate) struct Maybe<T>(pub(crate) Option<T>);

/// What reading needs to know, and where it reports.
pub(crate) struct Reader<'a> {
    file: &'a Arc<Path>,
    problems: &'a mut Problems,
}

/// One key of a map in the language.
pub(crate) struct Key {
    /// As written.
    pub(crate) name: &'static str,
    /// Whether it must be there, and whether this version reads it at all.
    pub(crate) need: Need,
    /// What it means.
    pub(crate) doc: &'static str,
}

/// Whether a key must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Required,
    Optional,
    /// Part of the language, but not of this version.
    Later,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(file: &'a Arc<Path>, problems: &'a mut Problems) -> Self {
        Self { file, problems }
    }

    /// The file, and where to report what is wrong with it.
    pub(crate) fn parts(&mut self) -> (&Arc<Path>, &mut Problems) {
        (self.file, self.problems)
    }

    pub(crate) fn fault(&mut self, at: Position, fault: Fault) {
        let Fault {
            code,
            message,
            help,
        } = fault;
        let mut diagnostic = Diagnostic::error(code, Location::at(self.file, at), message);
        diagnostic.help = help;
        self.problems.push(diagnostic);
    }

    /// The entries of a map, unknown and missing keys reported.
    pub(crate) fn entries<'n, 's>(
        &mut self,
        node: &'n Node<'s>,
        keys: &[Key],
        is_file: bool,
    ) -> Option<&'n [Entry<'s>]> {
        let entries = match &node.kind {
            Kind::Map(entries) => entries,
            Kind::Scalar(..) | Kind::List(_) => {
                self.wrong_kind(node, "a map of keys and values");
                return None;
            }
            Kind::Refused => return None,
        };
        let mut has_later = false;
        for entry in entries {
            match keys
                .iter()
                .find(|key| key.name == entry.key)
                .map(|key| key.need)
            {
                Some(Need::Required | Need::Optional) => {}
                Some(Need::Later) => {
                    has_later = true;
                    self.not_yet(entry.key_at, &entry.key);
                }
                None => self.unknown_key(entry, keys),
            }
        }
        for key in keys
            .iter()
            .filter(|key| key.need == Need::Required && !has_later)
        {
            if !entries.iter().any(|entry| entry.key == key.name) {
                let at = if is_file {
                    Position {
                        line: 1,
                        column: 1,
                        width: 1,
                    }
                } else {
                    node.at
                };
                let message = format!("the key `{}` is missing", key.name);
                self.fault(at, Fault::new("missing-key", message).help(key.doc));
            }
        }
        Some(entries)
    }

    pub(crate) fn wrong_kind(&mut self, node: &Node<'_>, expected: &str) {
        let found = match &node.kind {
            Kind::Scalar(..) if node.is_null() => "nothing is written",
            Kind::Scalar(..) => "a single value stands",
            Kind::List(_) => "a list stands",
            Kind::Map(entries) => {
                if let Some(address) = split_address(entries) {
                    let message =
                        format!("{} is read as a map, not as an address", quoted(&address));
                    let help = format!("put it in quotes: \"{}\"", address);
                    self.fault(node.at, Fault::new("unquoted-ipv6", message).help(help));
                    return;
                }
                "a map stands"
            }
            Kind::Refused => return,
        };
        let code = if node.is_null() {
            "missing-value"
        } else {
            "wrong-type"
        };
        self.fault(
            node.at,
            Fault::new(code, format!("{found} where {expected} belongs")),
        );
    }

    fn not_yet(&mut self, at: Position, key: &str) {
        let message = format!("this version of gate25 does not have `{key}`");
        self.fault(at, Fault::new("not-yet", message).help("leave it out"));
    }

    fn unknown_key(&mut self, entry: &Entry<'_>, keys: &[Key]) {
        let readable = || {
            keys.iter()
                .filter(|key| key.need != Need::Later)
                .map(|key| key.name)
        };
        let help = match nearest(&entry.key, readable()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known here: {}", readable().collect::<Vec<_>>().join(", ")),
        };
        let message = format!("the key {} is not known here", quoted(&entry.key));
        self.fault(entry.key_at, Fault::new("unknown-key", message).help(help));
    }
}

/// The address that an unquoted `2001:db8::` was: YAML takes the last colon for a key's.
fn split_address(entries: &[Entry<'_>]) -> Option<String> {
    let [entry] = entries else { return None };
    let is_address = entry.key.contains(':')
        && entry
            .key
            .chars()
            .all(|c| c.is_ascii_hexdigit() || c == ':' || c == '.');
    (is_address && entry.value.is_null()).then(|| format!("{}:", entry.key))
}

/// The known name that somebody may have meant.
pub(crate) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    close(name, known).into_iter().next()
}

/// The known names that somebody may have meant, the closest first.
pub(crate) fn close<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Vec<&'k str> {
    let length = name.chars().count();
    if length > 64 {
        return Vec::new();
    }
    let limit = (length / 3).max(1);
    let mut close: Vec<_> = known
        .filter(|candidate| candidate.len().abs_diff(name.len()) <= limit)
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    close.sort_by_key(|(distance, _)| *distance);
    close.into_iter().map(|(_, candidate)| candidate).collect()
}

impl<T: Scalar> FromNode for At<T> {
    fn from_node(node: &Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Kind::Scalar(text, style) = &node.kind else {
            reader.wrong_kind(node, T::EXPECTED);
            return None;
        };
        if node.is_null() {
            reader.wrong_kind(node, T::EXPECTED);
            return None;
        }
        match T::parse(text, *style) {
            Ok(value) => Some(Self { value, at: node.at }),
            Err(fault) => {
                reader.fault(node.at, fault);
                None
            }
        }
    }
}

impl<T: FromNode> FromNode for Vec<T> {
    fn from_node(node: &Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Kind::List(items) = &node.kind else {
            reader.wrong_kind(node, "a list");
            return None;
        };
        // What is read stays in memory: no room to grow.
        let mut list = Vec::with_capacity(items.len());
        list.extend(items.iter().filter_map(|item| T::from_node(item, reader)));
        Some(list)
    }
}

impl<T: FromNode> FromNode for Placed<T> {
    fn from_node(node: &Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        T::from_node(node, reader).map(|value| Self { value, at: node.at })
    }
}

impl<T: FromNode> FromNode for Maybe<T> {
    fn from_node(node: &Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if node.is_null() {
            return Some(Self(None));
        }
        T::from_node(node, reader).map(|value| Self(Some(value)))
    }
}

impl<T: FromNode> FromNode for Section<T> {
    fn from_node(node: &Node<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if node.is_null() {
            return Some(Self(Vec::new()));
        }
        Vec::from_node(node, reader).map(Self)
    }
}

impl<T: Scalar> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        T::schema()
    }
}

impl<T: JsonSchema> JsonSchema for Placed<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T: JsonSchema> JsonSchema for Section<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Section".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["array", "null"], "items": generator.subschema_for::<T>() })
    }
}

impl<T: JsonSchema> JsonSchema for Maybe<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Maybe".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [T::json_schema(generator), { "type": "null" }] })
    }
}

/// The JSON schema of a map with these keys and, in the same order, these values.
pub(crate) fn map_schema(doc: &str, keys: &[Key], values: Vec<Schema>) -> Schema {
    let mut properties = Map::new();
    let mut required = Vec::new();
    let readable = keys.iter().filter(|key| key.need != Need::Later);
    for (key, mut value) in readable.zip(values) {
        value.insert("description".to_owned(), Value::from(key.doc));
        properties.insert(key.name.to_owned(), value.to_value());
        if key.need == Need::Required {
            required.push(key.name);
        }
    }
    json_schema!({
        "type": "object",
        "description": doc,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

/// Declares a map of the language: its keys are listed here and nowhere else.
///
/// Every field is an `Option`: `None` means that the key is absent, or that its value was refused
/// and reported. A field's documentation is shown to whoever leaves out a required key, and by
/// editors through the JSON schema.
macro_rules! keys {
    (
        $(#[doc = $doc:literal])+
        $vis:vis struct $name:ident {
            $( $(#[doc = $field_doc:literal])+ $need:ident $field:ident: $type:ty, )*
            $( later $($later:ident)+; )?
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone)]
        $vis struct $name {
            $( $(#[doc = $field_doc])+ $vis $field: Option<$type>, )*
        }

        impl $name {
            /// The keys of the map.
            $vis const KEYS: &'static [$crate::yaml::read::Key] = &[
                $( $crate::yaml::read::Key {
                    name: $crate::yaml::read::plain_name(stringify!($field)),
                    need: $crate::yaml::read::keys!(@need $need),
                    doc: concat!($($field_doc),+).trim_ascii_start(),
                }, )*
                $( $( $crate::yaml::read::Key {
                    name: stringify!($later),
                    need: $crate::yaml::read::Need::Later,
                    doc: "",
                }, )+ )?
            ];

            fn from_entries(
                node: &$crate::yaml::tree::Node<'_>,
                reader: &mut $crate::yaml::read::Reader<'_>,
                is_file: bool,
            ) -> Option<Self> {
                let entries = reader.entries(node, Self::KEYS, is_file)?;
                let mut map = Self { $( $field: None, )* };
                for entry in entries {
                    $(
                        if entry.key == $crate::yaml::read::plain_name(stringify!($field)) {
                            map.$field = $crate::yaml::read::FromNode::from_node(&entry.value, reader);
                            continue;
                        }
                    )*
                }
                Some(map)
            }
        }

        impl $crate::yaml::read::FromNode for $name {
            fn from_node(
                node: &$crate::yaml::tree::Node<'_>,
                reader: &mut $crate::yaml::read::Reader<'_>,
            ) -> Option<Self> {
                Self::from_entries(node, reader, false)
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let values = vec![ $( <$type as schemars::JsonSchema>::json_schema(generator) ),* ];
                let doc = concat!($($doc),+).trim_ascii_start();
                $crate::yaml::read::map_schema(doc, Self::KEYS, values)
            }
        }
    };
    (@need required) => { $crate::yaml::read::Need::Required };
    (@need optional) => { $crate::yaml::read::Need::Optional };
}
pub(crate) use keys;

/// A field's name without the `r#` that lets it be a word of Rust's.
pub(crate) const fn plain_name(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}
