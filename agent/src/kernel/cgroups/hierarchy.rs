//! Where the version 2 hierarchy is mounted.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::{CgroupError, handle};

const MOUNTINFO: &str = "/proc/thread-self/mountinfo";

/// The mounted version 2 hierarchy.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    mount: PathBuf,
    /// What of the hierarchy the mount shows, as a path from this process's cgroup root.
    shown: PathBuf,
    layout: Layout,
    directory: Arc<File>,
}

/// Whether version 1 hierarchies exist beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Only version 2 is mounted.
    Unified,
    /// Version 1 controllers are mounted too: before Linux 5.15, `net_cls` and `net_prio` made
    /// sockets lose their version 2 cgroup.
    Hybrid,
}

impl Hierarchy {
    /// Finds the mount that this thread sees; one of the whole hierarchy if there is one.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`] if there is none, [`CgroupError::Mount`] if it cannot be opened.
    pub fn find() -> Result<Self, CgroupError> {
        let text = fs::read(MOUNTINFO).map_err(|source| CgroupError::Proc {
            path: MOUNTINFO,
            source,
        })?;
        Self::from_mountinfo(&text)
    }

    /// As [`Hierarchy::find`], by the lines of `/proc/PID/mountinfo` given.
    ///
    /// # Errors
    /// As [`Hierarchy::find`].
    pub fn from_mountinfo(text: &[u8]) -> Result<Self, CgroupError> {
        let (layout, mounts) = mounts(text);
        let mut outcome = Err(CgroupError::NotMounted);
        for Mount { shown, mount } in mounts {
            let failed = |source| CgroupError::Mount {
                path: mount.clone(),
                source,
            };
            let opened = File::open(&mount).and_then(|directory| {
                let kind = fstatfs(&directory)?.filesystem_type();
                Ok((kind == CGROUP2_SUPER_MAGIC).then_some(directory))
            });
            match opened.map_err(failed) {
                Ok(Some(directory)) => {
                    return Ok(Self {
                        mount,
                        shown,
                        layout,
                        directory: Arc::new(directory),
                    });
                }
                // Something else is mounted over it.
                Ok(None) => {}
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// The directory it is mounted on.
    #[must_use]
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Whether version 1 hierarchies exist beside it.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The path below the mount of the cgroup with this id; none if it is gone. Linux 5.5 or later.
    ///
    /// # Errors
    /// [`CgroupError::Handle`], above all where it may be below a directory that is closed to this
    /// user.
    pub fn path_of(&self, id: u64) -> Result<Option<PathBuf>, CgroupError> {
        handle::path_of(self, id).map_err(|source| CgroupError::Handle { id, source })
    }

    /// The mount's directory.
    pub(in crate::kernel) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The path below the mount of the version 2 cgroup in the text of a `/proc/PID/cgroup`; none
    /// if the mount does not show it. That of a removed cgroup ends in ` (deleted)`.
    pub(in crate::kernel) fn path_in(&self, text: &[u8]) -> Option<PathBuf> {
        let line = text.split(|byte| *byte == b'\n');
        let path = line.filter_map(|line| line.strip_prefix(b"0::")).next()?;
        let path = Path::new(OsStr::from_bytes(path));
        Some(path.strip_prefix(&self.shown).ok()?.to_owned())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    shown: PathBuf,
    mount: PathBuf,
}

/// The cgroup2 mounts, the best first: those of the whole hierarchy, and among these the last made,
/// which hides the ones before it.
fn mounts(text: &[u8]) -> (Layout, Vec<Mount>) {
    let mut layout = Layout::Unified;
    let mut mounts = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let (Some(shown), Some(mount)) = (fields.nth(3), fields.next()) else {
            continue;
        };
        // Optional fields of any number end with a dash.
        match fields.skip_while(|field| *field != b"-").nth(1) {
            Some(b"cgroup") => layout = Layout::Hybrid,
            Some(b"cgroup2") => mounts.push(Mount {
                shown: unescaped(shown),
                mount: unescaped(mount),
            }),
            Some(_) | None => {}
        }
    }
    mounts.reverse();
    mounts.sort_by_key(|mount| mount.shown != Path::new("/"));
    (layout, mounts)
}

/// A path of mountinfo, in which blanks, newlines and backslashes stand as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let [
            b'\\',
            a @ b'0'..=b'3',
            b @ b'0'..=b'7',
            c @ b'0'..=b'7',
            tail @ ..,
        ] = rest
        {
            bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn mounts_of_a_hybrid_host_are_hybrid() {
        let (layout, mounts) = mounts(HYBRID.as_bytes());
        assert_eq!(layout, Layout::Hybrid);
        assert_eq!(mounts, [mount("/", "/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn mounts_of_parts_come_after_those_of_the_whole() {
        let text = "\
24 1 0:22 /lxc/1 /part rw - cgroup2 none rw
25 1 0:22 / /first rw shared:1 master:2 - cgroup2 none rw
26 1 0:22 / /a\\040b\\134c rw - cgroup2 none rw
";
        let (layout, mounts) = mounts(text.as_bytes());
        assert_eq!(layout, Layout::Unified);
        assert_eq!(
            mounts,
            [
                mount("/", "/a b\\c"),
                mount("/", "/first"),
                mount("/lxc/1", "/part")
            ]
        );
    }

    #[test]
    fn from_mountinfo_without_cgroup2_says_not_mounted() {
        let text = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let error = Hierarchy::from_mountinfo(text.as_bytes()).unwrap_err();
        assert!(matches!(error, CgroupError::NotMounted), "{error}");
    }

    #[test]
    fn from_mountinfo_with_something_mounted_over_it_says_not_mounted() {
        let text = "41 31 0:38 / /proc rw,relatime - cgroup2 cgroup2 rw\n";
        let error = Hierarchy::from_mountinfo(text.as_bytes()).unwrap_err();
        assert!(matches!(error, CgroupError::NotMounted), "{error}");
    }

    #[test]
    fn unescaped_keeps_what_is_no_escape() {
        assert_eq!(unescaped(b"/a\\x2db\\0"), Path::new("/a\\x2db\\0"));
        assert_eq!(unescaped(b"/\\377").as_os_str().as_bytes(), b"/\xff");
    }

    proptest! {
        #[test]
        fn mounts_of_any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _mounts = mounts(&bytes);
            let _path = unescaped(&bytes);
        }
    }

    fn mount(shown: &str, mount: &str) -> Mount {
        Mount {
            shown: PathBuf::from(shown),
            mount: PathBuf::from(mount),
        }
    }
}
