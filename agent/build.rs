//! Builds the kernel objects that the agent carries: the ordinary one, and one with debug lines.

#![expect(
    clippy::expect_used,
    reason = "a build script has nobody to hand an error to"
)]

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "gate25-ebpf";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const INSTALL: &str = "./xtask/x build";
const EPOCH: &str = "SOURCE_DATE_EPOCH";

fn main() {
    let agent = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let workspace = agent
        .parent()
        .expect("the agent is a member of the workspace");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for watched in [
        "ebpf/Cargo.toml",
        "ebpf/src",
        "ebpf/common/src",
        "Cargo.lock",
        ".cache/tools",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(watched).display()
        );
    }
    let toolchain = Toolchain::find();
    let linker = linker(workspace);
    println!(
        "cargo::rustc-env=GATE25_EBPF_TOOLCHAIN={}",
        toolchain.describe()
    );
    println!("cargo::rerun-if-env-changed={EPOCH}");
    println!("cargo::rustc-env=GATE25_BUILT={}", built());
    for (name, features) in [("gate25", None), ("gate25-log", Some("log"))] {
        let built = build(workspace, &toolchain, &linker, features);
        let to = out.join(name);
        std::fs::copy(&built, &to).unwrap_or_else(|error| {
            panic!("copy {} to {}: {error}", built.display(), to.display())
        });
    }
}

/// Seconds since 1970: a clock that shows less is wrong.
fn built() -> u64 {
    // https://reproducible-builds.org/specs/source-date-epoch/
    match env::var(EPOCH) {
        Ok(text) => text.parse().expect("SOURCE_DATE_EPOCH is a number"),
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("the clock is set")
            .as_secs(),
    }
}

/// Compilers that are known to build for the kernel.
enum Toolchain {
    /// Debian's, with its packaged core library for the target.
    Debian,
    /// rustup's nightly, which compiles the core library itself.
    Nightly,
}

impl Toolchain {
    fn find() -> Self {
        if Path::new("/usr/lib/rustlib").join(TARGET).is_dir() && Path::new(DEBIAN_RUSTC).exists() {
            return Self::Debian;
        }
        let nightly = Command::new("rustup")
            .args(["component", "list", "--toolchain", "nightly", "--installed"])
            .output()
            .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("rust-src"));
        if nightly {
            return Self::Nightly;
        }
        panic!(
            "no compiler for {TARGET}: neither Debian's libstd-rust-web-dev-bpf nor rustup's \
             nightly with rust-src is installed; `{INSTALL}` installs what is missing"
        );
    }

    fn describe(&self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Nightly => "nightly",
        }
    }

    fn cargo(&self) -> Command {
        match self {
            Self::Debian => {
                let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets it"));
                // aya-ebpf enables one unstable feature.
                cargo
                    .arg("build")
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Self::Nightly => {
                let mut cargo = Command::new("rustup");
                cargo.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]);
                cargo.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
                cargo
            }
        }
    }
}

fn linker(workspace: &Path) -> PathBuf {
    let own = workspace.join(".cache/tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    std::iter::once(own)
        .chain(env::split_paths(&path))
        .map(|folder| folder.join("bpf-linker"))
        .find(|linker| linker.is_file())
        .unwrap_or_else(|| panic!("bpf-linker is not installed; `{INSTALL}` installs it"))
}

fn build(
    workspace: &Path,
    toolchain: &Toolchain,
    linker: &Path,
    features: Option<&str>,
) -> PathBuf {
    let target = workspace
        .join("target/ebpf")
        .join(features.unwrap_or("plain"));
    let mut flags = OsString::from("-Clinker=");
    flags.push(linker);
    flags.push("\u{1f}-Ctarget-cpu=v3\u{1f}-Cdebuginfo=2\u{1f}-Clink-arg=--btf");
    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(workspace)
        .args([
            "--package",
            PACKAGE,
            "--release",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        // Cut into more units, the same sources make programs that the verifier takes longer for.
        .env("CARGO_INCREMENTAL", "0")
        // Set by cargo for this script's own crate and target; they would steer the inner build.
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_CFG_TARGET_FEATURE");
    if let Some(features) = features {
        cargo.args(["--features", features]);
    }
    let status = cargo
        .status()
        .unwrap_or_else(|error| panic!("run {cargo:?}: {error}"));
    assert!(status.success(), "{cargo:?} failed: {status}");
    target.join(TARGET).join("release").join(PACKAGE)
}
