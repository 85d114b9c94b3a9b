//! The keys of `gate25.yaml`, and what they become.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use super::cgroups::CgroupRoot;
use super::notice::NoticeMap;
use super::scalar::{GroupName, HostName, SocketPath};
use super::{
    Backend, Control, Enforcement, Http, Interfaces, Log, LogFormat, LogLevel, Reload, Settings,
};
use crate::dataplane::Returns;
use crate::diagnostic::{Diagnostic, Location, Position, Problems, quoted};
use crate::guard::Mark;
use crate::policy::Pattern;
use crate::policy::scalar::InterfacePattern;
use crate::yaml::read::{At, Placed, Reader, keys};
use crate::yaml::scalar::{FilePath, Number, Span, Truth, Version};
use crate::yaml::tree;

const MAX_PORTS: usize = 8;
/// Ports on which guests submit mail with a password.
const SUBMISSION: [u16; 2] = [465, 587];

keys! {
    /// Settings of one host.
    struct SettingsMap {
        /// Version of the language: every file says `schema: 1`.
        required schema: At<Version>,
        /// `policy` enforces what the policy says; `observe` refuses nothing.
        optional enforcement: At<Enforcement>,
        /// What `hosts:` is matched against; the host's name where nothing is said.
        optional host: At<HostName>,
        /// The policy directory.
        optional policy_dir: At<FilePath>,
        /// Where the agent keeps what it must find again.
        optional state_dir: At<FilePath>,
        /// What enforces: `auto`, `ebpf` or `nftables`.
        optional backend: At<Backend>,
        /// Whether nftables stops what leaves guests before the programs are in place.
        optional guard: At<Truth>,
        /// The bit of the packet's mark by which the guard knows packets that were judged.
        optional guard_mark: At<Mark>,
        /// Destination ports that are judged.
        optional guarded_ports: Placed<Vec<At<Number<1, 65535, u16>>>>,
        /// Whether packets that come back to guests from guarded ports are judged.
        optional block_return: At<Truth>,
        /// Which interfaces are workloads.
        optional interfaces: InterfacesMap,
        /// Which cgroups are workloads.
        optional cgroups: CgroupsMap,
        /// When the policy is read again.
        optional reload: ReloadMap,
        /// The HTTP endpoint.
        optional http: HttpMap,
        /// Where commands reach the agent.
        optional control: ControlMap,
        /// The server that tells senders why their mail is not taken.
        optional notice: NoticeMap,
        /// What is logged, and how.
        optional log: LogMap,
    }
}

keys! {
    /// Which interfaces are workloads.
    struct InterfacesMap {
        /// Patterns of those that are.
        optional r#match: Placed<Vec<At<InterfacePattern>>>,
        /// Patterns of those among them that are not.
        optional ignore: Vec<At<InterfacePattern>>,
    }
}

keys! {
    /// Which cgroups are workloads.
    struct CgroupsMap {
        /// Patterns of the cgroups below which they are; `[]` means no containers.
        optional roots: Vec<At<CgroupRoot>>,
    }
}

keys! {
    /// When the policy is read again.
    struct ReloadMap {
        /// How long nothing must have changed.
        optional quiet_time: At<Span<10, 60_000>>,
        /// How often the files are compared, changes seen or not.
        optional rescan: At<Span<1000, 86_400_000>>,
        /// A set that loses more than this part of its objects is not applied unasked.
        optional max_shrink_percent: At<Number<1, 100, u8>>,
        /// Sets with fewer objects than this may shrink as they like.
        optional shrink_min_objects: At<Number<0, 1_000_000>>,
    }
}

keys! {
    /// The HTTP endpoint.
    struct HttpMap {
        /// Addresses and ports to listen on.
        optional listen: Vec<At<SocketAddr>>,
        /// File with TLS and passwords.
        optional web_config: At<FilePath>,
        /// Customers with series of their own.
        optional customer_series_limit: At<Number<0, 1_000_000>>,
    }
}

keys! {
    /// Where commands reach the agent.
    struct ControlMap {
        /// Path of the socket.
        optional socket: At<SocketPath>,
        /// Group whose members may read and reload.
        optional group: At<GroupName>,
    }
}

