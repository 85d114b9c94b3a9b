//! What is in the packages.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "package/built.rs"]
mod built;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use built::package;
use serde_json::Value;

#[test]
fn lintian_finds_no_error_and_no_warning() {
    let deb = package(1, "deb");
    let args = [
        "--allow-root",
        "--fail-on=error,warning",
        "--tag-display-limit=0",
    ];
    let mut lintian = Command::new("lintian");
    let output = lintian.args(args).arg(deb).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
}

#[test]
fn files_to_be_edited_are_the_settings_and_the_web_configuration_alone() {
    let (deb, rpm) = (package(1, "deb"), package(1, "rpm"));
    let conffiles = said("dpkg-deb", &["--info", path(&deb), "conffiles"]);
    let conffiles: BTreeSet<&str> = conffiles.lines().collect();
    let expected = BTreeSet::from(["/etc/gate25/gate25.yaml", "/etc/gate25/web.yaml"]);
    assert_eq!(conffiles, expected);
    let listed = said(
        "rpm",
        &["--query", "--package", "--configfiles", path(&rpm)],
    );
    assert_eq!(listed.lines().collect::<BTreeSet<_>>(), expected);
    // %config(noreplace): 1 | 16.
    let format = "[%{FILEFLAGS} %{FILENAMES}\n]";
    let flags = said(
        "rpm",
        &["--query", "--package", "--queryformat", format, path(&rpm)],
    );
    for file in expected {
        assert!(
            flags.lines().any(|line| line == format!("17 {file}")),
            "{flags}"
        );
    }
    // The folder of the policy belongs to the operator.
    for file in files(&deb).keys() {
        assert!(!file.starts_with("/etc/gate25/policy.d"), "{file}");
    }
}

#[test]
fn shipped_settings_observe() {
    let deb = package(1, "deb");
    let text = said_by_shell(&format!(
        "dpkg-deb --fsys-tarfile {} | tar --extract --to-stdout ./etc/gate25/gate25.yaml",
        path(&deb)
    ));
    let mut lines = text.lines().filter(|line| line.starts_with("enforcement:"));
    assert_eq!(lines.next(), Some("enforcement: observe"));
    assert_eq!(lines.next(), None);
}

#[test]
fn both_packages_hold_the_same_files_of_root_and_nothing_writable() {
    let (deb, rpm) = (package(1, "deb"), package(1, "rpm"));
    // Where each family of distributions has them.
    let usual = |file: &str| {
        let file = file.replace("/usr/lib/systemd/", "/lib/systemd/");
        let file = file.replace("/zsh/site-functions/", "/zsh/vendor-completions/");
        let kept = !file.starts_with("/usr/share/doc/gate25/")
            && !file.starts_with("/usr/share/licenses/")
            && !file.starts_with("/usr/share/lintian/");
        kept.then_some(file)
    };
    let in_deb = files(&deb);
    for (file, mode) in &in_deb {
        let expected = if file == "/usr/bin/gate25" {
            "-rwxr-xr-x"
        } else {
            "-rw-r--r--"
        };
        assert_eq!(mode, expected, "{file}");
    }
    let listed = said(
        "rpm",
        &["--query", "--package", "--list", "--verbose", path(&rpm)],
    );
    let mut in_rpm = BTreeSet::new();
    for line in listed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [mode, _, user, group, ..] = words[..] else {
            panic!("{line}");
        };
        assert_eq!((user, group), ("root", "root"), "{line}");
        assert!(mode == "-rw-r--r--" || mode == "-rwxr-xr-x", "{line}");
        in_rpm.insert((*words.last().unwrap()).to_owned());
    }
    let of_deb: BTreeSet<String> = in_deb.keys().filter_map(|it| usual(it)).collect();
    let of_rpm: BTreeSet<String> = in_rpm.iter().filter_map(|it| usual(it)).collect();
    assert_eq!(of_deb, of_rpm);
    for file in [
        "/usr/bin/gate25",
        "/lib/systemd/system/gate25.service",
        "/lib/systemd/system/gate25-guard.service",
        "/usr/lib/sysusers.d/gate25.conf",
        "/usr/share/gate25/schema/policy.v1.json",
        "/usr/share/man/man5/gate25.yaml.5.gz",
        "/usr/share/man/man5/gate25-policy.5.gz",
        "/usr/share/bash-completion/completions/gate25",
        "/usr/share/zsh/vendor-completions/_gate25",
        "/usr/share/fish/vendor_completions.d/gate25.fish",
    ] {
        assert!(of_deb.contains(file), "{file}");
    }
}

#[test]
fn every_command_has_its_page() {
    let help = said(path(&gate25_tests::binary().unwrap()), &["--help"]);
    let commands = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help");
    let files = files(&package(1, "deb"));
    let mut count = 0;
    for command in commands {
        let page = format!("/usr/share/man/man8/gate25-{command}.8.gz");
        assert!(files.contains_key(&page), "{page}");
        count += 1;
    }
    assert!(count > 10, "{help}");
    assert!(files.contains_key("/usr/share/man/man8/gate25.8.gz"));
}

