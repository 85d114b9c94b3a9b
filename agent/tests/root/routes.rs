//! Where packets go, by the kernel's own routes.

use std::net::IpAddr;

use gate25::kernel::routes::{Way, changes, way_to};
use gate25_tests::poll;
use nix::net::if_::if_nametoindex;
use tokio::time::timeout;

use super::netns::{LIMIT, deadline, run, within};

fn way(to: &str) -> Way {
    way_to(to.parse().unwrap()).unwrap()
}

fn make_ways() {
    run("ip link set lo up");
    run("ip link add uplink type veth peer name upstream");
    run("ip link set upstream addrgenmode none up");
    // Nothing that the kernel adds later.
    run("ip link set uplink addrgenmode none up");
    run("ip addr add 192.0.2.1/24 dev uplink");
    run("ip addr add 2001:db8::1/64 dev uplink nodad");
    // Also without looking for duplicates the kernel adds this address's own route a moment later.
    poll("the address's own route", LIMIT, || {
        Ok((way("2001:db8::1") == Way::Here).then_some(()))
    })
    .unwrap();
}

#[test]
fn way_is_told_by_the_routes_there_are() {
    within(|| async {
        make_ways();
        let uplink = Way::By(if_nametoindex("uplink").unwrap());
        for (own, neighbour, elsewhere) in [
            ("192.0.2.1", "192.0.2.9", "203.0.113.1"),
            ("2001:db8::1", "2001:db8::9", "2001:db8:1::1"),
        ] {
            assert_eq!(way(own), Way::Here, "{own}");
            assert_eq!(way(neighbour), uplink, "{neighbour}");
            assert_eq!(way(elsewhere), Way::Nowhere, "{elsewhere}");
        }
        run("ip route add unreachable 203.0.113.0/24");
        assert_eq!(way("203.0.113.1"), Way::Nowhere);
        run("ip route add prohibit 198.51.100.0/24");
        let prohibited: IpAddr = "198.51.100.1".parse().unwrap();
        let error = way_to(prohibited).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ask the kernel for the route to 198.51.100.1"
        );
    });
}

#[test]
fn changes_of_routes_and_rules_of_both_families_are_noticed() {
    within(|| async {
        make_ways();
        let mut changes = changes().unwrap();
        for change in [
            "ip route add 203.0.113.0/24 dev uplink",
            "ip route add 2001:db8:1::/64 dev uplink",
            "ip rule add to 203.0.113.0/24 lookup 25",
            "ip -6 rule add to 2001:db8:1::/64 lookup 25",
            "ip route del 203.0.113.0/24 dev uplink",
        ] {
            run(change);
            let noticed = timeout(deadline(), changes.next()).await;
            noticed.expect(change).unwrap();
        }
    });
}