keys! {
    /// What is logged, and how.
    struct LogMap {
        /// The least important that is logged.
        optional level: At<LogLevel>,
        /// How it is written.
        optional format: At<LogFormat>,
    }
}

/// Reads the file; what was refused is in `problems`, and the settings hold a default there.
pub(super) fn read(file: &Arc<Path>, bytes: &[u8], problems: &mut Problems) -> Option<Settings> {
    let root = tree::parse(file, bytes, problems)?;
    let map = SettingsMap::from_entries(&root, &mut Reader::new(file, problems), true)?;
    let SettingsMap {
        schema: _,
        enforcement,
        host,
        policy_dir,
        state_dir,
        backend,
        guard,
        guard_mark,
        guarded_ports,
        block_return,
        interfaces,
        cgroups,
        reload,
        http,
        control,
        notice,
        log,
    } = map;
    let mut settings = Settings::default();
    set(&mut settings.enforcement, enforcement);
    settings.host = host.and_then(|host| host.value.0);
    let mut judge = Judge { file, problems };
    judge.directories(policy_dir, state_dir, &mut settings);
    set(&mut settings.backend, backend);
    settings.guard = judge.guard(guard, guard_mark);
    if let Some(ports) = guarded_ports {
        settings.guarded_ports = judge.ports(&ports);
    }
    if let Some(At {
        value: Truth(block),
        at: _,
    }) = block_return
    {
        settings.block_return = if block {
            Returns::Judged
        } else {
            Returns::Open
        };
    }
    if let Some(map) = interfaces {
        judge.interfaces(map, &mut settings.interfaces);
    }
    if let Some(roots) = cgroups.and_then(|map| map.roots) {
        settings.cgroups.roots = judge.roots(roots);
    }
    if let Some(map) = http {
        judge.http(map, &mut settings.http);
    }
    if let Some(map) = notice {
        judge.notice(map, &settings.guarded_ports, &mut settings.notice);
    }
    set_reload(reload, &mut settings.reload);
    set_control(control, &mut settings.control);
    set_log(log, &mut settings.log);
    Some(settings)
}

fn set<T>(target: &mut T, value: Option<At<T>>) {
    if let Some(At { value, at: _ }) = value {
        *target = value;
    }
}

fn set_reload(map: Option<ReloadMap>, reload: &mut Reload) {
    let Some(ReloadMap {
        quiet_time,
        rescan,
        max_shrink_percent,
        shrink_min_objects,
    }) = map
    else {
        return;
    };
    if let Some(At {
        value: Span(quiet),
        at: _,
    }) = quiet_time
    {
        reload.quiet_time = quiet;
    }
    if let Some(At {
        value: Span(rescan),
        at: _,
    }) = rescan
    {
        reload.rescan = rescan;
    }
    if let Some(percent) = max_shrink_percent {
        reload.max_shrink_percent = percent.value.0;
    }
    if let Some(objects) = shrink_min_objects {
        reload.shrink_min_objects = objects.value.0;
    }
}

fn set_control(map: Option<ControlMap>, control: &mut Control) {
    let Some(ControlMap { socket, group }) = map else {
        return;
    };
    if let Some(socket) = socket {
        control.socket = socket.value.0;
    }
    if let Some(group) = group {
        control.group = group.value.0;
    }
}

fn set_log(map: Option<LogMap>, log: &mut Log) {
    let Some(LogMap { level, format }) = map else {
        return;
    };
    set(&mut log.level, level);
    set(&mut log.format, format);
}

/// Rules that concern more than one scalar.
pub(super) struct Judge<'a> {
    pub(super) file: &'a Arc<Path>,
    pub(super) problems: &'a mut Problems,
}