#[test]
fn packages_of_the_same_sources_need_the_same() {
    let (deb, rpm) = (package(1, "deb"), package(1, "rpm"));
    let depends = said("dpkg-deb", &["--field", path(&deb), "Depends"]);
    let requires = said("rpm", &["--query", "--package", "--requires", path(&rpm)]);
    for needed in ["nftables", "systemd"] {
        assert!(depends.contains(needed), "{depends}");
        assert!(
            requires.lines().any(|line| line.starts_with(needed)),
            "{requires}"
        );
    }
    assert!(depends.contains("libc6 (>= "), "{depends}");
    assert!(requires.contains("libc.so.6"), "{requires}");
}

#[test]
fn scripts_are_shell_without_anything_unusual() {
    let (deb, rpm) = (package(1, "deb"), package(1, "rpm"));
    let dir = tempfile::TempDir::new().unwrap();
    said("dpkg-deb", &["--control", path(&deb), path(dir.path())]);
    let scripts = ["postinst", "prerm", "postrm"].map(|name| dir.path().join(name));
    for script in &scripts {
        said("shellcheck", &[path(script)]);
    }
    let text = said("rpm", &["--query", "--package", "--scripts", path(&rpm)]);
    for scriptlet in ["postinstall", "preuninstall", "postuninstall"] {
        assert!(text.contains(&format!("{scriptlet} scriptlet")), "{text}");
    }
}

#[test]
fn tarball_holds_the_program_of_the_packages_and_what_its_units_and_pages_are_made_of() {
    let (deb, tarball) = (package(1, "deb"), package(1, "gz"));
    let listed = said("tar", &["--list", "--verbose", "--file", path(&tarball)]);
    let mut files = BTreeSet::new();
    for line in listed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1], "0/0", "{line}");
        assert!(!words[0].contains("rw-rw"), "{line}");
        let (_, file) = words.last().unwrap().split_once('/').unwrap();
        files.insert(file.to_owned());
    }
    for file in [
        "gate25",
        "man/gate25.8.gz",
        "man/gate25-policy.5.gz",
        "completions/gate25.bash",
        "schema/policy.v1.json",
        "deploy/gate25.service",
        "deploy/gate25-guard.service",
        "deploy/gate25.sysusers",
        "deploy/gate25.yaml",
        "README.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
    ] {
        assert!(files.contains(file), "{file}");
    }
    let of_deb = said_by_shell(&format!(
        "dpkg-deb --fsys-tarfile {} | tar --extract --to-stdout ./usr/bin/gate25 | sha256sum",
        path(&deb)
    ));
    let of_tarball = said_by_shell(&format!(
        "tar --extract --to-stdout --wildcards --file {} '*/gate25' | sha256sum",
        path(&tarball)
    ));
    assert_eq!(of_deb, of_tarball);
}

#[test]
fn bill_of_materials_has_the_agents_crates_in_their_versions_and_no_place_of_the_build() {
    let text = fs::read_to_string(package(1, "json")).unwrap();
    let bill: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(bill["bomFormat"], "CycloneDX");
    assert_eq!(bill["metadata"]["component"]["name"], "gate25");
    let components = bill["components"].as_array().unwrap();
    let listed: BTreeSet<(&str, &str)> = components
        .iter()
        .map(|it| {
            assert!(
                it["purl"].as_str().unwrap().starts_with("pkg:cargo/"),
                "{it}"
            );
            (
                it["name"].as_str().unwrap(),
                it["version"].as_str().unwrap(),
            )
        })
        .collect();
    let tree = said(
        env!("CARGO"),
        &[
            "tree",
            "--locked",
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/Cargo.toml"),
            "--edges=normal",
            "--prefix=none",
            "--format={p}",
        ],
    );
    let mut count = 0;
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        let (name, version) = (words.next().unwrap(), words.next().unwrap());
        let version = version.strip_prefix('v').unwrap();
        assert!(
            name == "gate25" || listed.contains(&(name, version)),
            "{line}"
        );
        count += 1;
    }
    assert!(count > 100, "{tree}");
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    assert!(!text.contains(path(checkout)));
}

#[test]
fn checksums_are_those_of_everything_that_is_published() {
    let dir = package(1, "deb").parent().unwrap().to_owned();
    let shell = format!("cd {} && sha256sum --check SHA256SUMS", path(&dir));
    let checked = said_by_shell(&shell);
    let checked = checked
        .lines()
        .map(|line| line.strip_suffix(": OK").unwrap());
    let checked: BTreeSet<String> = checked.map(str::to_owned).collect();
    let entries = fs::read_dir(&dir).unwrap();
    let files = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<String> = files.filter(|name| name != "SHA256SUMS").collect();
    assert_eq!(checked, files);
}

/// The files of a package and their modes.
#[track_caller]
fn files(deb: &Path) -> BTreeMap<String, String> {
    let listed = said("dpkg-deb", &["--contents", path(deb)]);
    let files = listed.lines().filter(|line| !line.starts_with('d'));
    files
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(words[1], "0/0", "{line}");
            let file = words.last().unwrap().strip_prefix('.').unwrap();
            (file.to_owned(), words[0].to_owned())
        })
        .collect()
}

#[track_caller]
fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn said_by_shell(words: &str) -> String {
    said("sh", &["-ec", words])
}

#[track_caller]
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{program} {args:?}: {text}{complaint}"
    );
    text.into_owned()
}
