//! The lint tier: each command counts as one test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;

use crate::cargo::{Count, LIMIT, cargo, display, root, target, wait};

/// Where Debian's `libstd-rust-web-dev-bpf` puts the kernel target's core library.
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none";
const KERNEL_TARGET: [&str; 4] = ["--package", "gate25-ebpf", "--target", "bpfel-unknown-none"];

/// A workspace of its own.
const FUZZ: [&str; 2] = ["--manifest-path", "tests/fuzz/Cargo.toml"];

pub(crate) fn run() -> anyhow::Result<Count> {
    let mut commands = vec![format(&["--all"]), format(&FUZZ), host_lints()];
    commands.extend(kernel_lints());
    let mut count = Count::default();
    match shell_lints() {
        Some(command) => commands.push(command),
        None => {
            println!("skipped: shellcheck is not installed");
            count.skipped += 1;
        }
    }
    for mut command in commands {
        println!("$ {}", display(&command));
        let mut child = command
            .stdin(Stdio::null())
            .spawn()
            .context("start a lint")?;
        if wait(&mut child, LIMIT)?.success() {
            count.passed += 1;
        } else {
            println!("FAILED: {}", display(&command));
            count.failed += 1;
        }
    }
    Ok(count)
}

fn format(what: &[&str]) -> Command {
    let mut command = cargo("fmt");
    command.args(what).arg("--check");
    command
}

fn host_lints() -> Command {
    let mut command = cargo("clippy");
    command.args(["--workspace", "--exclude", "gate25-ebpf", "--all-targets"]);
    command.args([
        "--features",
        "gate25-tests/root,gate25/root-tests",
        "--",
        "-D",
        "warnings",
    ]);
    command
}

/// With Debian's compiler, which has the target's core library; else with a nightly that builds it.
fn kernel_lints() -> [Command; 2] {
    [&[] as &[&str], &["--features", "log"]].map(|features| {
        let debian = Path::new("/usr/bin/cargo-clippy").exists() && Path::new(DEBIAN_CORE).exists();
        let mut command = if debian {
            // By its path: cargo looks for subcommands in the user's own folder first.
            let mut command = Command::new("/usr/bin/cargo-clippy");
            command.arg("clippy").current_dir(root());
            command
                .env("PATH", "/usr/bin:/bin")
                .env("RUSTC", "/usr/bin/rustc");
            // aya-ebpf uses one unstable feature.
            command.env("RUSTC_BOOTSTRAP", "1");
            command
        } else {
            let mut command = Command::new("cargo");
            command
                .args(["+nightly", "clippy", "-Z", "build-std=core"])
                .current_dir(root());
            command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
            command
        };
        command.args(KERNEL_TARGET).args(features);
        // A folder of its own: another compiler's results would be thrown away each time.
        command.arg("--target-dir").arg(target().join("lint-bpf"));
        command.args(["--", "-D", "warnings"]);
        command
    })
}

fn shell_lints() -> Option<Command> {
    let mut scripts = vec![
        "xtask/x".into(),
        ".ci/run".into(),
        "tests/src/cleanup.sh".into(),
        "tests/src/vm/init.sh".into(),
        "tests/src/vm/guest.sh".into(),
        "tests/src/vm/testbed.sh".into(),
        "tests/src/vm/commands.sh".into(),
    ];
    collect_scripts(&root().join("deploy"), &mut scripts);
    let found = Command::new("shellcheck")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let mut command = Command::new("shellcheck");
    command.args(&scripts).current_dir(root());
    found.then_some(command)
}

fn collect_scripts(dir: &Path, scripts: &mut Vec<PathBuf>) {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect_scripts(&path, scripts);
        } else if fs::read(&path).is_ok_and(|text| is_shell(&text)) {
            scripts.push(path);
        }
    }
}

fn is_shell(text: &[u8]) -> bool {
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    first.starts_with(b"#!") && (first.ends_with(b"sh") || first.ends_with(b"sh -e"))
}
