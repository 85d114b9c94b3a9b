//! Tenants who try every trick, and what the far side sees of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use gate25_tests::{
    Addresses, Agent, Attempt, Container, Hosting, Outcome, PolicyText, Settings, Target, Trick,
    Tried, World, poll,
};
use nix::libc;

const LIMIT: Duration = Duration::from_secs(5);
/// By which the guard knows what was judged, unless somebody says otherwise.
const GUARD_MARK: u32 = 0x1000_0000;

/// An agent that lets the cgroups `watched*` and the guest behind `veth109i0` send, and counts. It
/// drops without an answer what the cgroups `silent*` send.
#[track_caller]
pub(crate) fn start(world: &World, settings: Settings) -> Agent {
    let policy = PolicyText::default()
        .profile("watch", "observe", "reject")
        .profile("silent", "enforce", "drop")
        .container_of("watch", "c-1", &world.below("watched*"))
        .customer_of("watch", "c-2", "veth109i0")
        .container_of("silent", "c-3", &world.below("silent*"));
    world.agent_with(settings, &policy).unwrap()
}

/// Lets the lab's network carry what some tricks need: large frames, and source routes.
///
/// # Errors
/// When it cannot be set up.
pub(crate) fn prepare(world: &World) -> anyhow::Result<()> {
    let Hosting {
        hypervisor,
        core,
        relay,
        exchanger,
    } = &world.hosting;
    for (ns, devices) in [
        (hypervisor, &["wan0"][..]),
        (core, &["hv0", "relay0", "mx0"]),
        (relay, &["eth0"]),
        (exchanger, &["eth0"]),
    ] {
        for device in ["all", "default"].iter().chain(devices) {
            ns.sysctl(&[
                (&format!("ipv4/conf/{device}/accept_source_route"), "1"),
                (&format!("ipv6/conf/{device}/seg6_enabled"), "1"),
            ])?;
        }
        for device in devices {
            ns.ip(&format!("link set {device} mtu 9000"))?;
        }
    }
    // It sends source-routed packets on.
    relay.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])
}

/// A container and what its tricks are played on: the exchanger, over both families.
pub(crate) struct Player<'a> {
    container: &'a Container,
    targets: [Target; 2],
}

impl<'a> Player<'a> {
    /// Makes its own interface large enough, where it has one.
    ///
    /// # Errors
    /// When an address cannot be told.
    pub(crate) fn new(world: &World, container: &'a Container) -> anyhow::Result<Self> {
        let Hosting {
            hypervisor, core, ..
        } = &world.hosting;
        let (own, device, hardware) = match container.guest() {
            Some(guest) => {
                guest.ns.ip("link set eth0 mtu 9000")?;
                let interface = &guest.interface;
                hypervisor.ip(&format!("link set {interface} mtu 9000"))?;
                let hardware = [
                    world.hardware_address(&guest.ns, "eth0")?,
                    world.hardware_address(hypervisor, interface)?,
                ];
                (guest.addresses, "eth0", hardware)
            }
            None => {
                let own = Addresses {
                    v4: [192, 0, 2, 129].into(),
                    v6: "2001:db8:fffe::1".parse().context("an address")?,
                };
                let hardware = [
                    world.hardware_address(hypervisor, "wan0")?,
                    world.hardware_address(core, "hv0")?,
                ];
                (own, "wan0", hardware)
            }
        };
        let (to, allowed) = (Hosting::EXCHANGER, Hosting::RELAY);
        let target = |to: SocketAddr, allowed: SocketAddr, own: IpAddr| Target {
            to,
            allowed,
            own,
            device: device.to_owned(),
            hardware: hardware.clone(),
            mark: GUARD_MARK,
        };
        let targets = [
            target(to.v4_port(25), allowed.v4_port(25), own.v4.into()),
            target(to.v6_port(25), allowed.v6_port(25), own.v6.into()),
        ];
        Ok(Self { container, targets })
    }

