//! Packages: what is in them is gathered in one folder, then packed by cargo-deb, cargo-generate-rpm
//! and tar.

use std::{
    ffi::OsStr,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use flate2::{Compression, GzBuilder};

use crate::{
    builds,
    cargo::{self, cargo, root},
};

/// The folder of the packages for upgrades, below [`folder`].
const TWO_BUILDS: &str = "two-builds";

/// What to build.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Options {
    /// The packages' revision: which packaging of the same version it is
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) revision: u32,
    /// Only the packages for Debian and for RPM: no tarball, no bill of materials, no checksums
    #[arg(long)]
    pub(crate) packages_only: bool,
}

/// What was built.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) deb: PathBuf,
    pub(crate) rpm: PathBuf,
    others: Vec<PathBuf>,
}

impl Built {
    /// Every file.
    pub(crate) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let Self { deb, rpm, others } = self;
        [deb, rpm].into_iter().chain(others)
    }
}

/// Where packages go: the place that the packages' metadata name, wherever cargo builds.
pub(crate) fn folder() -> PathBuf {
    root().join("target/dist")
}

/// Builds the agent and everything that is published of it.
pub(crate) fn run(options: &Options) -> anyhow::Result<Built> {
    let agent = cargo::build()?;
    let stage = folder().join("stage");
    gather(&agent, &stage)?;
    let date = date()?;
    let mut built = packages(&folder(), options.revision, &date)?;
    if !options.packages_only {
        add_others(&mut built, &folder(), &date)?;
    }
    Ok(built)
}

fn packages(dir: &Path, revision: u32, date: &str) -> anyhow::Result<Built> {
    Ok(Built {
        deb: deb(dir, revision, date)?,
        rpm: rpm(dir, revision, date)?,
        others: Vec::new(),
    })
}

/// What is published beside the packages, the checksums of all last.
fn add_others(built: &mut Built, dir: &Path, date: &str) -> anyhow::Result<()> {
    built.others.push(tarball(dir, date)?);
    built.others.push(bill_of_materials(dir, date)?);
    let sums = checksums(dir, built)?;
    built.others.push(sums);
    Ok(())
}

/// Builds packages to be tried: of revisions 1 and 2, a folder for each. With the first is everything that is
/// published.
pub(crate) fn to_be_tried() -> anyhow::Result<PathBuf> {
    let agent = cargo::build()?;
    gather(&agent, &folder().join("stage"))?;
    let date = date()?;
    let all = folder().join("tried");
    for revision in [1, 2] {
        let dir = all.join(revision.to_string());
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let mut built = packages(&dir, revision, &date)?;
        if revision == 1 {
            add_others(&mut built, &dir, &date)?;
        }
    }
    Ok(all)
}

/// Builds two packages for Debian: of this build and, as revision 2, of one whose programs and tables are
/// others.
pub(crate) fn two_builds() -> anyhow::Result<[PathBuf; 2]> {
    let (this, other) = (cargo::build()?, builds::with_other_tables()?);
    let date = date()?;
    let dir = folder().join(TWO_BUILDS);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let package = |revision: u32, agent: &Path| {
        gather(agent, &folder().join("stage"))?;
        deb(&dir, revision, &date)
    };
    Ok([package(1, &this)?, package(2, &other)?])
}

/// The packages that [`two_builds`] has built before.
pub(crate) fn two_built() -> anyhow::Result<[PathBuf; 2]> {
    let found = files(&folder().join(TWO_BUILDS))?;
    <[PathBuf; 2]>::try_from(found)
        .map_err(|found| anyhow::anyhow!("{} packages, and not two", found.len()))
}

/// Puts what is made, rather than kept in the repository, into the folder `stage`.
fn gather(agent: &Path, stage: &Path) -> anyhow::Result<()> {
    if stage.exists() {
        fs::remove_dir_all(stage).with_context(|| format!("remove {}", stage.display()))?;
    }
    fs::create_dir_all(stage.join("schema"))
        .with_context(|| format!("create {}", stage.display()))?;
    let binary = stage.join("gate25");
    cargo::finish(
        Command::new("strip")
            .arg("--strip-all")
            .arg("-o")
            .arg(&binary)
            .arg(agent),
    )?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", binary.display()))?;
    cargo::finish(Command::new(&binary).arg("pages").arg(stage))?;
    let schema = said(Command::new(&binary).arg("schema"))?;
    write(&stage.join("schema/policy.v1.json"), &schema)?;
    let man = stage.join("man");
    for page in files(&root().join("deploy/man"))? {
        let to = man.join(page.file_name().unwrap_or_default());
        fs::copy(&page, &to).with_context(|| format!("copy {}", page.display()))?;
    }
    for page in files(&man)? {
        compress(&page, &with_ending(&page, "gz"))?;
        fs::remove_file(&page).with_context(|| format!("remove {}", page.display()))?;
    }
    compress(&root().join("CHANGELOG.md"), &stage.join("changelog.gz"))
}

