//! Real Postfix servers, each with configuration, queue and mailboxes of its own.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::unistd::{Group, User};

use crate::{NetNs, Process, poll, probe::Held, process::tail};

const DAEMONS: &str = "/usr/lib/postfix/sbin";
/// The user that mail is stored as: one that owns nothing else.
const MAIL_USER: u32 = 65_534;

/// What the server is there for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Takes mail for any address from these networks and passes it on to the next hop.
    Relay {
        /// Prefixes in Postfix's notation, IPv6 in brackets.
        networks: String,
        /// The server that gets all mail, such as `[203.0.113.25]:25`.
        next_hop: String,
    },
    /// Takes mail for one domain from anybody and stores it; offers submission on port 587 too.
    Exchanger {
        /// The domain.
        domain: String,
    },
}

/// A running server.
#[derive(Debug)]
pub struct Postfix {
    process: Process,
    dir: PathBuf,
}

impl Postfix {
    /// Starts a server on all addresses of the namespace and waits for its greeting.
    ///
    /// # Errors
    /// When Postfix is not installed or does not greet within ten seconds.
    pub fn start(ns: &NetNs, role: &Role) -> anyhow::Result<Self> {
        let mut server = Self::launch(ns, role)?;
        server.wait_ready(ns)?;
        Ok(server)
    }

    /// The same without waiting, so that several can start at once.
    ///
    /// # Errors
    /// When Postfix is not installed.
    pub fn launch(ns: &NetNs, role: &Role) -> anyhow::Result<Self> {
        let dir = ns.dir().join(format!("{}-postfix", ns.name()));
        lay_out(&dir)?;
        let etc = dir.join("etc");
        fs::write(etc.join("main.cf"), main_cf(&dir, ns.name(), role)).context("write main.cf")?;
        fs::write(etc.join("master.cf"), master_cf(role)).context("write master.cf")?;
        let mut command = ns.command(Path::new(DAEMONS).join("master"));
        command.arg("-d").arg("-c").arg(&etc);
        Ok(Self {
            process: ns.spawn("postfix", command)?,
            dir,
        })
    }

    /// Waits until it greets on port 25.
    ///
    /// # Errors
    /// When it ends or ten seconds have passed; the message holds its log.
    pub fn wait_ready(&mut self, ns: &NetNs) -> anyhow::Result<()> {
        let server = SocketAddr::from(([127, 0, 0, 1], 25));
        let process = &mut self.process;
        let ready = poll("Postfix's greeting", Duration::from_secs(10), || {
            if let Some(status) = process.status()? {
                bail!("Postfix ended: {status}");
            }
            Ok(Held::open(ns, server, Duration::from_secs(5))
                .ok()
                .map(drop))
        });
        ready.with_context(|| {
            format!(
                "Postfix wrote:\n{}{}",
                tail(&self.process.log()),
                tail(&self.log())
            )
        })
    }

    /// Its mail log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log/mail.log")).unwrap_or_default()
    }

    /// The line of its log that says what became of the message to `recipient`.
    ///
    /// # Errors
    /// When there is none before the deadline.
    pub fn outcome_for(&self, recipient: &str, limit: Duration) -> anyhow::Result<String> {
        let to = format!("to=<{recipient}>");
        poll("Postfix to be done with the message", limit, || {
            let log = self.log();
            Ok(log
                .lines()
                .find(|line| line.contains(&to))
                .map(str::to_owned))
        })
    }

    /// The messages delivered so far, headers included.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn mailbox(&self) -> anyhow::Result<Vec<String>> {
        let inbox = self.dir.join("mail/inbox/new");
        let entries = match fs::read_dir(&inbox) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(|| format!("read {}", inbox.display()))?,
        };
        let mut messages = Vec::new();
        for entry in entries {
            let path = entry.context("read the mailbox")?.path();
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            messages.push(String::from_utf8_lossy(&text).into_owned());
        }
        Ok(messages)
    }

    /// Waits for a message that holds the text, such as its subject, and returns it.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_for_mail(&self, text: &str, limit: Duration) -> anyhow::Result<String> {
        poll(&format!("mail that holds {text:?}"), limit, || {
            Ok(self
                .mailbox()?
                .into_iter()
                .find(|message| message.contains(text)))
        })
        .with_context(|| format!("the mail log ends:\n{}", tail(&self.log())))
    }

    /// Lets the server run on when this value goes.
    pub fn leave(self) {
        self.process.leave();
    }
}

