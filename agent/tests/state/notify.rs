//! What arrives at a real socket of a service manager.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use gate25::notify::{Environment, Notifier, NotifyError};
use tempfile::TempDir;

const PID: u32 = 4711;
const DEADLINE: Duration = Duration::from_secs(10);

#[test]
fn notifier_without_a_service_manager_is_silent() {
    let environment = Environment {
        watchdog_usec: Some("1000000".into()),
        ..Environment::default()
    };
    for notifier in [
        Notifier::from_environment(&environment, PID).unwrap(),
        Notifier::silent(),
    ] {
        notifier.ready("").unwrap();
        notifier.ping().unwrap();
        assert_eq!(notifier.watchdog_period(), None);
    }
}

#[test]
fn messages_arrive_at_a_socket_with_a_path() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    every_message_arrives(&manager, path.into_os_string());
}

#[test]
fn messages_arrive_at_an_abstract_socket() {
    let name = format!("gate25-test-notify-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let manager = UnixDatagram::bind_addr(&address).unwrap();
    every_message_arrives(&manager, format!("@{name}").into());
}

#[test]
fn status_with_line_breaks_stays_one_assignment() {
    let (_dir, manager, notifier) = pair();
    notifier
        .status("a\nWATCHDOG=trigger\r\n\0STOPPING=1\n")
        .unwrap();
    assert_eq!(read(&manager), "STATUS=a WATCHDOG=trigger   STOPPING=1 \n");
}

#[test]
fn status_that_is_long_is_cut_between_characters_and_readiness_still_arrives() {
    let (_dir, manager, notifier) = pair();
    for lead in ["", "a", "aa"] {
        notifier
            .ready(&(lead.to_owned() + &"€".repeat(5000)))
            .unwrap();
        let message = read(&manager);
        assert!(message.starts_with("READY=1\nSTATUS="), "{message}");
        assert!(message.ends_with("€…\n"), "{message}");
        assert!((1000..1100).contains(&message.len()), "{}", message.len());
    }
}

#[test]
fn watchdog_period_is_half_of_what_is_demanded_of_this_process() {
    let dir = TempDir::new().unwrap();
    let period = |usec: &str, pid: Option<&str>| {
        let environment = Environment {
            notify_socket: Some(dir.path().join("notify").into()),
            watchdog_usec: Some(usec.into()),
            watchdog_pid: pid.map(Into::into),
        };
        Notifier::from_environment(&environment, PID)
            .unwrap()
            .watchdog_period()
    };
    let half = Some(Duration::from_millis(15_000));
    assert_eq!(period("30000000", None), half);
    assert_eq!(period("30000000", Some("4711")), half);
    assert_eq!(period("30000000", Some("4712")), None);
    assert_eq!(period("1", None), Some(Duration::from_nanos(500)));
}

#[test]
fn environment_without_a_meaning_is_an_error() {
    let dir = TempDir::new().unwrap();
    let socket: OsString = dir.path().join("notify").into();
    let new = |notify_socket: OsString, usec: &str, pid: &str| {
        let environment = Environment {
            notify_socket: Some(notify_socket),
            watchdog_usec: Some(usec.into()),
            watchdog_pid: Some(pid.into()),
        };
        Notifier::from_environment(&environment, PID).unwrap_err()
    };
    for value in ["", "0", "-1", "+1", "1s", "18446744073709551616"] {
        let error = new(socket.clone(), value, "4711");
        assert!(
            matches!(error, NotifyError::Number { variable, .. } if variable == "WATCHDOG_USEC"),
            "{value}: {error}"
        );
        let error = new(socket.clone(), "1", value);
        assert!(
            matches!(error, NotifyError::Number { variable, .. } if variable == "WATCHDOG_PID"),
            "{value}: {error}"
        );
    }
    let addresses = [
        OsString::new(),
        "@".into(),
        "relative".into(),
        "vsock:2:1".into(),
        OsString::from_vec(b"/a\0b".to_vec()),
        OsString::from("/".to_owned() + &"x".repeat(200)),
        OsString::from("@".to_owned() + &"x".repeat(200)),
    ];
    for address in addresses {
        let error = new(address, "1", "4711");
        assert!(matches!(error, NotifyError::Address { .. }), "{error}");
    }
}

#[test]
fn service_manager_that_is_gone_or_does_not_read_is_an_error_in_bounded_time() {
    let (dir, manager, notifier) = pair();
    let begin = std::time::Instant::now();
    // The kernel queues a few datagrams for a socket that nobody reads.
    let error = (0..100_000).find_map(|_| notifier.ping().err()).unwrap();
    assert!(matches!(error, NotifyError::Send { .. }));
    assert!(begin.elapsed() < DEADLINE);
    drop(manager);
    assert!(notifier.stopping().is_err());
    std::fs::remove_file(dir.path().join("notify")).unwrap();
    assert!(notifier.stopping().is_err());
    // A service manager that was executed anew has the same address.
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    notifier.ping().unwrap();
    assert_eq!(read(&manager), "WATCHDOG=1\n");
}

#[track_caller]
fn every_message_arrives(manager: &UnixDatagram, address: OsString) {
    let environment = Environment {
        notify_socket: Some(address),
        ..Environment::default()
    };
    let notifier = Notifier::from_environment(&environment, PID).unwrap();
    notifier.ready("17 workloads, enforcing").unwrap();
    assert_eq!(read(manager), "READY=1\nSTATUS=17 workloads, enforcing\n");
    notifier.status("degraded: żółw").unwrap();
    assert_eq!(read(manager), "STATUS=degraded: żółw\n");
    notifier.ping().unwrap();
    assert_eq!(read(manager), "WATCHDOG=1\n");
    notifier.stopping().unwrap();
    assert_eq!(read(manager), "STOPPING=1\n");
}

fn pair() -> (TempDir, UnixDatagram, Notifier) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let environment = Environment {
        notify_socket: Some(path.into()),
        ..Environment::default()
    };
    let notifier = Notifier::from_environment(&environment, PID).unwrap();
    (dir, manager, notifier)
}

#[track_caller]
fn read(manager: &UnixDatagram) -> String {
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut buffer = [0; 4096];
    let length = manager.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}
