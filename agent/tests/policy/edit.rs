//! Edits of exemptions: what they are not about stays, byte for byte.

use std::path::Path;
use std::sync::Arc;

use gate25::policy::changes::compare;
use gate25::policy::edit::{Edit, EditError, Edited, NewExemption, Value, edit};
use gate25::policy::loader::{Circumstances, Loader, Purpose, SourceFile};
use gate25::policy::{Destinations, Policy};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::{NOW, circumstances, file};

const FILE: &str = "policy.yaml";
const HEAD: &str = "schema: 1
# Whom we know.
profiles: [{name: default}]   # one is enough
customers: [{id: acme}, {id: other}]
";

#[test]
fn exemption_is_added_behind_the_others_in_their_notation() {
    let before = format!(
        "{HEAD}exemptions:
# granted by hand
- id: news   # weekly
  customer: acme
  reason: \"opt-in: checked\"
  ticket: T-1
  approved_by: noc
  expires: 2026-12-01T00:00:00Z
  to: any
  # prolonged twice

# end of the exemptions
rules: {{max_exemption_days: 30}}
"
    );
    let after = edited(&before, &Edit::Add(new("mail"))).unwrap();
    let entry = "- id: mail
  customer: other
  reason: 'it says: \"yes\"'
  ticket: NOC-7
  approved_by: duty
  expires: 2026-12-10T00:00:00Z
  to: [192.0.2.0/24, '2001:db8::/32']
";
    let expected = before.replace(
        "  # prolonged twice\n",
        &format!("  # prolonged twice\n{entry}"),
    );
    assert_eq!(after, expected);
}

#[test]
fn exemption_is_added_where_there_were_none() {
    let entry = "  - id: mail\n    customer: other\n";
    for (section, beginning) in [
        ("", "exemptions:\n"),
        ("exemptions:\n", "exemptions:\n"),
        ("exemptions: []\n", "exemptions:\n"),
        ("exemptions: [ ]  # none yet\n", "exemptions:  # none yet\n"),
        ("exemptions: ~\n", "exemptions:\n"),
        (
            "exemptions:   # none yet\n# rules\n",
            "exemptions:   # none yet\n",
        ),
    ] {
        let before = format!("{HEAD}{section}");
        let after = edited(&before, &Edit::Add(new("mail"))).unwrap();
        let expected = format!("{HEAD}{beginning}{entry}");
        assert!(after.starts_with(&expected), "{section:?}: {after}");
        assert!(
            after.contains("# rules") == section.contains("# rules"),
            "{after}"
        );
    }
}

#[test]
fn exemption_is_added_to_a_list_in_brackets() {
    let first = "{id: news, customer: acme, reason: r, ticket: T, approved_by: noc, \
                 expires: 2026-12-01T00:00:00Z, to: any}";
    for (end, expected) in [
        ("]", ", {id: mail,"),
        (",\n]", ", {id: mail,"),
        (" ]", ", {id: mail,"),
    ] {
        let before = format!("{HEAD}exemptions: [{first}{end}\n");
        let after = edited(&before, &Edit::Add(new("mail"))).unwrap();
        assert!(after.contains(&format!("{first}{expected}")), "{after}");
    }
}

#[test]
fn exemption_is_added_to_a_file_that_ends_without_a_line_break_or_with_those_of_windows() {
    let before = "schema: 1\r\nprofiles: [{name: default}]\r\ncustomers: [{id: other}]";
    let after = edited(before, &Edit::Add(new("mail"))).unwrap();
    assert!(
        after.starts_with(&format!("{before}\r\nexemptions:\r\n  - id: mail\r\n")),
        "{after}"
    );
    assert!(after.ends_with("'2001:db8::/32']"), "{after}");
    assert_eq!(after.matches('\n').count(), after.matches("\r\n").count());
    let marked = format!("\u{feff}{HEAD}exemptions:\n");
    let after = edited(&marked, &Edit::Add(new("mail"))).unwrap();
    assert!(after.starts_with(&marked), "{after}");
}