/// Makes the folders that Postfix wants to find, with the owners it wants.
fn lay_out(dir: &Path) -> anyhow::Result<()> {
    let user = User::from_name("postfix").context("look up the user postfix")?;
    let owner = user
        .context("Postfix is not installed: run `./xtask/x test`")?
        .uid
        .as_raw();
    let group = Group::from_name("postdrop").context("look up the group postdrop")?;
    let drop_group = group.context("no group postdrop")?.gid.as_raw();
    let make = |name: &str, mode, uid, gid| {
        let path = dir.join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        chown(&path, Some(uid), Some(gid)).with_context(|| format!("chown {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("chmod {}", path.display()))
    };
    make("etc", 0o755, 0, 0)?;
    make("log", 0o755, 0, 0)?;
    make("data", 0o700, owner, 0)?;
    make("mail", 0o700, MAIL_USER, MAIL_USER)?;
    make("queue", 0o755, 0, 0)?;
    make("queue/pid", 0o755, 0, 0)?;
    for name in [
        "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private",
        "saved", "trace",
    ] {
        make(&format!("queue/{name}"), 0o700, owner, 0)?;
    }
    make("queue/maildrop", 0o730, owner, drop_group)?;
    make("queue/public", 0o710, owner, drop_group)
}

fn main_cf(dir: &Path, host: &str, role: &Role) -> String {
    let dir = dir.display();
    let role = match role {
        Role::Relay { networks, next_hop } => format!(
            "mynetworks = {networks}\n\
             relayhost = {next_hop}\n\
             smtpd_relay_restrictions = permit_mynetworks, reject\n"
        ),
        Role::Exchanger { domain } => format!(
            "mynetworks =\n\
             virtual_mailbox_domains = {domain}\n\
             virtual_mailbox_maps = static:inbox/\n\
             virtual_mailbox_base = {dir}/mail\n\
             virtual_uid_maps = static:{MAIL_USER}\n\
             virtual_gid_maps = static:{MAIL_USER}\n\
             smtpd_relay_restrictions = reject_unauth_destination\n"
        ),
    };
    // No name is looked up anywhere: the lab has no DNS.
    format!(
        "compatibility_level = 3.6\n\
         queue_directory = {dir}/queue\n\
         data_directory = {dir}/data\n\
         daemon_directory = {DAEMONS}\n\
         maillog_file = {dir}/log/mail.log\n\
         maillog_file_prefixes = {dir}\n\
         myhostname = {host}.example.net\n\
         mydestination =\n\
         inet_interfaces = all\n\
         inet_protocols = all\n\
         smtpd_peername_lookup = no\n\
         smtp_dns_support_level = disabled\n\
         smtp_host_lookup = native\n\
         alias_maps =\n\
         alias_database =\n\
         local_recipient_maps =\n\
         {role}"
    )
}

fn master_cf(role: &Role) -> String {
    let submission = match role {
        Role::Relay { .. } => "",
        Role::Exchanger { .. } => "submission inet n - n - - smtpd\n",
    };
    format!(
        "smtp inet n - n - - smtpd\n{submission}\
         cleanup unix n - n - 0 cleanup\n\
         qmgr unix n - n 300 1 qmgr\n\
         rewrite unix - - n - - trivial-rewrite\n\
         bounce unix - - n - 0 bounce\n\
         defer unix - - n - 0 bounce\n\
         trace unix - - n - 0 bounce\n\
         proxymap unix - - n - - proxymap\n\
         smtp unix - - n - - smtp\n\
         relay unix - - n - - smtp\n\
         error unix - - n - - error\n\
         retry unix - - n - - error\n\
         discard unix - - n - - discard\n\
         virtual unix - n n - - virtual\n\
         anvil unix - - n - 1 anvil\n\
         scache unix - - n - 1 scache\n\
         postlog unix-dgram n - n - 1 postlogd\n"
    )
}
