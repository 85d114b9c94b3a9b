//! Whether an agent runs: by its socket, and by what it locks.

use std::fs;
use std::os::unix::net::UnixListener;

use gate25::control::presence::Presence;
use gate25::state::lock::ExclusiveLock;
use tempfile::TempDir;

#[test]
fn agent_is_there_by_its_socket_or_its_lock_and_what_cannot_be_looked_at_is_told() {
    let dir = TempDir::new().unwrap();
    let (run, filesystem) = (dir.path().join("run"), dir.path().join("bpf"));
    let socket = run.join("control.sock");
    let look = || Presence::look(&socket, &filesystem);
    assert!(matches!(look(), Presence::Stopped), "{:?}", look());
    fs::create_dir_all(filesystem.join("gate25")).unwrap();
    fs::create_dir(&run).unwrap();
    assert!(matches!(look(), Presence::Stopped), "{:?}", look());
    for folder in [filesystem.join("gate25"), run.clone()] {
        let _held = ExclusiveLock::acquire(&folder).unwrap();
        let seen = look();
        assert!(matches!(seen, Presence::Unserved), "{folder:?}: {seen:?}");
    }
    let listener = UnixListener::bind(&socket).unwrap();
    assert!(matches!(look(), Presence::Running));
    drop(listener);
    assert!(matches!(look(), Presence::Stopped), "{:?}", look());
    fs::remove_dir(filesystem.join("gate25")).unwrap();
    fs::write(filesystem.join("gate25"), "").unwrap();
    assert!(matches!(look(), Presence::Unknown(_)), "{:?}", look());
}
