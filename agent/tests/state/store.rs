//! The stored set on a real disk, whole and in every state of damage.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use gate25::policy::loader::SetHash;
use gate25::state::{LastKnownGood, MAX_FILE_BYTES, Saved, StateError, StoredSet};
use gate25::trust::TrustError;
use proptest::collection::vec;
use proptest::prelude::{any, prop_assert_eq, proptest};
use tempfile::TempDir;

use super::stored;

const TEMPORARY: &str = ".last-known-good.json.new";

#[test]
fn store_that_is_new_is_private_and_empty() {
    let dir = TempDir::new().unwrap();
    let state = dir.path().join("var/lib/gate25");
    let store = LastKnownGood::open(&state).unwrap();
    assert_eq!(fs::metadata(&state).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(store.load().unwrap(), None);
}

#[test]
fn file_saved_is_private_and_alone() {
    let (dir, store) = new();
    assert_eq!(store.save(&small()).unwrap(), Saved::Written);
    assert_eq!(fs::metadata(store.path()).unwrap().mode(), 0o100_600);
    assert_eq!(names(dir.path()), ["last-known-good.json"]);
    assert_eq!(store.load().unwrap(), Some(small()));
}

#[test]
fn file_is_json_that_people_can_take_apart() {
    let (_dir, store) = new();
    store.save(&small()).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&fs::read(store.path()).unwrap()).unwrap();
    assert_eq!(json["version"], 1);
    let set = &json["set"];
    assert_eq!(set["accepted"], "2026-11-23T12:00:00Z");
    assert_eq!(set["hash"], "01".repeat(32));
    // `base64 -d` gives "sub/a.yaml" and "schema: 1\n".
    assert_eq!(set["files"][0]["path_base64"], "c3ViL2EueWFtbA==");
    assert_eq!(set["files"][0]["contents_base64"], "c2NoZW1hOiAxCg==");
}

#[test]
fn set_with_the_same_hash_is_not_written_again() {
    let (_dir, store) = new();
    store.save(&small()).unwrap();
    let identity = |store: &LastKnownGood| fs::metadata(store.path()).unwrap().ino();
    let before = identity(&store);
    let later = StoredSet {
        accepted: "2027-01-01T00:00:00Z".parse().unwrap(),
        ..small()
    };
    let reopened = LastKnownGood::open(store.path().parent().unwrap()).unwrap();
    assert_eq!(reopened.save(&later).unwrap(), Saved::Unchanged);
    assert_eq!(identity(&store), before);
    let other = stored(2, &[]);
    assert_eq!(store.save(&other).unwrap(), Saved::Written);
    assert_eq!(store.load().unwrap(), Some(other));
}

#[test]
fn set_before_stays_as_the_previous_one_unless_another_has_to() {
    let (dir, store) = new();
    let sets = [1, 2, 3, 4].map(|number| stored(number, &[]));
    assert_eq!(store.previous().unwrap(), None);
    store.save(&sets[0]).unwrap();
    assert_eq!(store.previous().unwrap(), None);
    store.save(&sets[1]).unwrap();
    assert_eq!(store.previous().unwrap(), Some(sets[0].clone()));
    // The second set has to stay: it becomes the previous one, and stays that.
    let base = Some(sets[1].hash);
    store.replace(&sets[2], base).unwrap();
    assert_eq!(store.previous().unwrap(), Some(sets[1].clone()));
    store.replace(&sets[3], base).unwrap();
    assert_eq!(store.previous().unwrap(), Some(sets[1].clone()));
    assert_eq!(store.load().unwrap(), Some(sets[3].clone()));
    assert_eq!(names(dir.path()), ["last-known-good.json", "previous.json"]);
    for name in names(dir.path()) {
        let metadata = fs::metadata(dir.path().join(name)).unwrap();
        assert_eq!((metadata.mode(), metadata.nlink()), (0o100_600, 1));
    }
}

