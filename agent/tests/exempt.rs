//! `gate25 exempt` as people start it, without an agent: what it asks, writes and refuses.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use jiff::{SignedDuration, Timestamp};
use nix::pty::openpty;
use tempfile::TempDir;

const CUSTOMERS: &str = "# who is who
schema: 1
profiles: [{name: default}]
customers:
  - id: acme      # since 2019
  - id: other
";
const ALL: [&str; 12] = [
    "--customer",
    "acme",
    "--reason",
    "newsletter: opt-in",
    "--ticket",
    "NOC-1",
    "--approved-by",
    "duty",
    "--for",
    "30d",
    "--to",
    "any",
];

#[test]
fn add_without_a_terminal_names_all_that_is_missing_and_writes_nothing() {
    let lab = Lab::new(&[("a.yaml", CUSTOMERS)]);
    let output = lab.exempt(&["add", "--customer", "acme"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = text(&output.stderr);
    let missing = [
        "ID",
        "--reason",
        "--ticket",
        "--approved-by",
        "--until or --for",
        "--to",
        "--file (no file has a section `exemptions`)",
    ];
    assert!(said.contains(&missing.join(", ")), "{said}");
    assert!(!said.contains("--customer"), "{said}");
    assert_eq!(lab.read("a.yaml"), CUSTOMERS);
}

#[test]
fn add_on_a_terminal_asks_for_what_is_missing_until_it_can_be_used() {
    let lab = Lab::new(&[
        ("a.yaml", CUSTOMERS),
        ("e.yaml", "schema: 1\nexemptions:\n"),
    ]);
    let mut asked = lab.on_a_terminal(&["add", "news", "--ticket", "NOC-1"]);
    for (question, answer) in [
        ("Id of the customer: ", "acne"),
        ("did you mean `acme`?\nId of the customer: ", "acme"),
        ("Reason: ", "newsletter: opt-in"),
        ("Approved by: ", "duty"),
        ("Ends (a time, or a term such as 30d): ", "tomorrow"),
        ("Ends (a time, or a term such as 30d): ", "30d"),
        (
            "To (any, or prefixes and names of allowlists): ",
            "192.0.2.0/24, 198.51.100.7",
        ),
    ] {
        asked.answer(question, answer);
    }
    let output = asked.output();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let written = lab.read("e.yaml");
    let entry = "schema: 1
exemptions:
  - id: news
    customer: acme
    reason: 'newsletter: opt-in'
    ticket: NOC-1
    approved_by: duty
";
    assert!(written.starts_with(entry), "{written}");
    assert!(
        written.ends_with("    to: [192.0.2.0/24, 198.51.100.7]\n"),
        "{written}"
    );
    let expires = expiry(&written);
    let term = expires.duration_since(Timestamp::now());
    let month = SignedDuration::from_hours(30 * 24);
    assert!(
        term <= month && term > month - SignedDuration::from_mins(2),
        "{term:?}"
    );
}

#[test]
fn set_that_somebody_else_changes_meanwhile_is_not_overwritten() {
    let exemptions = "schema: 1\nexemptions:\n";
    let lab = Lab::new(&[("a.yaml", CUSTOMERS), ("e.yaml", exemptions)]);
    let words = [&["add", "news"][..], &ALL[..8], &ALL[10..]].concat();
    let changed: [(&str, &str); 2] = [
        ("e.yaml", "schema: 1\nexemptions:\n  # theirs\n"),
        (
            "a.yaml",
            "# theirs\nschema: 1\nprofiles: [{name: default}]\ncustomers: [{id: acme}]\n",
        ),
    ];
    for (name, theirs) in changed {
        let mut asked = lab.on_a_terminal(&words);
        // It has read the files by now.
        asked.wait_for("Ends (a time, or a term such as 30d): ");
        lab.write(name, theirs);
        asked.say("30d");
        let output = asked.output();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = text(&output.stderr);
        assert!(
            said.contains("changed by somebody else meanwhile"),
            "{said}"
        );
        assert_eq!(lab.read(name), theirs);
        assert!(!lab.read("e.yaml").contains("news"));
        assert_eq!(lab.names(), ["a.yaml", "e.yaml"]);
    }
}

#[test]
fn dry_run_prints_a_unified_diff_and_writes_nothing() {
    let lab = Lab::new(&[("a.yaml", &format!("{CUSTOMERS}exemptions:\n"))]);
    let words = [&["add", "news", "--dry-run"][..], &ALL].concat();
    let output = lab.exempt(&words);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let expires = expiry(&text(&output.stdout));
    let expected = format!(
        "--- a/a.yaml
+++ b/a.yaml
@@ -5,3 +5,10 @@
   - id: acme      # since 2019
   - id: other
 exemptions:
+  - id: news
+    customer: acme
+    reason: 'newsletter: opt-in'
+    ticket: NOC-1
+    approved_by: duty
+    expires: {expires}
+    to: any
"
    );
    assert_eq!(text(&output.stdout), expected);
    assert_eq!(lab.read("a.yaml"), format!("{CUSTOMERS}exemptions:\n"));
}

#[test]
fn add_that_cannot_be_is_refused_with_the_reason() {
    let lab = Lab::new(&[("a.yaml", &format!("{CUSTOMERS}exemptions:\n"))]);
    assert_eq!(lab.add("news", &[]).status.code(), Some(0));
    let before = lab.read("a.yaml");
    for (id, more, code, reason) in [
        ("news", &[][..], 1, "is there already: "),
        ("more", &["--customer", "acne"], 1, "did you mean `acme`?"),
        (
            "more",
            &["--for", "91d"],
            1,
            "it ends more than 90 days from now",
        ),
        ("more", &["--until", "2020-01-01T00:00:00Z"], 1, "is over"),
        ("more", &["--for", "1y"], 2, "write a number and a unit"),
        (
            "more",
            &["--until", "2030-01-01"],
            2,
            "is a date without a time",
        ),
        ("more", &["--to", "relays"], 2, "`any` stands alone"),
        (
            "more",
            &["--reason", "a\nb"],
            2,
            "characters that are not shown",
        ),
        ("unassigned", &[], 2, "is reserved"),
        (
            "more",
            &["--file", "../b.yaml"],
            2,
            "is no name of a policy file",
        ),
        (
            "more",
            &["--file", ".b.yaml"],
            2,
            "is no name of a policy file",
        ),
        (
            "more",
            &["--file", "b.txt"],
            2,
            "is no name of a policy file",
        ),
        (
            "more",
            &["--file", "none/b.yaml"],
            1,
            "No such file or directory",
        ),
    ] {
        let output = lab.add(id, more);
        let said = text(&output.stderr) + &text(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{more:?}: {said}");
        assert!(said.contains(reason), "{more:?}: {said}");
        assert_eq!(lab.read("a.yaml"), before);
        assert_eq!(lab.names(), ["a.yaml"]);
    }
}

#[test]
fn file_that_is_not_clear_is_refused_with_the_choices_unless_it_is_named() {
    let lab = Lab::new(&[
        ("a.yaml", CUSTOMERS),
        ("b.yaml", "schema: 1\nexemptions:\n"),
        ("c.yaml", "schema: 1\nexemptions: []\n"),
    ]);
    let output = lab.add("news", &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains("--file (several files"), "{said}");
    assert!(said.contains("b.yaml, c.yaml"), "{said}");
    assert_eq!(
        lab.add("news", &["--file", "c.yaml"]).status.code(),
        Some(0)
    );
    assert!(lab.read("c.yaml").contains("news"));
    assert_eq!(
        lab.add("more", &["--file", "new.yaml"]).status.code(),
        Some(0)
    );
    assert!(
        lab.read("new.yaml")
            .starts_with("schema: 1\nexemptions:\n  - id: more\n")
    );
}

#[test]
fn link_within_the_directory_stays_one_and_what_it_leads_to_is_edited() {
    let lab = Lab::new(&[("a.yaml", CUSTOMERS)]);
    fs::create_dir(lab.policy().join(".real")).unwrap();
    fs::write(
        lab.policy().join(".real/e.yaml"),
        "schema: 1\nexemptions:\n",
    )
    .unwrap();
    symlink(".real/e.yaml", lab.policy().join("e.yaml")).unwrap();
    assert_eq!(lab.add("news", &[]).status.code(), Some(0));
    assert!(lab.read(".real/e.yaml").contains("news"));
    let link = fs::symlink_metadata(lab.policy().join("e.yaml")).unwrap();
    assert!(link.is_symlink());
    // One that leads outside makes no valid set.
    let outside = lab.dir.path().join("outside.yaml");
    fs::write(&outside, "schema: 1\n").unwrap();
    symlink(&outside, lab.policy().join("o.yaml")).unwrap();
    let output = lab.add("more", &["--file", "o.yaml"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stdout).contains("link-outside"), "{output:?}");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "schema: 1\n");
}

#[test]
fn revoke_ends_it_now_and_keeps_it_or_takes_it_out() {
    let lab = Lab::new(&[("a.yaml", &format!("{CUSTOMERS}exemptions:\n  # ours\n"))]);
    let before = lab.read("a.yaml");
    assert_eq!(lab.add("news", &[]).status.code(), Some(0));
    let granted = lab.read("a.yaml");
    let output = lab.exempt(&["revoke", "news"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let revoked = lab.read("a.yaml");
    let (was, is) = (expiry(&granted), expiry(&revoked));
    assert_eq!(revoked, granted.replace(&was.to_string(), &is.to_string()));
    assert!(is <= Timestamp::now(), "{is}");
    assert!(
        Timestamp::now().duration_since(is) < SignedDuration::from_mins(2),
        "{is}"
    );
    let again = lab.exempt(&["revoke", "news", "-j"]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert!(text(&again.stdout).contains("\"unchanged\""), "{again:?}");
    assert_eq!(lab.read("a.yaml"), revoked);
    assert_eq!(
        lab.exempt(&["revoke", "news", "--delete"]).status.code(),
        Some(0)
    );
    assert_eq!(lab.read("a.yaml"), before);
    let gone = lab.exempt(&["revoke", "news"]);
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
    assert!(
        text(&gone.stderr).contains("there is no exemption `news`"),
        "{gone:?}"
    );
    // One that has not begun would end before it starts.
    let later = Timestamp::now() + SignedDuration::from_hours(24);
    let later = Timestamp::from_second(later.as_second())
        .unwrap()
        .to_string();
    assert_eq!(
        lab.add("news", &["--starts", &later]).status.code(),
        Some(0)
    );
    let scheduled = lab.exempt(&["revoke", "news"]);
    assert_eq!(scheduled.status.code(), Some(1), "{scheduled:?}");
    assert!(
        text(&scheduled.stderr).contains("--delete"),
        "{scheduled:?}"
    );
    assert_eq!(
        lab.exempt(&["revoke", "news", "--delete"]).status.code(),
        Some(0)
    );
    assert_eq!(lab.read("a.yaml"), before);
}

#[test]
fn extend_moves_the_end_on_and_never_back() {
    let lab = Lab::new(&[("a.yaml", &format!("{CUSTOMERS}exemptions:\n"))]);
    assert_eq!(lab.add("news", &[]).status.code(), Some(0));
    let before = lab.read("a.yaml");
    let words = ["extend", "news", "--by", "7d", "--ticket", "NOC-2: more"];
    let output = lab.exempt(&words);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let (was, is) = (expiry(&before), expiry(&lab.read("a.yaml")));
    assert_eq!(is.duration_since(was), SignedDuration::from_hours(7 * 24));
    let expected = before
        .replace(&was.to_string(), &is.to_string())
        .replace("NOC-1", "'NOC-2: more'");
    assert_eq!(lab.read("a.yaml"), expected);
    for (end, reason) in [
        (["--until", "2020-01-01T00:00:00Z"], "already"),
        (["--by", "90d"], "it ends more than 90 days from now"),
    ] {
        let output = lab.exempt(&[&["extend", "news"][..], &end].concat());
        let said = text(&output.stderr) + &text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(reason), "{said}");
        assert_eq!(lab.read("a.yaml"), expected);
    }
    // One that was revoked holds again, from now on, if somebody says so.
    assert_eq!(lab.exempt(&["revoke", "news"]).status.code(), Some(0));
    let (revoked, end) = (lab.read("a.yaml"), expiry(&lab.read("a.yaml")));
    let extend = ["extend", "news", "--by", "1h"];
    let refused = lab.exempt(&extend);
    let said = text(&refused.stderr) + &text(&refused.stdout);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&end.to_string()) && said.contains("--again"),
        "{said}"
    );
    assert_eq!(lab.read("a.yaml"), revoked);
    let again = [&extend[..], &["--again"]].concat();
    assert_eq!(lab.exempt(&again).status.code(), Some(0));
    let term = expiry(&lab.read("a.yaml")).duration_since(Timestamp::now());
    assert!(term <= SignedDuration::from_hours(1), "{term:?}");
    assert!(term > SignedDuration::from_mins(58), "{term:?}");
}

#[test]
fn list_shows_what_ends_soon_first() {
    let lab = Lab::new(&[("a.yaml", &format!("{CUSTOMERS}exemptions:\n"))]);
    for (id, term) in [("late", "30d"), ("soon", "6d"), ("over", "1h")] {
        assert_eq!(lab.add(id, &["--for", term]).status.code(), Some(0));
    }
    assert_eq!(lab.exempt(&["revoke", "over"]).status.code(), Some(0));
    let ids = |words: &[&str]| {
        let output = lab.exempt(words);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let lines = text(&output.stdout);
        let ids = lines
            .lines()
            .map(|line| line.split('\t').next().unwrap().to_owned());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(ids(&["list"]), ["over", "soon", "late"]);
    assert_eq!(ids(&["list", "--expiring", "7d"]), ["soon"]);
    let output = lab.exempt(&["list", "--expiring", "7d", "-j"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["exemptions"][0]["id"], "soon");
    assert_eq!(json["exemptions"][0]["state"], "active");
    assert_eq!(json["exemptions"][0]["file"], "a.yaml");
}

#[test]
fn wait_without_an_agent_writes_and_exits_4() {
    let lab = Lab::new(&[("a.yaml", &format!("{CUSTOMERS}exemptions:\n"))]);
    let output = lab.add("news", &["--wait", "-j"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["outcome"], "written");
    assert!(
        json["agent_error"]
            .as_str()
            .unwrap()
            .contains("cannot reach the agent")
    );
    assert!(lab.read("a.yaml").contains("news"));
}

/// A policy directory, and settings that name it.
struct Lab {
    dir: TempDir,
}

/// A command that waits for answers.
struct Asked {
    child: Child,
    terminal: File,
    errors: BufReader<std::process::ChildStderr>,
    said: String,
}

impl Lab {
    fn new(files: &[(&str, &str)]) -> Self {
        let lab = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(lab.policy()).unwrap();
        for (name, text) in files {
            lab.write(name, text);
        }
        let settings = format!(
            "schema: 1\npolicy_dir: {}\ncontrol: {{socket: {}}}\n",
            lab.policy().display(),
            lab.dir.path().join("control.sock").display()
        );
        fs::write(lab.dir.path().join("gate25.yaml"), settings).unwrap();
        lab
    }

    fn policy(&self) -> PathBuf {
        self.dir.path().join("policy.d")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.policy().join(name)).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.policy().join(name), text).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.policy()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gate25"));
        let config = self.dir.path().join("gate25.yaml");
        command
            .arg("exempt")
            .args(words)
            .arg("--config")
            .arg(config);
        command
    }

    fn exempt(&self, words: &[&str]) -> Output {
        self.command(words).stdin(Stdio::null()).output().unwrap()
    }

    /// An addition that has all that it needs, with some of it said otherwise.
    fn add(&self, id: &str, more: &[&str]) -> Output {
        let mut words = vec!["add", id];
        for pair in ALL.chunks(2) {
            let replaced = more.contains(&pair[0]) && pair[0] != "--to"
                || pair[0] == "--for" && more.contains(&"--until");
            if !replaced {
                words.extend(pair);
            }
        }
        words.extend(more);
        self.exempt(&words)
    }

    fn on_a_terminal(&self, words: &[&str]) -> Asked {
        let terminal = openpty(None, None).unwrap();
        let mut command = self.command(words);
        command
            .stdin(terminal.slave)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        Asked {
            child,
            terminal: File::from(terminal.master),
            errors,
            said: String::new(),
        }
    }
}

impl Asked {
    /// Reads on until it has said this.
    #[track_caller]
    fn wait_for(&mut self, expected: &str) {
        let mut since = String::new();
        while !since.ends_with(expected) {
            let byte = self.errors.fill_buf().unwrap().first().copied();
            let byte = byte.unwrap_or_else(|| panic!("no {expected:?} in {:?}", self.said));
            self.errors.consume(1);
            since.push(char::from(byte));
            self.said.push(char::from(byte));
        }
    }

    fn say(&mut self, answer: &str) {
        self.terminal
            .write_all(format!("{answer}\n").as_bytes())
            .unwrap();
    }

    #[track_caller]
    fn answer(&mut self, question: &str, answer: &str) {
        self.wait_for(question);
        self.say(answer);
    }

    fn output(mut self) -> Output {
        let mut rest = String::new();
        self.errors.read_to_string(&mut rest).unwrap();
        let mut output = self.child.wait_with_output().unwrap();
        output.stderr = (self.said + &rest).into_bytes();
        output
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The first end that is written.
fn expiry(policy: &str) -> Timestamp {
    let (_, rest) = policy.split_once("expires: ").unwrap();
    rest.lines().next().unwrap().parse().unwrap()
}
