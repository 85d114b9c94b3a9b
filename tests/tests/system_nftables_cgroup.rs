//! Why backend nftables leaves the sockets of containers alone: what nft cannot say of control
//! groups. Where this fails, nft has learned it, and the backend can do more.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::path::Path;

use gate25_tests::{NetNs, World};
use serde_json::{Value, json};

#[test]
fn nft_knows_control_groups_by_nothing_but_their_path() {
    let world = World::for_nftables().unwrap();
    let host = &world.hosting.hypervisor;
    let cgroup = world.containers.root.child("shop-1").unwrap();
    let (path, id) = (path_for_nft(cgroup.dir()), cgroup.id().unwrap());
    assert!(nft(host, &json!({"table": table()})));
    let map = object("owners", json!({"type": "cgroupsv2", "map": "verdict"}));
    assert!(nft(host, &json!({"map": map})));

    assert!(nft(host, &owner(&path)));
    assert!(!nft(host, &owner(&id.to_string())));

    cgroup.remove().unwrap();
    assert!(
        host.exec("nft", &["list map inet probe owners"])
            .unwrap()
            .contains(&id.to_string())
    );
    let remove = |key: &str| format!("delete element inet probe owners {{ \"{key}\" }}");
    assert!(host.exec("nft", &[&remove(&path)]).is_err());
    assert!(host.exec("nft", &[&remove(&id.to_string())]).is_err());
}

#[test]
fn json_of_nft_has_no_level_of_control_groups() {
    let world = World::for_nftables().unwrap();
    let host = &world.hosting.hypervisor;
    assert!(nft(host, &json!({"table": table()})));
    let map = object("owners", json!({"type": "cgroupsv2", "map": "verdict"}));
    assert!(nft(host, &json!({"map": map})));
    assert!(nft(host, &json!({"chain": object("sent", json!({}))})));
    let rule = |key: Value| {
        let lookup = json!({"vmap": {"key": key, "data": "@owners"}});
        json!({"rule": {"family": "inet", "table": "probe", "chain": "sent", "expr": [lookup]}})
    };
    assert!(!nft(
        host,
        &rule(json!({"socket": {"key": "cgroupv2", "level": 1}}))
    ));
    let as_text = "add rule inet probe sent socket cgroupv2 level 1 vmap @owners";
    host.exec("nft", &[as_text]).unwrap();
}

fn table() -> Value {
    json!({"family": "inet", "name": "probe"})
}

fn object(name: &str, mut more: Value) -> Value {
    more["family"] = json!("inet");
    more["table"] = json!("probe");
    more["name"] = json!(name);
    more
}

fn owner(key: &str) -> Value {
    json!({"element": object("owners", json!({"elem": [[key, {"accept": null}]]}))})
}

/// nft looks for it below a folder that it knows.
fn path_for_nft(cgroup: &Path) -> String {
    let below = cgroup.strip_prefix("/sys/fs/cgroup").unwrap();
    below.to_str().unwrap().to_owned()
}

/// Whether nft adds it.
fn nft(host: &NetNs, object: &Value) -> bool {
    let commands = json!({"nftables": [{"add": object}]}).to_string();
    host.exec("nft", &["-j", &commands]).is_ok()
}
