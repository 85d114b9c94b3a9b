//! What the agent makes of the machine it finds, and what it tells of itself.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use gate25_tests::{
    Agent, Hosting, Outcome, PolicyText, Privileges, Settings, World, binary, connect,
    customers_text, poll,
};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn start_without_privileges_ends_with_a_clear_error() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    let config = world.lab.dir().join("gate25.yaml");
    fs::write(&config, "schema: 1\nbackend: ebpf\n").unwrap();
    // As somebody else: the binary is copied to where he can read it.
    let copy = world.lab.dir().join("gate25");
    fs::copy(binary().unwrap(), &copy).unwrap();
    let run = [
        copy.to_str().unwrap(),
        "run",
        "--config",
        config.to_str().unwrap(),
    ];
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let powerless = [
        "--bounding-set=-bpf,-sys_admin",
        "--inh-caps=-bpf,-sys_admin",
    ];
    for drop in [&nobody[..], &powerless[..]] {
        let mut command = host.command("setpriv");
        command.args(drop).args(run);
        let output = host.output(command, LIMIT).unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{drop:?}: {text}");
        let told = ["ermission", "not allowed", "not permitted", "CAP_BPF"];
        assert!(
            told.iter().any(|word| text.contains(word)),
            "{drop:?}: {text}"
        );
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn start_without_btf_enforces() {
    let world = World::new().unwrap();
    let closed = world.guest(101, "tap101i0").unwrap();
    let host = &world.hosting.hypervisor;
    host.exec("mount", &["-t", "tmpfs", "none", "/sys/kernel/btf"])
        .unwrap();
    let _agent = world.agent(&PolicyText::default()).unwrap();
    world.check_closed(&closed).unwrap();
}

#[test]
fn start_without_a_mounted_bpf_filesystem_mounts_it() {
    let world = World::new().unwrap();
    let closed = world.guest(101, "tap101i0").unwrap();
    let host = &world.hosting.hypervisor;
    host.exec("umount", &["/sys/fs/bpf"]).unwrap();
    // Only root mounts: for an agent that is not, `gate25 prepare` does.
    let settings = Settings {
        privileges: Privileges::Root,
        ..Settings::default()
    };
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    world.check_closed(&closed).unwrap();
    assert!(
        agent.log().contains("BPF filesystem mounted"),
        "{}",
        agent.log()
    );
    assert_eq!(world.covered_interfaces().unwrap().len(), 1);
}

#[test]
fn start_without_a_place_for_the_bpf_filesystem_ends_with_a_clear_error() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    let settings = Settings {
        args: ["--bpffs", "/run/nowhere"].map(str::to_owned).into(),
        more: "backend: ebpf\n".to_owned(),
        // There is nothing that could be prepared.
        privileges: Privileges::Root,
        ..Settings::default()
    };
    let files = [("policy.yaml", PolicyText::default().text())];
    let mut agent = Agent::start_unready(host, settings, &files).unwrap();
    let status = agent.process().wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(agent.log().contains("/run/nowhere"), "{}", agent.log());
}

#[test]
fn pages_are_there_and_the_metrics_are_clean_and_complete_from_the_start() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt("c-1");
    let agent = world.agent(&policy).unwrap();
    lint(&agent.metrics_page().unwrap());
    let metrics = agent.metrics().unwrap();
    // DESIGN's list, without what is not part of this version yet and without what only a
    // customer's attempt brings about.
    for name in [
        "build_info",
        "enforcing",
        "return_packets_total",
        "host_mode",
        "policy_source",
        "backend_info",
        "backend_feature",
        "workloads",
        "connections_total",
        "packets_total",
        "bytes_total",
        "malformed_total",
        "customer_series_limit",
        "customer_series_suppressed",
        "exemption_expiry_timestamp_seconds",
        "policy_customers",
        "policy_exemptions",
        "policy_generation",
        "policy_hash",
        "config_last_reload_successful",
        "config_last_reload_success_timestamp_seconds",
        "config_reloads_total",
        "config_reload_failures_total",
        "map_entries",
        "map_max_entries",
        "events_lost_total",
        "drift_repairs_total",
        "scrape_collector_duration_seconds",
        "policy_apply_duration_seconds_count",
        "workload_enforcement_delay_seconds_count",
    ] {
        let name = format!("gate25_{name}");
        assert!(metrics.series(&name).next().is_some(), "no {name}");
    }
    assert!(
        metrics
            .series("process_resident_memory_bytes")
            .next()
            .is_some()
    );
    for family in ["ipv4", "ipv6"] {
        for verdict in ["allow", "observe", "reject", "drop"] {
            let labels = [("verdict", verdict), ("family", family)];
            let value = metrics.sum("gate25_connections_total", &labels);
            assert_eq!(value, Some(0.0), "{labels:?}");
        }
    }
    for state in ["enforced", "unassigned", "conflict", "failed"] {
        let value = metrics.sum("gate25_workloads", &[("state", state)]);
        assert!(value.is_some(), "{state}");
    }
    world.check_open(&guest).unwrap();
    lint(&agent.metrics_page().unwrap());
    lint(&agent.get("/metrics/customers").unwrap().1);
    for (path, status, text) in [
        ("/", 200, "/metrics"),
        ("/healthz", 200, "healthy"),
        ("/readyz", 200, "ready"),
        ("/elsewhere", 404, ""),
    ] {
        let (seen, page) = agent.get(path).unwrap();
        assert_eq!(seen, status, "{path}");
        assert!(page.contains(text), "{path}: {page}");
    }
    let page = agent.metrics_page().unwrap();
    assert!(
        !page.contains("203.0.113.25") && !page.contains("NOC-1"),
        "{page}"
    );
}

