//! The socket's file.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as Plain;
use std::path::Path;

use gate25::control::{Socket, SocketError};
use gate25::settings::Enforcement;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen,
    socket as make_socket,
};

use crate::lab::{Lab, own_group};

#[tokio::test]
async fn socket_is_for_its_group_in_a_folder_for_everybody() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    let folder = lab.socket.parent().unwrap();
    assert_eq!(mode(&lab.socket), 0o660);
    assert_eq!(mode(folder), 0o711);
    let names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    assert_eq!(names, ["control.sock"]);
}

#[tokio::test]
async fn socket_without_its_group_is_for_the_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _socket = Socket::bind(&path, "no-such-group-of-gate25").unwrap();
    assert_eq!(mode(&path), 0o600);
}

#[tokio::test]
async fn socket_of_a_dead_agent_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(Plain::bind(&path).unwrap());
    // And what an agent leaves that is killed while it makes one.
    fs::create_dir(dir.path().join(".s.new")).unwrap();
    drop(Plain::bind(dir.path().join(".s.new/s")).unwrap());
    let _socket = Socket::bind(&path, &own_group()).unwrap();
    std::os::unix::net::UnixStream::connect(&path).unwrap();
}

#[tokio::test]
async fn socket_that_somebody_serves_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _theirs = Plain::bind(&path).unwrap();
    let error = Socket::bind(&path, &own_group()).unwrap_err();
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
}

#[tokio::test]
async fn socket_whose_server_accepts_nobody_is_left_alone_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let address = UnixAddr::new(&path).unwrap();
    let flags = SockFlag::SOCK_NONBLOCK;
    let make = || make_socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    let theirs = make();
    bind(theirs.as_raw_fd(), &address).unwrap();
    listen(&theirs, Backlog::new(1).unwrap()).unwrap();
    let mut queued = Vec::new();
    let full = loop {
        let client = make();
        match connect(client.as_raw_fd(), &address) {
            Ok(()) => queued.push(client),
            Err(error) => break error,
        }
    };
    assert_eq!(full, Errno::EAGAIN);
    let error = Socket::bind(&path, &own_group()).unwrap_err();
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
}

#[tokio::test]
async fn what_is_not_a_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    for path in [&file, &link, &folder] {
        let error = Socket::bind(path, &own_group()).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[tokio::test]
async fn socket_goes_at_an_orderly_stop_unless_it_is_a_successors() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    let path = lab.socket.clone();
    let _dir = lab.stop().await;
    assert!(!path.exists());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let first = Socket::bind(&path, &own_group()).unwrap();
    fs::remove_file(&path).unwrap();
    let _second = Socket::bind(&path, &own_group()).unwrap();
    drop(first);
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}
