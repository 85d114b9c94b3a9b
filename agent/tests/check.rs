//! `gate25 check --diff` as a pull request's check starts it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const BASE: &str = "schema: 1
profiles: [{name: default}]
customers:
  - id: acme
    workloads: [{interface: \"tap1i*\"}]
  - id: other
";

#[test]
fn difference_to_a_revision_says_who_may_newly_send_where() {
    let lab = Lab::new();
    lab.commit("policy.d/a.yaml", BASE);
    lab.git(&["tag", "before"]);
    let expires = lab.grant("a.yaml");
    lab.git(&["commit", "-qam", "granted"]);
    for base in ["before", "HEAD~1", "main~1"] {
        let output = lab.check(&["policy.d", "--diff", base]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let said = text(&output.stdout);
        let expected = format!("acme may newly send to any address, until {expires}");
        assert!(said.lines().any(|line| line == expected), "{said}");
        assert!(said.contains("+ exemption news"), "{said}");
    }
    let output = lab.check(&["policy.d", "--diff", "HEAD"]);
    let said = text(&output.stdout);
    assert!(
        said.contains("nobody may send anywhere else than before"),
        "{said}"
    );
    // The same by the name of a directory, backwards.
    let copy = lab.dir.path().join("copy");
    fs::create_dir(&copy).unwrap();
    fs::write(copy.join("b.yaml"), BASE).unwrap();
    let output = lab.check(&["copy", "--diff", "policy.d"]);
    let said = text(&output.stdout);
    let expected = format!("acme may no longer send to any address, until {expires}");
    assert!(said.contains(&expected), "{said}");
    let output = lab.check(&["copy", "--diff", "policy.d", "-j"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["difference"]["access"][0]["customers"][0], "acme");
    assert_eq!(json["difference"]["access"][0]["closed"][0]["to"][0], "any");
}

#[test]
fn difference_in_markdown_and_as_annotations_holds_nothing_that_is_acted_upon() {
    let lab = Lab::new();
    lab.commit("policy.d/a.yaml", BASE);
    let expires = lab.grant("a.yaml");
    let evil = "x ``` @all <script>\\n::error::y";
    let granted = lab.read("a.yaml").replace("a test", evil);
    lab.write("policy.d/a.yaml", &format!("{granted}# end\n"));
    lab.write("policy.d/README", "not read\n");
    let output = lab.check(&["policy.d", "--diff", "HEAD", "--format", "markdown"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = text(&output.stdout);
    let expected = format!("- `acme` **may newly send to** any address, until {expires}\n");
    assert!(said.contains(&expected), "{said}");
    // The reason stands within a fence that it cannot end.
    let (_, fenced) = said.split_once("````diff\n").unwrap();
    let (fenced, _) = fenced.split_once("\n````\n").unwrap();
    assert!(fenced.contains("@all"), "{said}");
    assert_eq!(said.matches("@all").count(), 1, "{said}");
    let output = lab.check(&["policy.d", "--diff", "HEAD", "--format", "github"]);
    let said = text(&output.stdout);
    let line = lab
        .read("a.yaml")
        .lines()
        .position(|line| line.contains("id: news"))
        .unwrap()
        + 1;
    let expected = format!(
        "::notice file=policy.d/a.yaml,line={line},title=gate25::acme may newly send to any address, until {expires}\n"
    );
    assert!(said.contains(&expected), "{said}");
    let warned = "::warning file=policy.d/README,title=gate25 file-ignored::";
    assert!(said.contains(warned), "{said}");
    assert!(said.lines().all(|line| line.starts_with("::")), "{said}");
    lab.write("policy.d/a.yaml", "schema: 1\nprofils: []\n");
    let output = lab.check(&["policy.d", "--format", "github"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = text(&output.stdout);
    assert!(
        said.contains("::error file=policy.d/a.yaml,line=2,col=1,title=gate25 unknown-key::"),
        "{said}"
    );
}

#[test]
fn base_that_cannot_be_compared_with_is_an_error_with_its_reason() {
    let lab = Lab::new();
    lab.commit("policy.d/a.yaml", BASE);
    lab.git(&["tag", "good"]);
    lab.commit("policy.d/a.yaml", "schema: 1\nprofils: []\n");
    lab.git(&["tag", "broken"]);
    lab.commit("elsewhere", "x");
    lab.git(&["rm", "-q", "policy.d/a.yaml"]);
    lab.git(&["commit", "-qm", "none"]);
    lab.git(&["tag", "none"]);
    lab.write("policy.d/a.yaml", BASE);
    for (base, reason) in [
        ("nowhere", "there is no nowhere"),
        ("--upload-pack=x", "there is no --upload-pack=x"),
        ("broken", "unknown-key"),
        ("none", "there is no policy.d in none"),
        ("good:policy.d", "there is no good:policy.d"),
    ] {
        let base = format!("--diff={base}");
        let output = lab.check(&["policy.d", &base]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{base}: {said}");
        assert!(said.contains(reason), "{base}: {said}");
        assert!(text(&output.stdout).contains("valid"), "{output:?}");
    }
    // Not a repository.
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("a.yaml"), BASE).unwrap();
    let output = lab.check(&[outside.path().to_str().unwrap(), "--diff", "good"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        text(&output.stderr).contains("not a git repository"),
        "{output:?}"
    );
}

#[test]
fn revision_with_links_and_other_files_is_read_like_a_directory() {
    let lab = Lab::new();
    lab.write("policy.d/.real/a.yaml", BASE);
    symlink(".real/a.yaml", lab.path("policy.d/a.yaml")).unwrap();
    lab.write("policy.d/notes.txt", "x");
    lab.write(
        "policy.d/sub/umläut space.yml",
        "schema: 1\nallowlists: [{name: l, to: [192.0.2.1]}]\n",
    );
    lab.git(&["add", "-A"]);
    lab.git(&["commit", "-qm", "all"]);
    let output = lab.check(&["policy.d", "--diff", "HEAD"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = text(&output.stdout);
    assert!(said.contains("no difference"), "{said}");
    // One that leads out of the directory is refused there, too.
    fs::remove_file(lab.path("policy.d/a.yaml")).unwrap();
    symlink("/etc/passwd", lab.path("policy.d/a.yaml")).unwrap();
    lab.git(&["commit", "-qam", "outside"]);
    fs::remove_file(lab.path("policy.d/a.yaml")).unwrap();
    lab.write("policy.d/a.yaml", BASE);
    let output = lab.check(&["policy.d", "--diff", "HEAD"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("link-outside"), "{output:?}");
}

/// A git repository with a policy in it.
struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        let lab = Self {
            dir: TempDir::new().unwrap(),
        };
        lab.git(&["init", "-q", "-b", "main"]);
        lab
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path("policy.d").join(name)).unwrap()
    }

    fn commit(&self, name: &str, text: &str) {
        self.write(name, text);
        self.git(&["add", "-A"]);
        self.git(&["commit", "-qm", "x"]);
    }

    #[track_caller]
    fn git(&self, words: &[&str]) {
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.net"])
            .args(words)
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    }

    fn gate25(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gate25"));
        command
            .args(words)
            .current_dir(self.dir.path())
            .output()
            .unwrap()
    }

    fn check(&self, words: &[&str]) -> Output {
        self.gate25(&[&["check"][..], words].concat())
    }

    /// Grants acme an exemption, and tells its end.
    fn grant(&self, file: &str) -> String {
        let words = [
            "exempt",
            "add",
            "news",
            "--customer",
            "acme",
            "--reason",
            "a test",
            "--ticket",
            "T",
            "--approved-by",
            "noc",
            "--for",
            "30d",
            "--to",
            "any",
            "--dir",
            "policy.d",
            "--file",
            file,
            "-j",
        ];
        let output = self.gate25(&words);
        assert!(output.status.success(), "{output:?}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(Path::new(file).extension().is_some());
        json["expires"].as_str().unwrap().to_owned()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
