//! Services that a service manager starts at boot, by the links that say so.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

/// Folders in which systemd looks for what units want, those of the administrator first.
pub const FOLDERS: [&str; 2] = ["/etc/systemd/system", "/run/systemd/system"];

/// The units that others want or require in one of `folders`.
///
/// # Errors
/// When a folder that is there cannot be read.
pub fn enabled<'a>(folders: impl IntoIterator<Item = &'a Path>) -> io::Result<BTreeSet<String>> {
    let mut enabled = BTreeSet::new();
    for folder in folders {
        for target in entries(folder)? {
            let is_list = |ending| target.extension() == Some(OsStr::new(ending));
            if is_list("wants") || is_list("requires") {
                let units = entries(&target)?.into_iter();
                let names = units.filter_map(|unit| Some(unit.file_name()?.to_str()?.to_owned()));
                enabled.extend(names);
            }
        }
    }
    Ok(enabled)
}

fn entries(folder: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}