#[test]
fn exemption_is_added_to_a_file_that_is_not_there() {
    let set = [file("base.yaml", HEAD)];
    let path: Arc<Path> = Arc::from(Path::new("new/exemptions.yaml"));
    let edited = edit(&set, &path, &Edit::Add(new("mail")), &checking()).unwrap();
    assert_eq!(edited.before, None);
    let text = String::from_utf8(edited.after).unwrap();
    assert!(
        text.starts_with("schema: 1\nexemptions:\n  - id: mail\n"),
        "{text}"
    );
}

#[test]
fn end_is_replaced_whatever_notation_it_has() {
    for (written, becomes) in [
        ("2026-12-01T00:00:00Z # soon", "2026-12-24T00:00:00Z # soon"),
        ("'2026-12-01T00:00:00Z'", "2026-12-24T00:00:00Z"),
        (
            "\"2026-12-01 00:00:00+00:00\"   # soon",
            "2026-12-24T00:00:00Z   # soon",
        ),
        ("2026-12-01T00:00:00Z   ", "2026-12-24T00:00:00Z   "),
    ] {
        let text = |end: &str| {
            format!(
                "{HEAD}exemptions:\n  # für die Zeitung\n  - {{id: x, customer: other, reason: r, ticket: t, approved_by: n, to: any, expires: 2026-12-05T00:00:00Z}}\n  - expires: {end}\n    id: news\n    customer: acme\n    reason: größer\n    ticket: T\n    approved_by: noc\n    to: any\n"
            )
        };
        let expires = "2026-12-24T00:00:00Z".parse().unwrap();
        let values = vec![Value::Expires(expires)];
        let set = Edit::Set {
            id: "news".to_owned(),
            values,
        };
        assert_eq!(edited(&text(written), &set).unwrap(), text(becomes));
    }
}

#[test]
fn exemption_that_is_removed_leaves_what_is_around_it() {
    let entry = |id: &str| {
        format!(
            "  - id: {id}\n    customer: acme\n    reason: |\n      # no remark\n      text\n    ticket: T\n    approved_by: noc\n    expires: 2026-12-01T00:00:00Z\n    to:\n      - 192.0.2.0/24  # ours\n"
        )
    };
    let text = |second: &str| {
        format!(
            "{HEAD}exemptions:\n  # the first\n{}  # the second\n{second}\n  # the third\n{}# end\n",
            entry("a"),
            entry("c")
        )
    };
    let remove = |id: &str| Edit::Remove { id: id.to_owned() };
    let before = text(&entry("b"));
    assert_eq!(edited(&before, &remove("b")).unwrap(), text(""));
    let only = format!("{HEAD}exemptions:\n{}# end\n", entry("a"));
    assert_eq!(
        edited(&only, &remove("a")).unwrap(),
        format!("{HEAD}exemptions:\n# end\n")
    );
    for (list, id, left) in [
        ("[A, B, C]", "a", "[B, C]"),
        ("[A, B, C]", "b", "[A, C]"),
        ("[A, B, C]", "c", "[A, B]"),
        ("[ A ]", "a", "[ ]"),
    ] {
        let text = |list: &str| {
            let mut text = format!("{HEAD}exemptions: {list}\n");
            for id in ["A", "B", "C"] {
                let map = format!(
                    "{{id: {}, customer: acme, reason: r, ticket: T, approved_by: n, expires: 2026-12-01T00:00:00Z, to: any}}",
                    id.to_lowercase()
                );
                let (head, rest) = text.split_at(HEAD.len());
                text = format!("{head}{}", rest.replace(id, &map));
            }
            text
        };
        let after = edited(&text(list), &remove(id)).unwrap();
        assert_eq!(
            after.replace(' ', ""),
            text(left).replace(' ', ""),
            "{list} {id}"
        );
    }
}

