//! Whose files are gone by.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use gate25::policy::directory::{self, DirectoryError};
use gate25::policy::loader::Loader;
use gate25::settings::{self, Missing, SettingsError};
use gate25::trust::{Exposed, Exposure, Keepers, Trust, TrustError};
use tempfile::TempDir;

#[test]
fn file_is_judged_by_owner_and_by_who_may_write() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "").unwrap();
    let (user, group) = identity(&file);
    let ours = || Keepers::new(user, vec![group]);
    let without_group = || Keepers::new(user, Vec::new()).alone();
    for (mode, keepers, expected) in [
        (0o644, ours(), None),
        (0o664, ours(), None),
        (0o664, without_group(), Some(Exposure::Group(group))),
        (0o640, without_group(), None),
        (0o666, ours(), Some(Exposure::Everybody)),
        (0o602, ours(), Some(Exposure::Everybody)),
        // For a file the sticky bit means nothing.
        (0o1666, ours(), Some(Exposure::Everybody)),
    ] {
        set_mode(&file, mode);
        let judged = keepers.judge(&file, &fs::metadata(&file).unwrap());
        let exposure = judged.err().map(|exposed| exposed.exposure);
        assert_eq!(exposure, expected, "{mode:o}");
    }
}

#[test]
fn directory_that_everybody_may_write_is_exposed_itself_even_if_sticky() {
    let dir = TempDir::new().unwrap();
    set_mode(dir.path(), 0o1777);
    let judged = Keepers::of_process().judge(dir.path(), &fs::metadata(dir.path()).unwrap());
    assert_eq!(judged.unwrap_err().exposure, Exposure::Everybody);
}

#[test]
fn way_through_a_directory_that_everybody_may_write_is_exposed_unless_sticky() {
    let dir = TempDir::new().unwrap();
    let shared = dir.path().join("shared");
    fs::create_dir_all(shared.join("inner")).unwrap();
    let file = shared.join("inner/f");
    fs::write(&file, "").unwrap();
    for (mode, expected) in [(0o755, None), (0o777, Some(&shared)), (0o1777, None)] {
        set_mode(&shared, mode);
        assert_eq!(way(&file).as_ref(), expected, "{mode:o}");
    }
}

#[test]
fn way_over_links_is_judged_where_they_lead_and_where_they_are() {
    let dir = TempDir::new().unwrap();
    let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
    for folder in [&good, &bad] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("f"), "").unwrap();
    }
    // Out of the exposed one and into it, by absolute and by relative links, and in two steps.
    symlink(&bad, good.join("into")).unwrap();
    symlink("../bad", good.join("beside")).unwrap();
    symlink("into", good.join("twice")).unwrap();
    symlink(good.join("f"), bad.join("out")).unwrap();
    set_mode(&bad, 0o777);
    assert_eq!(way(&good.join("f")), None);
    for path in ["into/f", "beside/f", "twice/f", "into/out"] {
        assert_eq!(way(&good.join(path)), Some(bad.clone()), "{path}");
    }
    assert_eq!(way(&bad.join("out")), Some(bad.clone()));
    assert_eq!(way(&good.join("../bad/../good/f")), Some(bad.clone()));
}

#[test]
fn way_in_circles_is_an_error() {
    let dir = TempDir::new().unwrap();
    symlink("b", dir.path().join("a")).unwrap();
    symlink("a", dir.path().join("b")).unwrap();
    let error = Keepers::of_process().judge_way(&dir.path().join("a/f"));
    let Err(TrustError::Look { source, .. }) = error else {
        panic!("{error:?}")
    };
    assert_eq!(source.raw_os_error(), Some(libc::ELOOP));
}

#[test]
fn policy_directory_names_everything_that_others_could_have_written() {
    let dir = TempDir::new().unwrap();
    for path in ["a.yaml", "sub/b.yaml", "sub/c.yaml"] {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "schema: 1\n").unwrap();
    }
    let trust = Trust::Keepers(Keepers::of_process());
    assert_eq!(
        directory::read(dir.path(), &trust, &Loader::default())
            .unwrap()
            .files
            .len(),
        3
    );
    set_mode(&dir.path().join("sub"), 0o777);
    set_mode(&dir.path().join("sub/c.yaml"), 0o646);
    let error = directory::read(dir.path(), &trust, &Loader::default()).unwrap_err();
    let DirectoryError::Refused(refused) = error else {
        panic!("{error:?}")
    };
    let named: Vec<_> = refused
        .iter()
        .map(|one| (one.code, one.primary.to_string()))
        .collect();
    let exposed = |path: &str| ("exposed", path.to_owned());
    assert_eq!(named, [exposed("sub"), exposed("sub/c.yaml")]);
    // Whoever only wants to know whether it is valid may.
    assert!(directory::read(dir.path(), &Trust::Anybody, &Loader::default()).is_ok());
}

#[test]
fn policy_linked_through_a_hidden_directory_is_judged_there() {
    let dir = TempDir::new().unwrap();
    let hidden = dir.path().join(".data");
    fs::create_dir(&hidden).unwrap();
    fs::write(hidden.join("a.yaml"), "schema: 1\n").unwrap();
    symlink(".data/a.yaml", dir.path().join("a.yaml")).unwrap();
    let trust = Trust::Keepers(Keepers::of_process());
    assert_eq!(
        directory::read(dir.path(), &trust, &Loader::default())
            .unwrap()
            .files
            .len(),
        1
    );
    set_mode(&hidden, 0o777);
    let error = directory::read(dir.path(), &trust, &Loader::default()).unwrap_err();
    assert!(matches!(error, DirectoryError::Refused(_)), "{error:?}");
}

#[test]
fn settings_that_others_could_have_written_are_refused() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("gate25.yaml");
    fs::write(&file, "schema: 1\n").unwrap();
    let trust = Trust::Keepers(Keepers::of_process());
    assert!(settings::read(&file, Missing::Refused, &trust).is_ok());
    set_mode(&file, 0o666);
    let error = settings::read(&file, Missing::Refused, &trust).unwrap_err();
    assert!(matches!(error, SettingsError::Exposed(_)), "{error:?}");
    set_mode(&file, 0o644);
    set_mode(dir.path(), 0o777);
    let error = settings::read(&file, Missing::Refused, &trust).unwrap_err();
    assert!(matches!(error, SettingsError::Exposed(_)), "{error:?}");
}

/// The first directory on the way to `path` that others could change.
#[track_caller]
fn way(path: &Path) -> Option<std::path::PathBuf> {
    match Keepers::of_process().judge_way(path) {
        Ok(()) => None,
        Err(TrustError::Exposed(Exposed { path, .. })) => Some(path),
        Err(error) => panic!("{error:?}"),
    }
}

fn identity(path: &Path) -> (u32, u32) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.uid(), metadata.gid())
}

#[track_caller]
fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}