    /// The exchanger over both families, at another port.
    pub(crate) fn aimed_at(&self, port: u16) -> [Target; 2] {
        self.targets.clone().map(|mut target| {
            target.to.set_port(port);
            target
        })
    }

    /// Its own addresses.
    pub(crate) fn own(&self) -> [IpAddr; 2] {
        let [v4, v6] = &self.targets;
        [v4.own, v6.own]
    }

    /// Plays a trick.
    ///
    /// # Errors
    /// When the tenant is gone.
    pub(crate) fn play(&self, trick: Trick, target: &Target) -> anyhow::Result<Attempt> {
        self.container.tenant.play(trick, target)
    }

    /// The targets of a trick: some work over IPv4 only, and the programs of control groups do
    /// not see frames.
    fn of(&self, trick: Trick) -> &[Target] {
        let [v4, _] = &self.targets;
        if trick.is_frame() && self.container.guest().is_none() {
            &[]
        } else if trick == Trick::ChangedFamily {
            std::slice::from_ref(v4)
        } else {
            &self.targets
        }
    }
}

/// Whether its answers go elsewhere, or it does not wait for them.
fn may_go_unanswered(trick: Trick) -> bool {
    trick.awaits_nothing()
        || matches!(
            trick,
            Trick::Transparent
                | Trick::RingFastOpen
                | Trick::AsDestination
                | Trick::RoutedThroughAllowed
                | Trick::RoutedToAllowed
        )
}

/// Whether a trick that ended so has sent, or would have if nobody had refused it: it did not fail
/// before, for want of a feature, an address, a port or a route.
fn was_tried(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Connected
        | Outcome::Refused
        | Outcome::Reset
        | Outcome::Aborted
        | Outcome::TimedOut => true,
        Outcome::Unreachable => false,
        // What a raw socket says when the programs refuse, and one whose first attempt goes on.
        Outcome::Other(text) => [libc::EPERM, libc::EALREADY, libc::EINPROGRESS]
            .map(|error| io::Error::from_raw_os_error(error).to_string())
            .contains(text),
    }
}

/// Plays every trick on the closed ones, of whom nothing may arrive.
///
/// # Errors
/// Naming the tricks that worked, or could not even be tried.
pub(crate) fn closed(world: &World, players: &[Player<'_>]) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    let mut before = world.witness.settled()?;
    for trick in Trick::ALL {
        let mut sent = 0;
        for player in players {
            for target in player.of(trick) {
                let attempt = player.play(trick, target)?;
                let works = attempt.outcome == Outcome::Connected && !trick.awaits_nothing();
                if was_tried(&attempt.outcome) {
                    sent += 1;
                }
                if works || !was_tried(&attempt.outcome) {
                    wrong.push(format!("{trick:?} to {}: {attempt}", target.to));
                }
            }
        }
        let after = world.witness.settled()?;
        let tried = Tried::evasion(trick.words(), sent, after - before);
        before = after;
        wrong.extend(tried.judge().err().map(|error| format!("{error:#}")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Plays every trick on those who may send, of whom something must arrive each time, and be answered
/// where it can be.
///
/// # Errors
/// Naming the tricks that do not work by themselves.
pub(crate) fn open(world: &World, players: &[Player<'_>]) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for trick in Trick::ALL {
        for player in players {
            for target in player.of(trick) {
                // The last one's connection may still be saying goodbye.
                let before = world.witness.settled()?;
                let attempt = player.play(trick, target)?;
                let arrived = poll("its packet", LIMIT, || {
                    Ok((world.witness.packets()? > before).then_some(()))
                });
                let works = attempt.outcome == Outcome::Connected || may_go_unanswered(trick);
                if arrived.is_err() || !works {
                    let place = player.container.cgroup.path();
                    wrong.push(format!("{trick:?} to {} by {place}: {attempt}", target.to));
                }
            }
        }
    }
    ensure!(
        wrong.is_empty(),
        "not even these work:\n{}",
        wrong.join("\n")
    );
    Ok(())
}