#[test]
fn edit_that_would_not_be_valid_is_refused_with_the_reason() {
    let before = format!("{HEAD}exemptions:\n");
    let codes = |edit: &Edit| match edited(&before, edit) {
        Err(EditError::Refused(diagnostics)) => {
            diagnostics.iter().map(|it| it.code).collect::<Vec<_>>()
        }
        outcome => panic!("{outcome:?}"),
    };
    let long = NewExemption {
        expires: "2027-12-01T00:00:00Z".parse().unwrap(),
        ..new("mail")
    };
    assert_eq!(codes(&Edit::Add(long)), ["term-too-long"]);
    let stranger = NewExemption {
        customer: "nobody".to_owned(),
        ..new("mail")
    };
    assert_eq!(codes(&Edit::Add(stranger)), ["unknown-name"]);
    let twice = edited(&before, &Edit::Add(new("mail"))).unwrap();
    let again = edited(&twice, &Edit::Add(new("mail")));
    assert!(matches!(again, Err(EditError::Refused(_))), "{again:?}");
    let broken = edited("schema: 1\nprofils: []\n", &Edit::Add(new("mail")));
    assert!(matches!(broken, Err(EditError::Invalid(_))), "{broken:?}");
}

#[test]
fn notation_that_is_not_edited_is_refused_with_its_line() {
    let entry = "customer: acme, reason: r, ticket: T, approved_by: n, to: any";
    for (section, line) in [
        // The dash is not on the item's line.
        (
            format!("exemptions:\n  -\n    {{id: news, {entry}, expires: 2026-12-01T00:00:00Z}}\n"),
            7,
        ),
        // Two entries' lines cannot be told apart.
        (
            format!("exemptions: [{{id: news, {entry}, expires: 2026-12-01T00:00:00Z}} # x\n  ]\n"),
            5,
        ),
    ] {
        let before = format!("{HEAD}{section}");
        match edited(&before, &Edit::Add(new("mail"))) {
            Err(EditError::Unusual { line: at, .. }) => assert_eq!(at, line, "{section}"),
            outcome => panic!("{section}: {outcome:?}"),
        }
    }
}

/// An exemption of a file: whatever notation people use.
#[derive(Debug, Clone)]
struct Entry {
    id: String,
    reason: String,
    braces: bool,
    remark: Option<String>,
    below: Option<String>,
    blank: bool,
    list: bool,
    days: i64,
}

fn entry() -> impl Strategy<Value = Entry> {
    (
        "[a-z]{1,6}",
        "[a-zäß ,.]{0,10}[a-z]",
        any::<bool>(),
        prop::option::of("[a-z: #'\"äß]{0,12}"),
        prop::option::of("[a-z: #'\"-]{0,12}"),
        any::<bool>(),
        any::<bool>(),
        1..60_i64,
    )
        .prop_map(
            |(id, reason, braces, remark, below, blank, list, days)| Entry {
                id,
                reason,
                braces,
                remark,
                below,
                blank,
                list,
                days,
            },
        )
}

impl Entry {
    /// Its lines, and those that belong to it as far as anybody can tell.
    fn text(&self, number: usize, indent: usize) -> String {
        let Self {
            id,
            reason,
            braces,
            remark,
            below,
            blank,
            list,
            days,
        } = self;
        let expires = now() + SignedDuration::from_hours(24 * days);
        let lead = " ".repeat(indent);
        let remark = remark
            .as_ref()
            .map_or(String::new(), |text| format!(" # {text}"));
        let to = match (list, braces) {
            (true, true) => "[192.0.2.0/24]",
            (true, false) => "\n    # where to\n    - 192.0.2.0/24",
            (false, _) => "any",
        };
        let to = to.replace("\n    ", &format!("\n{lead}    "));
        let mut text = if *braces {
            format!(
                "{lead}- {{id: {id}{number}, customer: acme, reason: '{reason}', ticket: T, approved_by: noc, expires: {expires}, to: {to}}}{remark}\n"
            )
        } else {
            format!(
                "{lead}- id: {id}{number}{remark}\n{lead}  customer: acme\n{lead}  reason: '{reason}'\n{lead}  ticket: T{remark}\n{lead}  approved_by: noc\n{lead}  expires: {expires}{remark}\n{lead}  to: {to}\n"
            )
        };
        if let Some(below) = below {
            text.push_str(&format!("{lead}  # {below}\n"));
        }
        if *blank {
            text.push('\n');
        }
        text
    }

    fn id(&self, number: usize) -> String {
        format!("{}{number}", self.id)
    }
}