#[test]
fn readiness_without_a_program_in_place_names_the_interface() {
    let world = World::new().unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    let host = &world.hosting.hypervisor;
    // Its packets have no Ethernet header, which the program needs.
    host.ip("tuntap add tap109i0 mode tun").unwrap();
    let failed = [("state", "failed")];
    let one = |value| value == 1.0;
    agent
        .wait_metric("gate25_workloads", &failed, LIMIT, one)
        .unwrap();
    let (status, text) = agent.get("/readyz").unwrap();
    assert_eq!(status, 503);
    assert!(text.contains("tap109i0"), "{text}");
    assert_eq!(agent.get("/healthz").unwrap().0, 200);
    host.ip("tuntap del tap109i0 mode tun").unwrap();
    poll("readiness", LIMIT, || {
        Ok((agent.get("/readyz")?.0 == 200).then_some(()))
    })
    .unwrap();
}

#[test]
fn ten_thousand_customers_load_and_one_exemption_touches_one_of_them() {
    const CUSTOMERS: usize = 10_000;
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let host = &world.hosting.hypervisor;
    let mut files = vec![(
        "base.yaml".to_owned(),
        PolicyText::default().customer("c-1", "tap101i0").text(),
    )];
    files.extend((0..100).map(|file| {
        (
            format!("customers-{file:02}.yaml"),
            customers_text(file * CUSTOMERS / 100, CUSTOMERS / 100),
        )
    }));
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    let started = Instant::now();
    let mut agent = Agent::start_unready(host, Settings::default(), &files).unwrap();
    agent.wait_ready(Duration::from_secs(60)).unwrap();
    println!(
        "{CUSTOMERS} customers x 10 prefixes enforced after {:?}",
        started.elapsed()
    );
    let metrics = agent.metrics().unwrap();
    let value = |name: &str, labels: &[(&str, &str)]| metrics.sum(name, labels).unwrap();
    assert_eq!(
        value("gate25_policy_customers", &[]),
        CUSTOMERS as f64 + 1.0
    );
    let prefixes = value("gate25_map_entries", &[("map", "PREFIXES")]);
    assert!(prefixes >= 10.0 * CUSTOMERS as f64, "{prefixes}");
    let to = Hosting::EXCHANGER.v4_port(25);
    let refused = connect(&guest.ns, to, LIMIT).unwrap();
    assert_eq!(refused.outcome, Outcome::Refused);
    let exemption = PolicyText::default().exempt("c-1").text();
    let section = exemption.split_once("exemptions:").unwrap().1;
    let saved = Instant::now();
    agent
        .write_policy(
            "exemptions.yaml",
            &format!("schema: 1\nexemptions:{section}"),
        )
        .unwrap();
    poll("an open port", LIMIT, || {
        let attempt = connect(&guest.ns, to, LIMIT)?;
        Ok((attempt.outcome == Outcome::Connected).then_some(()))
    })
    .unwrap();
    println!("exemption saved and in force after {:?}", saved.elapsed());
    let line = poll("the log's line", LIMIT, || {
        let log = agent.log();
        let line = log.lines().rfind(|line| line.contains("policy applied"));
        Ok(line
            .filter(|line| line.contains("generation=2"))
            .map(str::to_owned))
    })
    .unwrap();
    assert!(line.contains("writes=1 "), "{line}");
}

/// Has Prometheus' own tool read a page.
#[track_caller]
fn lint(page: &str) {
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    tool.stdin
        .take()
        .unwrap()
        .write_all(page.as_bytes())
        .unwrap();
    let output = tool.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.trim().is_empty(), "{text}");
}
