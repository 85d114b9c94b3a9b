//! As whom the agent runs, and what it may do.

use std::{env, path::Path, time::Duration};

use anyhow::{Context as _, bail};

use crate::NetNs;

const LIMIT: Duration = Duration::from_secs(10);

/// As whom a program runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Privileges {
    /// As a user that the machine does not know, and nothing but this.
    User(User),
    /// As root, with whatever the test has.
    Root,
}

/// A user, by numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user's number, and his group's.
    pub id: u32,
    /// Further groups of his.
    pub groups: Vec<u32>,
    /// Capabilities, as setpriv(1) names them.
    pub capabilities: Vec<&'static str>,
}

impl User {
    /// The agent's number.
    pub const AGENT: u32 = 59_025;
    /// Somebody who has nothing to do with gate25.
    pub const STRANGER: u32 = 59_026;
}

impl Default for Privileges {
    /// The agent's user with what the agent needs, and no more.
    fn default() -> Self {
        Self::of_agent(&["bpf", "perfmon", "net_admin"])
    }
}

impl Privileges {
    /// The agent's user with these capabilities.
    #[must_use]
    pub fn of_agent(capabilities: &[&'static str]) -> Self {
        Self::User(User {
            id: User::AGENT,
            groups: Vec::new(),
            capabilities: capabilities.to_vec(),
        })
    }

    /// The agent's user with what the agent needs, and these.
    #[must_use]
    pub fn and(more: &[&'static str]) -> Self {
        Self::of_agent(&[&["bpf", "perfmon", "net_admin"], more].concat())
    }

    /// A user without capabilities whom gate25 does not know.
    #[must_use]
    pub fn none() -> Self {
        Self::User(User {
            id: User::STRANGER,
            groups: Vec::new(),
            capabilities: Vec::new(),
        })
    }

    /// What to write in front of a command that is to run so.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        let User {
            id,
            groups,
            capabilities,
        } = match self {
            Self::Root => return Vec::new(),
            Self::User(user) => user,
        };
        let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
        let groups = match groups.as_slice() {
            [] => "--clear-groups".to_owned(),
            groups => format!("--groups={}", groups.join(",")),
        };
        let kept: String = capabilities.iter().map(|it| format!(",+{it}")).collect();
        vec![
            setpriv(),
            format!("--reuid={id}"),
            format!("--regid={id}"),
            groups,
            format!("--bounding-set=-all{kept}"),
            format!("--inh-caps=-all{kept}"),
            format!("--ambient-caps=-all{kept}"),
            "--no-new-privs".to_owned(),
        ]
    }

    /// Does as root what such an agent cannot do itself, as a service manager would before each
    /// start.
    pub(crate) fn prepare(&self, ns: &NetNs, program: &Path, config: &Path) -> anyhow::Result<()> {
        let id = match self {
            Self::Root => return Ok(()),
            Self::User(user) => user.id.to_string(),
        };
        let mut command = ns.command(program);
        command.args(["prepare", "--user", &id, "--group", &id, "--config"]);
        command.arg(config);
        let said = ns.ask(command, LIMIT).context("prepare for the agent")?;
        if said.code != Some(0) {
            bail!("gate25 prepare: {said:?}");
        }
        Ok(())
    }
}

/// Where the program is, whatever search path the command that it runs is to have.
fn setpriv() -> String {
    let name = "setpriv";
    let folders = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&folders).map(|folder| folder.join(name));
    let mut found = found.filter(|path| path.is_file());
    let path = found.next();
    path.map_or_else(
        || name.to_owned(),
        |path| path.to_string_lossy().into_owned(),
    )
}