proptest! {
    #[test]
    fn edit_of_any_file_changes_its_entry_and_nothing_else(
        entries in prop::collection::vec(entry(), 1..6),
        indent in 0..5_usize,
        after in prop::bool::ANY,
        pick in any::<prop::sample::Index>(),
        what in 0..3_u8,
    ) {
        let tail = if after { "# the rest\nallowlists: []\n" } else { "" };
        let texts: Vec<String> =
            entries.iter().enumerate().map(|(number, it)| it.text(number, indent)).collect();
        let whole = |texts: &[String]| format!("{HEAD}exemptions:\n{}{tail}", texts.concat());
        let before = whole(&texts);
        let at = pick.index(entries.len());
        let id = entries[at].id(at);
        let expires: Timestamp = "2027-01-24T00:00:00Z".parse().unwrap();
        let old = now() + SignedDuration::from_hours(24 * entries[at].days);
        let edit = match what {
            0 => Edit::Add(new("added")),
            1 => Edit::Set { id: id.clone(), values: vec![Value::Expires(expires)] },
            _ => Edit::Remove { id: id.clone() },
        };
        let mut expected = policy(&before);
        match &edit {
            Edit::Add(_) => {}
            Edit::Set { .. } => {
                expected.exemptions.get_mut(&id).unwrap().expires = expires;
            }
            Edit::Remove { .. } => {
                expected.exemptions.remove(&id).unwrap();
            }
        }
        let after = edited(&before, &edit);
        let after = after.map_err(|error| TestCaseError::fail(format!("{error:?}\n{before}")))?;
        let says = policy(&after);
        match &edit {
            // The new lines stand in one place; without them the file is as it was.
            Edit::Add(_) => {
                let mut says = says;
                let added = says.exemptions.remove("added").unwrap();
                prop_assert_eq!(&added.customer, "other");
                prop_assert_eq!(&added.reason, "it says: \"yes\"");
                let to = Destinations::Listed {
                    prefixes: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
                    allowlists: Vec::new(),
                };
                prop_assert_eq!(&added.to, &to);
                prop_assert_eq!(compare(&expected, &says), []);
                let lead = before.bytes().zip(after.bytes()).take_while(|(a, b)| a == b).count();
                let added = after.len() - before.len();
                let is_inserted = (0..=lead).any(|at| {
                    after.as_bytes().get(..at) == before.as_bytes().get(..at)
                        && after.as_bytes().get(at + added..) == before.as_bytes().get(at..)
                });
                prop_assert!(is_inserted, "{}", after);
            }
            Edit::Set { .. } => {
                prop_assert_eq!(compare(&expected, &says), []);
                let mut texts = texts.clone();
                texts[at] = texts[at].replace(&old.to_string(), &expires.to_string());
                prop_assert_eq!(after, whole(&texts));
            }
            Edit::Remove { .. } => {
                prop_assert_eq!(compare(&expected, &says), []);
                let mut texts = texts.clone();
                texts[at] = if entries[at].blank { "\n".to_owned() } else { String::new() };
                prop_assert_eq!(after, whole(&texts));
            }
        }
    }
}

fn new(id: &str) -> NewExemption {
    NewExemption {
        id: id.to_owned(),
        customer: "other".to_owned(),
        reason: "it says: \"yes\"".to_owned(),
        ticket: "NOC-7".to_owned(),
        approved_by: "duty".to_owned(),
        starts: None,
        expires: "2026-12-10T00:00:00Z".parse().unwrap(),
        to: vec!["192.0.2.0/24".to_owned(), "2001:db8::/32".to_owned()],
    }
}

fn edited(text: &str, wanted: &Edit) -> Result<String, EditError> {
    let set = [file(FILE, text)];
    let path: Arc<Path> = Arc::from(Path::new(FILE));
    let Edited { before, after, .. } = edit(&set, &path, wanted, &checking())?;
    assert_eq!(before.as_deref(), Some(text.as_bytes()));
    Ok(String::from_utf8(after).unwrap())
}

fn policy(text: &str) -> Policy {
    let set: [SourceFile; 1] = [file(FILE, text)];
    let loaded = Loader::default().load(&set, &checking());
    loaded
        .unwrap_or_else(|error| panic!("{error:?}\n{text}"))
        .policy
}

fn checking() -> Circumstances {
    circumstances(Purpose::Check)
}

fn now() -> Timestamp {
    NOW.parse().unwrap()
}