fn deb(dir: &Path, revision: u32, date: &str) -> anyhow::Result<PathBuf> {
    let architecture = said(Command::new("dpkg").arg("--print-architecture"))?;
    let path = dir.join(format!(
        "gate25_{}-{revision}_{}.deb",
        env!("CARGO_PKG_VERSION"),
        String::from_utf8_lossy(&architecture).trim()
    ));
    let mut command = cargo("deb");
    command
        .args(["--no-build", "--no-strip", "--quiet", "--package", "gate25"])
        .arg(format!("--deb-revision={revision}"))
        .arg("--output")
        .arg(&path)
        .env("SOURCE_DATE_EPOCH", date);
    cargo::finish(&mut command)?;
    existing(path)
}

fn rpm(dir: &Path, revision: u32, date: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join(format!(
        "gate25-{}-{revision}.{}.rpm",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH
    ));
    let mut command = cargo("generate-rpm");
    command
        .args(["--package", "agent"])
        .arg(format!("--set-metadata=release = \"{revision}\""))
        .arg("--output")
        .arg(&path)
        .env("SOURCE_DATE_EPOCH", date);
    cargo::finish(&mut command)?;
    existing(path)
}

/// For hosts without either: the same files, to be put into place by hand.
fn tarball(dir: &Path, date: &str) -> anyhow::Result<PathBuf> {
    let name = format!(
        "gate25-{}-{}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH
    );
    let path = dir.join(format!("{name}.tar.gz"));
    let mut command = Command::new("tar");
    command
        .args([
            "--create",
            "--use-compress-program=gzip --no-name",
            "--sort=name",
            "--owner=0",
            "--group=0",
        ])
        .args(["--numeric-owner", "--mode=u=rwX,go=rX"])
        .arg(format!("--mtime=@{date}"))
        .arg(format!("--transform=s,^,{name}/,"))
        .arg("--file")
        .arg(&path)
        .arg("--directory")
        .arg(folder().join("stage"))
        .args(["gate25", "man", "completions", "schema"])
        .arg("--directory")
        .arg(root())
        .args(["README.md", "SECURITY.md", "CHANGELOG.md"])
        .args(["LICENSE-APACHE", "LICENSE-MIT", "deploy"]);
    cargo::finish(&mut command)?;
    existing(path)
}

/// Every crate in the agent's binary, in the form of CycloneDX, without the folder that it was built in.
fn bill_of_materials(dir: &Path, date: &str) -> anyhow::Result<PathBuf> {
    const NAME: &str = "gate25.cdx";
    let mut command = cargo("cyclonedx");
    command
        .args(["--manifest-path", "agent/Cargo.toml", "--format", "json"])
        .args(["--spec-version", "1.5", "--no-build-deps"])
        .args(["--override-filename", NAME])
        .env("SOURCE_DATE_EPOCH", date);
    cargo::finish(&mut command)?;
    // It is written beside the manifest of every member of the workspace that the agent uses.
    let to = dir.join(format!("gate25-{}.cdx.json", env!("CARGO_PKG_VERSION")));
    for member in ["agent", "ebpf", "ebpf/common", "xtask", "tests"] {
        let path = root().join(member).join(format!("{NAME}.json"));
        if member == "agent" {
            let text = fs::read_to_string(&path);
            let text = text.with_context(|| format!("read {}", path.display()))?;
            let built_in = format!("{}/", root().display());
            write(&to, text.replace(&built_in, "").as_bytes())?;
        }
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    existing(to)
}

fn checksums(dir: &Path, built: &Built) -> anyhow::Result<PathBuf> {
    let names = built.files().filter_map(|path| path.file_name());
    let names: Vec<&OsStr> = names.collect();
    let sums = said(Command::new("sha256sum").args(names).current_dir(dir))?;
    let path = dir.join("SHA256SUMS");
    write(&path, &sums)?;
    Ok(path)
}

/// When the sources were last changed, so that packages of the same sources are the same.
fn date() -> anyhow::Result<String> {
    let mut command = Command::new("git");
    command
        .args(["log", "-1", "--format=%ct"])
        .current_dir(root());
    let date = String::from_utf8(said(&mut command)?).context("read the commit's date")?;
    Ok(date.trim().to_owned())
}

fn compress(from: &Path, to: &Path) -> anyhow::Result<()> {
    let text = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    let file = fs::File::create(to).with_context(|| format!("create {}", to.display()))?;
    // Without name and time: the same text is the same file.
    let mut encoder = GzBuilder::new().write(file, Compression::best());
    encoder
        .write_all(&text)
        .and_then(|()| encoder.finish().map(drop))
        .with_context(|| format!("write {}", to.display()))
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    let mut paths: Vec<PathBuf> = paths
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("read {}", dir.display()))?;
    paths.sort();
    Ok(paths)
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

fn existing(path: PathBuf) -> anyhow::Result<PathBuf> {
    if !path.is_file() {
        bail!("no {} was made", path.display());
    }
    Ok(path)
}

/// What a command writes to stdout.
fn said(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let shown = cargo::display(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}", output.status);
    }
    Ok(output.stdout)
}
