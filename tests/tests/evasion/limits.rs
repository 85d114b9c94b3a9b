//! What no gate can see by itself, and what helps.

use std::net::Ipv4Addr;

use gate25_common::testing::frames::{IPV4, Ipv4, SERVER_V4, Tcp, ethernet};
use gate25_tests::{Agent, Lab, PolicyText, Settings};

use super::packets::{GUARDED, packet_v4};
use super::range::{ALLOWED_V4, Path, Range};

const VXLAN: u16 = 4789;
const UDP: u8 = 17;

#[test]
fn packet_in_a_tunnel_that_ends_on_the_host_is_judged_where_the_tunnel_is_matched() {
    for matched in [false, true] {
        let lab = Lab::for_test().unwrap();
        let host = lab.netns("hypervisor").unwrap();
        let mut range = Range::new(&host, Path::Routed).unwrap();
        let own = Ipv4Addr::from(ALLOWED_V4);
        host.ip(&format!(
            "link add vxlan7 address 02:00:00:00:00:01 type vxlan id 7 dstport {VXLAN} local {own} learning
             link set vxlan7 up"
        ))
        .unwrap();
        let frames = [in_tunnel()];
        assert_eq!(range.through(&frames).unwrap().len(), 1, "by itself");
        let mut settings = Settings::default();
        if matched {
            settings.interfaces.push("vxlan*".to_owned());
        }
        let policy = [("policy.yaml", PolicyText::default().text())];
        let agent = Agent::start(&host, settings, &policy).unwrap();
        let judged = if matched { 2.0 } else { 1.0 };
        let nobodys = [("state", "unassigned")];
        let limit = std::time::Duration::from_secs(10);
        agent
            .wait_metric("gate25_workloads", &nobodys, limit, |value| value == judged)
            .unwrap();
        let through = range.through(&frames).unwrap().len();
        assert_eq!(through, usize::from(!matched));
    }
}

/// A SYN for the guarded port in a frame for the tunnel's own end (RFC 7348).
fn in_tunnel() -> Vec<u8> {
    let syn = Tcp::syn(GUARDED).bytes();
    let inner = ethernet(&[], IPV4, &packet_v4(&Ipv4::to(SERVER_V4), &syn));
    let mut datagram = Vec::new();
    datagram.extend(40_000u16.to_be_bytes());
    datagram.extend(VXLAN.to_be_bytes());
    datagram.extend((16 + inner.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend([8, 0, 0, 0, 0, 0, 7, 0]);
    datagram.extend(inner);
    let header = Ipv4 {
        protocol: UDP,
        ..Ipv4::to(ALLOWED_V4)
    };
    ethernet(&[], IPV4, &packet_v4(&header, &datagram))
}
