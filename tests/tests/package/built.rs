//! The packages that are tried.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use gate25_tests::Machine;

/// The packages of one revision.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    pub(crate) deb: PathBuf,
    pub(crate) rpm: PathBuf,
}

impl Built {
    /// Those that `cargo xtask` has built into the folder `GATE25_PACKAGES`, a folder for each revision.
    #[track_caller]
    pub(crate) fn of(revision: u32) -> Self {
        let dir = env::var_os("GATE25_PACKAGES");
        let dir = dir.expect("GATE25_PACKAGES is set by `./xtask/x test package`");
        let dir = Path::new(&dir).join(revision.to_string());
        let mut files = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let files: Vec<PathBuf> = files.by_ref().collect();
        let one = |ending: &str| {
            let named = |path: &&PathBuf| path.extension().is_some_and(|it| it == ending);
            let mut found = files.iter().filter(named);
            let path = found.next().cloned();
            assert!(found.next().is_none(), "{files:?}");
            path.expect(ending)
        };
        Self {
            deb: one("deb"),
            rpm: one("rpm"),
        }
    }

    /// Puts the package for Debian onto a machine; the words that install it there.
    #[track_caller]
    pub(crate) fn bring(&self, machine: &Machine) -> String {
        let name = self.deb.file_name().unwrap().to_string_lossy();
        let path = format!("/root/{name}");
        machine.write(&path, fs::read(&self.deb).unwrap()).unwrap();
        format!("apt-get --quiet --yes --allow-downgrades install {path}")
    }
}