#[test]
fn file_that_is_damaged_is_written_again_although_the_hash_is_the_same() {
    let (_dir, store) = new();
    store.save(&small()).unwrap();
    let bytes = fs::read(store.path()).unwrap();
    fs::write(store.path(), &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(store.save(&small()).unwrap(), Saved::Written);
    assert_eq!(store.load().unwrap(), Some(small()));
}

#[test]
fn leftover_of_a_crash_is_removed_and_never_read() {
    let (dir, store) = new();
    for content in ["", "{\"version\":1"] {
        fs::write(dir.path().join(TEMPORARY), content).unwrap();
        assert_eq!(store.load().unwrap(), None);
    }
    store.save(&small()).unwrap();
    assert_eq!(names(dir.path()), ["last-known-good.json"]);
    fs::write(dir.path().join(TEMPORARY), "x").unwrap();
    assert_eq!(store.save(&small()).unwrap(), Saved::Unchanged);
    assert_eq!(names(dir.path()), ["last-known-good.json"]);
}

#[test]
fn file_cut_anywhere_is_truncated() {
    let (_dir, store) = new();
    store.save(&small()).unwrap();
    let whole = fs::read(store.path()).unwrap();
    // The last two bytes are the closing brace and the line's end.
    for length in 0..whole.len() - 1 {
        fs::write(store.path(), &whole[..length]).unwrap();
        assert_eq!(damage(&store), "the file is truncated", "{length} bytes");
    }
}

#[test]
fn file_with_any_bit_turned_is_refused() {
    let (_dir, store) = new();
    store.save(&small()).unwrap();
    let whole = fs::read(store.path()).unwrap();
    let file = OpenOptions::new().write(true).open(store.path()).unwrap();
    for at in 0..whole.len() - 1 {
        for bit in 0..8 {
            file.write_all_at(&[whole[at] ^ 1 << bit], at as u64)
                .unwrap();
            assert!(store.load().is_err(), "byte {at}, bit {bit}");
        }
        file.write_all_at(&whole[at..=at], at as u64).unwrap();
    }
    assert_eq!(store.load().unwrap(), Some(small()));
}

#[test]
fn damage_of_each_kind_has_a_message_of_its_own() {
    let (_dir, store) = new();
    store.save(&small()).unwrap();
    let whole = fs::read_to_string(store.path()).unwrap();
    let check = |text: &str, expected: &str| {
        fs::write(store.path(), text).unwrap();
        assert_eq!(damage(&store), expected, "{text}");
    };
    check("", "the file is truncated");
    check("\0\0\0\0", "the file is corrupt");
    check("[]", "the file is corrupt");
    check("{}", "the file is corrupt");
    check(&format!("{whole}{whole}"), "the file is corrupt");
    check(
        &whole.replace("\"sha256\"", "\"sha512\""),
        "the file is corrupt",
    );
    let version = "the file has version 2, this program reads version 1";
    check(
        &whole.replacen("\"version\":1", "\"version\":2", 1),
        version,
    );
    check("{\"version\": 2, \"something\": [\"new\"]}", version);
    let digest = "the file is corrupt: its SHA-256 does not fit its contents";
    check(
        &whole.replace("c2NoZW1hOiAxCg==", "c2NoZW1hOiAyCg=="),
        digest,
    );
    check(&whole.replace("\"files\":[", "\"files\": ["), digest);
}

#[test]
fn fields_without_a_meaning_are_refused_under_a_digest_that_fits() {
    let (_dir, store) = new();
    let check = |set: &str, expected: &str| {
        fs::write(store.path(), sealed(set)).unwrap();
        assert_eq!(damage(&store), expected, "{set}");
    };
    let hash = "ab".repeat(32);
    let set = |accepted: &str, hash: &str, files: &str| {
        format!("{{\"accepted\":\"{accepted}\",\"hash\":\"{hash}\",\"files\":[{files}]}}")
    };
    let now = super::NOW;
    let field = |what| format!("the file is corrupt: {what} of the stored set has no meaning");
    check(&set("yesterday", &hash, ""), &field("the time"));
    for wrong in [
        "",
        "ab",
        &hash.to_uppercase(),
        &"+a".repeat(32),
        &"é".repeat(32),
    ] {
        check(&set(now, wrong, ""), &field("the hash"));
    }
    let file = |path, contents| {
        format!("{{\"path_base64\":\"{path}\",\"contents_base64\":\"{contents}\"}}")
    };
    check(&set(now, &hash, &file("!", "")), &field("a path"));
    check(&set(now, &hash, &file("YQ==", "YQ=")), &field("a file"));
    let twice = [file("YQ==", ""), file("YQ==", "")].join(",");
    check(&set(now, &hash, &twice), &field("a path that occurs twice"));
    check("{\"files\":[]}", "the file is corrupt");
    check("null", "the file is corrupt");
    fs::write(
        store.path(),
        sealed(&set(now, &hash, &file("YQ==", "YQ=="))),
    )
    .unwrap();
    assert_eq!(store.load().unwrap(), Some(stored(0xab, &[(b"a", b"a")])));
}

#[test]
fn file_that_is_huge_is_refused_unread() {
    let (_dir, store) = new();
    let file = fs::File::create(store.path()).unwrap();
    file.set_len(MAX_FILE_BYTES + 1).unwrap();
    let error = store.load().unwrap_err();
    assert!(matches!(error, StateError::TooLarge { .. }), "{error:?}");
    file.set_len(1 << 40).unwrap();
    assert!(store.load().is_err());
    assert_eq!(store.save(&small()).unwrap(), Saved::Written);
}

#[test]
fn set_that_would_be_too_large_to_read_is_not_written() {
    let (dir, store) = new();
    store.save(&small()).unwrap();
    let big = vec![0; MAX_FILE_BYTES as usize / 4 * 3];
    let error = store.save(&stored(2, &[(b"big", &big)])).unwrap_err();
    assert!(matches!(error, StateError::TooLarge { .. }), "{error:?}");
    assert_eq!(store.load().unwrap(), Some(small()));
    assert_eq!(names(dir.path()), ["last-known-good.json"]);
}

#[test]
fn link_in_the_files_place_is_not_followed_but_replaced() {
    let (dir, store) = new();
    let target = dir.path().join("target");
    let (_other, elsewhere) = new();
    elsewhere.save(&small()).unwrap();
    fs::copy(elsewhere.path(), &target).unwrap();
    symlink(&target, store.path()).unwrap();
    symlink(&target, dir.path().join(TEMPORARY)).unwrap();
    let error = store.load().unwrap_err();
    assert!(matches!(error, StateError::NotAFile { .. }), "{error:?}");
    let before = fs::read(&target).unwrap();
    store.save(&stored(2, &[])).unwrap();
    assert_eq!(fs::read(&target).unwrap(), before);
    assert!(fs::symlink_metadata(store.path()).unwrap().is_file());
}

#[test]
fn directories_and_pipes_in_the_files_place_are_refused_without_blocking() {
    let (_dir, store) = new();
    fs::create_dir(store.path()).unwrap();
    assert!(matches!(store.load(), Err(StateError::NotAFile { .. })));
    assert!(matches!(
        store.save(&small()),
        Err(StateError::Write { .. })
    ));
    fs::remove_dir(store.path()).unwrap();
    nix::unistd::mkfifo(&store.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(store.load(), Err(StateError::NotAFile { .. })));
    assert_eq!(store.save(&small()).unwrap(), Saved::Written);
}

#[test]
fn directory_that_others_may_write_is_refused() {
    let (dir, store) = new();
    store.save(&small()).unwrap();
    for (mode, allowed) in [
        (0o755, true),
        (0o770, false),
        (0o702, false),
        (0o1777, false),
    ] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        let results = [
            LastKnownGood::open(dir.path()).map(drop),
            store.load().map(drop),
            store.save(&stored(3, &[])).map(drop),
        ];
        for result in results {
            match result {
                Ok(()) => assert!(allowed, "{mode:o}"),
                Err(StateError::Exposed(TrustError::Exposed(exposed))) => {
                    assert!(!allowed && exposed.path == dir.path(), "{mode:o}");
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn set_that_others_may_write_is_refused_but_shown() {
    let (dir, store) = new();
    store.save(&small()).unwrap();
    fs::set_permissions(store.path(), fs::Permissions::from_mode(0o606)).unwrap();
    let refused = store.load();
    assert!(
        matches!(refused, Err(StateError::Exposed(_))),
        "{refused:?}"
    );
    assert_eq!(LastKnownGood::look(dir.path()).unwrap(), Some(small()));
    // The next one takes its place.
    assert_eq!(store.save(&small()).unwrap(), Saved::Written);
    assert_eq!(store.load().unwrap(), Some(small()));
}

#[test]
fn looking_where_nothing_is_kept_makes_nothing() {
    let dir = TempDir::new().unwrap();
    let none = dir.path().join("none");
    assert_eq!(LastKnownGood::look(&none).unwrap(), None);
    assert!(!none.exists());
}

#[test]
fn directory_may_be_a_link_and_comes_back_after_it_was_removed() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("disk")).unwrap();
    fs::set_permissions(dir.path().join("disk"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("disk", dir.path().join("state")).unwrap();
    let store = LastKnownGood::open(&dir.path().join("state")).unwrap();
    store.save(&small()).unwrap();
    assert!(dir.path().join("disk/last-known-good.json").is_file());

    let own = dir.path().join("own");
    let store = LastKnownGood::open(&own).unwrap();
    fs::remove_dir(&own).unwrap();
    assert_eq!(store.save(&small()).unwrap(), Saved::Written);
    fs::remove_dir_all(&own).unwrap();
    assert_eq!(store.load().unwrap(), None);
}

#[test]
fn directory_that_is_a_file_is_an_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "").unwrap();
    let error = LastKnownGood::open(&path).unwrap_err();
    assert!(matches!(error, StateError::Directory { .. }), "{error:?}");
}

proptest! {
    #[test]
    fn any_set_comes_back_as_it_was(
        hash in any::<[u8; 32]>(),
        seconds in -300_000_000_000_i64..=0x3_0000_0000,
        nanoseconds in 0..1_000_000_000_i32,
        files in proptest::collection::btree_map(vec(1..=255_u8, 1..40), vec(any::<u8>(), 0..200), 0..8),
    ) {
        let (_dir, store) = new();
        let files: Vec<(&[u8], &[u8])> =
            files.iter().map(|(path, bytes)| (path.as_slice(), bytes.as_slice())).collect();
        let accepted = jiff::Timestamp::new(seconds, nanoseconds).unwrap();
        let set = StoredSet { hash: SetHash(hash), accepted, ..stored(0, &files) };
        prop_assert_eq!(store.save(&set).unwrap(), Saved::Written);
        prop_assert_eq!(store.load().unwrap(), Some(set.clone()));
        prop_assert_eq!(store.save(&set).unwrap(), Saved::Unchanged);
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in vec(any::<u8>(), 0..300)) {
        let (_dir, store) = new();
        fs::write(store.path(), &bytes).unwrap();
        assert!(store.load().is_err());
    }
}

fn new() -> (TempDir, LastKnownGood) {
    let dir = TempDir::new().unwrap();
    let store = LastKnownGood::open(dir.path()).unwrap();
    (dir, store)
}

fn small() -> StoredSet {
    stored(
        1,
        &[
            (b"sub/a.yaml", b"schema: 1\n"),
            (b"\xff b.yaml", b"\xef\xbb\xbf\0"),
        ],
    )
}

/// A file around `set` as the format's description wants it: the digest over its bytes.
fn sealed(set: &str) -> String {
    use sha2::Digest as _;
    let digest: [u8; 32] = sha2::Sha256::digest(set).into();
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{{\"version\":1,\"sha256\":\"{digest}\",\"set\":{set}}}\n")
}

#[track_caller]
fn damage(store: &LastKnownGood) -> String {
    let error = store.load().unwrap_err();
    let StateError::Unusable { path, source } = error else {
        panic!("{error:?}")
    };
    assert_eq!(path, store.path());
    source.to_string()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
