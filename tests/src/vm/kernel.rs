//! Debian's kernel packages, unpacked below `.cache/kernels` by the developer commands.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

/// A kernel image and its modules.
#[derive(Debug, Clone)]
pub struct Kernel {
    image: PathBuf,
    modules: PathBuf,
    release: String,
}

impl Kernel {
    /// The unpacked kernel of a series, such as `6.1`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn find(series: &str) -> anyhow::Result<Self> {
        let all = env::var_os("GATE25_KERNELS").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/kernels"),
            PathBuf::from,
        );
        let dir = all.join(series);
        let modules = only(&dir.join("lib/modules"), "")?;
        let release = modules.file_name().and_then(OsStr::to_str);
        Ok(Self {
            image: only(&dir.join("boot"), "vmlinuz-")?
                .canonicalize()
                .with_context(|| format!("kernel {series}"))?,
            release: release
                .with_context(|| format!("no release in {}", modules.display()))?
                .to_owned(),
            modules,
        })
    }

    /// What `uname -r` says in it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Its compressed image.
    pub(super) fn image(&self) -> &Path {
        &self.image
    }

    /// The modules of these names, uncompressed, each behind those that it depends on. What is
    /// built in is left out. A name that ends in `*` stands for all that begin so.
    pub(super) fn modules(&self, names: &[&str]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let mut loading = Loading {
            release: &self.release,
            files: files(&self.modules)?,
            built_in: built_in(&self.modules)?,
            done: BTreeSet::new(),
            ordered: Vec::new(),
        };
        for name in names {
            match name.strip_suffix('*') {
                Some(start) => loading.add_all(start)?,
                None => loading.add(name)?,
            }
        }
        Ok(loading.ordered)
    }
}

/// The one entry of a folder whose name starts so.
fn only(dir: &Path, start: &str) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(dir)
        .with_context(|| format!("no kernel in {}: run `./xtask/x test`", dir.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", dir.display()))?;
        if entry.file_name().to_string_lossy().starts_with(start) {
            paths.push(entry.path());
        }
    }
    match <[PathBuf; 1]>::try_from(paths) {
        Ok([path]) => Ok(path),
        Err(paths) => bail!("{} entries {start}* in {}", paths.len(), dir.display()),
    }
}

/// A list of modules being put in order.
struct Loading<'a> {
    release: &'a str,
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    done: BTreeSet<String>,
    ordered: Vec<(String, Vec<u8>)>,
}

impl Loading<'_> {
    fn add_all(&mut self, start: &str) -> anyhow::Result<()> {
        let names = self.files.keys().filter(|name| name.starts_with(start));
        let names: Vec<String> = names.cloned().collect();
        names.iter().try_for_each(|name| self.add(name))
    }

    fn add(&mut self, name: &str) -> anyhow::Result<()> {
        let name = plain(name);
        if self.built_in.contains(&name) || !self.done.insert(name.clone()) {
            return Ok(());
        }
        let path = self
            .files
            .get(&name)
            .with_context(|| format!("kernel {} has no module {name}", self.release))?;
        let module = read(path)?;
        for needed in depends(&module) {
            self.add(&needed)?;
        }
        self.ordered.push((name, module));
        Ok(())
    }
}

/// Modules by name.
fn files(dir: &Path) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
            let entry = entry.with_context(|| format!("read {}", dir.display()))?;
            let kind = entry.file_type().context("look at a module")?;
            if kind.is_dir() {
                pending.push(entry.path());
            } else if let Some(name) = module_name(&entry.path()) {
                found.insert(name, entry.path());
            }
        }
    }
    Ok(found)
}

fn built_in(dir: &Path) -> anyhow::Result<BTreeSet<String>> {
    let list = dir.join("modules.builtin");
    let text = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    let names = text.lines().filter_map(|line| module_name(Path::new(line)));
    Ok(names.collect())
}

fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let name = file
        .strip_suffix(".ko")
        .or_else(|| file.strip_suffix(".ko.xz"))?;
    Some(plain(name))
}

/// Files are named with dashes or underscores, the kernel says underscores.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("read {}", path.display()));
    }
    let output = Command::new("xz")
        .arg("-dc")
        .arg(path)
        .output()
        .context("start xz")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("xz -dc {}: {}: {said}", path.display(), output.status);
    }
    Ok(output.stdout)
}

/// What a module's own `depends=` field names.
fn depends(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|part| part == FIELD) else {
        return Vec::new();
    };
    let rest = &module[at + FIELD.len()..];
    let list = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list);
    list.split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_name_of_compressed_file_has_underscores() {
        let name = module_name(Path::new("kernel/net/nft-reject.ko.xz"));
        assert_eq!(name.as_deref(), Some("nft_reject"));
        assert_eq!(module_name(Path::new("kernel/net/modules.order")), None);
    }

    #[test]
    fn depends_of_a_module_with_two_names_both() {
        let module = b"license=GPL\0depends=libcrc32c,nfnetlink\0retpoline=Y\0";
        assert_eq!(depends(module), ["libcrc32c", "nfnetlink"]);
        assert_eq!(depends(b"license=GPL\0depends=\0"), [""; 0]);
    }
}
