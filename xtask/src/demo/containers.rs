//! The demo's containers: real ones, run by crun, with a network of their own and without.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use gate25_tests::{Container, Containers, Hosting, Lab, Network, Outcome, Runtime};

use super::{AT_ONCE, both, exchanger};
use crate::table::Table;

/// Idle connections are looked for; those in use end at their next packet.
const SOON: Duration = Duration::from_secs(2);

pub(super) struct Pods {
    containers: Containers,
    /// Customer c-10042's, exempt at first, behind a veth.
    shop: Container,
    /// Customer c-10043's, on the hypervisor's own network.
    blog: Container,
}

impl Pods {
    pub(super) fn new(lab: &Lab, hosting: &Hosting) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let program = vec![program.to_string_lossy().into_owned(), "tenant".to_owned()];
        let containers = Containers::new(lab, hosting, "machine.slice", program)?;
        let own = Network::own(104, "veth104i0");
        let shop = containers.start(lab, hosting, "shop", &own, Runtime::Crun)?;
        let shared = Network::Hypervisor;
        let blog = containers.start(lab, hosting, "blog", &shared, Runtime::Crun)?;
        Ok(Self {
            containers,
            shop,
            blog,
        })
    }

    /// The cgroup that the agent is told to watch.
    pub(super) fn root(&self) -> String {
        self.containers.root.path()
    }

    pub(super) fn without_agent(&self, table: &mut Table) {
        for (container, what) in [
            (&self.shop, "crun container, own network"),
            (&self.blog, "crun container, host's network"),
        ] {
            for (family, to) in exchanger(25) {
                let what = format!("{what}, {family}: exchanger:25");
                reaches(table, container, &what, to);
            }
        }
    }

    pub(super) fn with_agent(&self, table: &mut Table) {
        table.heading("Containers are judged by their cgroup, on the host's network too");
        for (family, to) in exchanger(25) {
            let what = format!("blocked container, host's network, {family}");
            refused(table, &self.blog, &what, to);
        }
        for (family, to) in both(Hosting::RELAY, 25) {
            let what = format!("blocked container, {family}: the relay");
            reaches(table, &self.blog, &what, to);
        }
        for (family, to) in exchanger(25) {
            let greeting = self.shop.tenant.hold(family, to);
            let seen = greeting.map(|line| (line.starts_with("220"), line));
            let what = format!("exempt container, own network, {family}: greeting");
            table.row(&what, "220", seen);
        }
    }

    /// After the revocation: connections that [`Pods::with_agent`] left open have ended.
    pub(super) fn revoked(&self, table: &mut Table) {
        for (family, _) in exchanger(25) {
            let seen = self.shop.tenant.wait_cut(family).map(|cut| {
                let ended = matches!(cut.outcome, Outcome::Aborted | Outcome::Reset);
                (ended && cut.took < SOON, cut.to_string())
            });
            let what = format!("container's idle connection, {family}");
            table.row(&what, "ended by the host", seen);
        }
        for (family, to) in exchanger(25) {
            let what = format!("container no longer exempt, {family}");
            refused(table, &self.shop, &what, to);
        }
    }

    pub(super) fn leave(self) {
        self.shop.leave();
        self.blog.leave();
        self.containers.leave();
    }
}

fn reaches(table: &mut Table, container: &Container, what: &str, to: SocketAddr) {
    let seen = container
        .tenant
        .connect(to)
        .map(|attempt| (attempt.outcome == Outcome::Connected, attempt.to_string()));
    table.row(what, "connected", seen);
}

fn refused(table: &mut Table, container: &Container, what: &str, to: SocketAddr) {
    let seen = container.tenant.connect(to).map(|attempt| {
        let right = attempt.outcome == Outcome::Refused && attempt.took < AT_ONCE;
        (right, attempt.to_string())
    });
    table.row(what, "refused at once", seen);
}