impl Judge<'_> {
    /// Where the policy and the state are: state inside the policy would be read as policy.
    fn directories(
        &mut self,
        policy_dir: Option<At<FilePath>>,
        state_dir: Option<At<FilePath>>,
        settings: &mut Settings,
    ) {
        let at = state_dir.as_ref().or(policy_dir.as_ref()).map(|dir| dir.at);
        if let Some(dir) = policy_dir {
            settings.policy_dir = dir.value.0;
        }
        if let Some(dir) = state_dir {
            settings.state_dir = dir.value.0;
        }
        let Some(at) = at.filter(|_| settings.state_dir.starts_with(&settings.policy_dir)) else {
            return;
        };
        let message = "`state_dir` lies inside `policy_dir`";
        self.problems.push(
            Diagnostic::error("bad-path", Location::at(self.file, at), message)
                .help("what the agent keeps would be read as policy: put it elsewhere"),
        );
    }

    fn guard(&mut self, guard: Option<At<Truth>>, mark: Option<At<Mark>>) -> Option<Mark> {
        let off = guard.is_some_and(|guard| guard.value == Truth(false));
        match mark {
            Some(At { value: _, at }) if off => {
                let message = "`guard_mark` has no effect without the guard";
                self.problems.push(
                    Diagnostic::warning("no-effect", Location::at(self.file, at), message)
                        .help("remove it, or write `guard: true`"),
                );
                None
            }
            None if off => None,
            Some(At { value, at: _ }) => Some(value),
            None => Some(Mark::DEFAULT),
        }
    }

    fn ports(&mut self, list: &Placed<Vec<At<Number<1, 65535, u16>>>>) -> Vec<u16> {
        let mut seen = BTreeMap::new();
        for At {
            value: Number(port),
            at,
        } in &list.value
        {
            self.once(&mut seen, *port, *at);
            if SUBMISSION.contains(port) {
                let message = format!("port {port} is for submission with a password");
                self.problems.push(
                    Diagnostic::warning("submission-port", Location::at(self.file, *at), message)
                        .help("guarding it stops guests from using their own provider's relay"),
                );
            }
        }
        if seen.is_empty() || seen.len() > MAX_PORTS {
            let message = format!("{} ports are listed", seen.len());
            self.problems.push(
                Diagnostic::error("port-count", Location::at(self.file, list.at), message)
                    .help(format!("list 1 to {MAX_PORTS} ports")),
            );
        }
        seen.into_keys().collect()
    }

    fn interfaces(&mut self, map: InterfacesMap, interfaces: &mut Interfaces) {
        let InterfacesMap { r#match, ignore } = map;
        if let Some(Placed { value: list, at }) = r#match {
            if list.is_empty() {
                let message = "no interface is a workload";
                self.problems.push(
                    Diagnostic::warning("nothing-guarded", Location::at(self.file, at), message)
                        .help("list the patterns of the guests' interfaces"),
                );
            }
            interfaces.matched = self.patterns(list);
        }
        if let Some(list) = ignore {
            interfaces.ignored = self.patterns(list);
        }
    }

    fn patterns(&mut self, list: Vec<At<InterfacePattern>>) -> Vec<Pattern> {
        let mut seen = BTreeMap::new();
        list.into_iter()
            .map(
                |At {
                     value: InterfacePattern(pattern),
                     at,
                 }| {
                    self.once(&mut seen, pattern.clone(), at);
                    pattern
                },
            )
            .collect()
    }

    fn http(&mut self, map: HttpMap, http: &mut Http) {
        let HttpMap {
            listen,
            web_config,
            customer_series_limit,
        } = map;
        if let Some(listen) = listen {
            let mut seen = BTreeMap::new();
            for At { value, at } in listen {
                self.once(&mut seen, value, at);
            }
            http.listen = seen.into_keys().collect();
        }
        http.web_config = web_config.map(|path| path.value.0);
        if let Some(At {
            value: Number(limit),
            at: _,
        }) = customer_series_limit
        {
            http.customer_series_limit = limit;
        }
    }

    pub(super) fn once<T: Ord + ToString>(
        &mut self,
        seen: &mut BTreeMap<T, Position>,
        item: T,
        at: Position,
    ) {
        if let Some(first) = seen.get(&item) {
            let message = format!("{} is listed twice", quoted(&item.to_string()));
            self.problems.push(
                Diagnostic::error("duplicate-item", Location::at(self.file, at), message)
                    .help("remove one of them")
                    .related(Location::at(self.file, *first), "first listed here"),
            );
            return;
        }
        seen.insert(item, at);
    }
}
