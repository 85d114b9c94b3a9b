//! What can be found, how bad it is, and what to do about it.

use serde::{Deserialize, Serialize};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something is not as it must be, or nobody knows.
    Error,
    /// Somebody should look.
    Warning,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Whether a finding is about what covers workloads: those are counted by the agent, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// It is.
    Coverage,
    /// It is about the host, the agent or the policy.
    Host,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $word:literal $severity:ident $area:ident $advice:literal;)+) => {
        /// What was found. The words are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Kind {
            $(
                $(#[$doc])*
                #[serde(rename = $word)]
                $variant,
            )+
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word for it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// How bad it is.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)+ }
            }

            /// What it is about.
            #[must_use]
            pub const fn area(self) -> Area {
                match self { $(Self::$variant => Area::$area,)+ }
            }

            /// What to do about it.
            #[must_use]
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)+ }
            }
        }
    };
}

kinds! {
    /// An interface of a guest has neither our program nor our chain.
    ProgramMissing = "program-missing" Error Coverage
        "A running agent attaches it within a minute; if it does not, `gate25 status` says why.";
    /// Somebody else's program runs before ours.
    ProgramNotFirst = "program-not-first" Error Coverage
        "A running agent goes in front again within a minute; stop whoever attaches the other program, or have it attach behind.";
    /// Somebody else's chain runs before ours.
    ChainNotFirst = "chain-not-first" Error Coverage
        "Give the other chain a priority above -450: until then it may send packets on unseen.";
    /// A covered interface has no owner in the tables.
    OwnerMissing = "owner-missing" Error Coverage
        "Its packets are judged as nobody's; restart the agent, which then compares the tables with what they should be.";
    /// Replies to a guest are not rewritten.
    RepliesNotFirst = "replies-not-first" Error Coverage
        "Redirected connections of this guest fail; a running agent goes in front again within a minute, else restart it.";
    /// A root of cgroups lacks one of our programs.
    CgroupProgramMissing = "cgroup-program-missing" Error Coverage
        "A running agent attaches it within a minute, or a second after it failed to; where somebody attached exclusively (`bpftool cgroup tree`), stop them.";
    /// Somebody else's program is on a root of cgroups.
    CgroupProgramForeign = "cgroup-program-foreign" Warning Coverage
        "It cannot open what gate25 refuses, but it may refuse or lead elsewhere what gate25 allows: know whose it is.";
    /// Somebody else's program is on a guest's interface, behind ours.
    InterfaceProgramForeign = "interface-program-foreign" Warning Coverage
        "It sees only what gate25 lets pass, and may change or redirect that: know whose it is.";
    /// An XDP program is on a guest's interface.
    XdpProgram = "xdp-program" Error Coverage
        "XDP runs before gate25 and can send packets on unseen: take it off (`ip link set dev NAME xdp off`), or put it on the uplink.";
    /// A guest's interface carries no Ethernet frames.
    NoEthernet = "no-ethernet" Error Coverage
        "Give the guest a tap instead, or name the interface in `interfaces.ignore` if it is no guest's.";
    /// An interface sits on another and sends past the host's stack.
    Bypass = "bypassing-interface" Error Coverage
        "Connect the guest by a tap or veth in a bridge instead; if it is the host's own, name it in `interfaces.ignore`.";
    /// A guest's interface is a port of Open vSwitch.
    OpenVswitch = "openvswitch-port" Warning Coverage
        "gate25's program judges it, but the guard never sees its frames: have guests start only while the agent runs.";
    /// A card has virtual functions.
    VirtualFunctions = "virtual-functions" Warning Coverage
        "What a guest sends by one of them is not seen: filter port 25 on the switch, or give guests taps.";
    /// A network function is handed to a guest.
    HandedOn = "function-handed-on" Error Coverage
        "What the guest sends by it is not seen: filter port 25 on the switch, or give the guest a tap.";
    /// A guest's network is served by another process.
    VhostUser = "vhost-user" Error Coverage
        "The guest's frames go to that process and are not seen: filter port 25 in its switch, or give the guest a tap.";
    /// A guest has sent nothing through its interface.
    GuestSilent = "guest-silent" Warning Coverage
        "Either the guest has no network yet, or its traffic takes another way: see whether it has another card.";
    /// Packets arrive and our program does not run.
    ProgramNotRun = "program-not-run" Error Coverage
        "Something takes the packets before gate25: look for XDP programs and offloads on these interfaces.";
    /// Nobody keeps the host as the policy wants it.
    AgentStopped = "agent-stopped" Error Host
        "Start it: `systemctl start gate25`, or `gate25 run`. What it left goes on; new guests and changes wait for it.";
    /// The agent is there and does not answer.
    AgentSilent = "agent-silent" Error Host
        "Look at its log and restart it: new guests and changes of the policy wait meanwhile.";
    /// The agent says that enforcement is not complete.
    AgentProblem = "agent-problem" Error Host
        "The agent's log tells more.";
    /// The agent says that somebody should look.
    AgentWarning = "agent-warning" Warning Host
        "The agent's log tells more.";
    /// The last attempt to load the files failed.
    ReloadRefused = "reload-refused" Error Host
        "`gate25 status` says why, `gate25 check` shows every mistake in the files; the earlier policy runs meanwhile.";
    /// Another policy runs than that of the files.
    PolicySource = "policy-source" Error Host
        "`gate25 status` says why the files are not taken; once mended, they run without another start.";
    /// This host refuses nothing.
    Observing = "observing" Warning Host
        "Set `enforcement: policy` in the settings and restart the agent once the counters look right.";
    /// This host refuses nothing for a time.
    Bypassed = "bypassed" Warning Host
        "It ends by itself; `gate25 bypass end` ends it now.";
    /// No agent starts with the settings.
    SettingsInvalid = "settings-invalid" Error Host
        "Mend them before anything restarts the agent, which goes on with those that it was started with.";
    /// The policy's files are not valid.
    PolicyInvalid = "policy-invalid" Error Host
        "`gate25 check` shows every mistake; the earlier policy runs meanwhile.";
    /// Others than the owner may write the policy.
    PolicyWritable = "policy-writable" Error Host
        "Take the right away (`chmod o-w`): whoever writes there opens port 25.";
    /// The agent cannot keep its state.
    StateFolder = "state-folder" Error Host
        "Make the folder writable for the agent: without it a start with broken files has no policy to go on with.";
    /// Others than the owner and its group may ask the agent.
    SocketOpen = "socket-open" Error Host
        "Restart the agent, which makes it anew, and see who changed its mode.";
    /// The clock shows a time before the program was built.
    ClockBehind = "clock-behind" Error Host
        "Set the clock, and see to time synchronisation: exemptions begin and end by it.";
    /// There is no BPF filesystem.
    PinsMissing = "bpf-filesystem-missing" Error Host
        "`gate25 prepare` mounts it, as root; then restart the agent: without it nothing outlives the agent.";
    /// Others may open our tables.
    PinsOpen = "pins-open" Error Host
        "`chmod 0700` the folder: whoever opens a table may change the policy in it.";
    /// The kernel lacks what the eBPF backend needs.
    KernelFeature = "kernel-feature-missing" Error Host
        "Boot a kernel that has it, or set `backend: nftables`, which covers interfaces only.";
    /// The kernel has no tcx.
    NoTcx = "no-tcx" Warning Host
        "Linux 6.6 has it. Without it filters are used, and `redirect` and `notice` reject.";
    /// A refused connect ends in EPERM.
    NoConnectError = "no-connect-error" Warning Host
        "Linux 5.18 lets a container's refused connect end in \"connection refused\".";
    /// The kernel does not show its types.
    NoBtf = "no-btf" Warning Host
        "Boot a kernel with CONFIG_DEBUG_INFO_BTF: checksums that guests leave to the host are not watched.";
    /// The agent lacks a privilege.
    CapabilityMissing = "capability-missing" Warning Host
        "Give the agent's unit the capability; README tells what each is for.";
    /// nft is not there.
    NftMissing = "nft-missing" Error Host
        "Install nftables: the guard, or the backend, cannot do without.";
    /// nft or the kernel cannot do what is needed.
    NftUnfit = "nft-unfit" Error Host
        "nft 1.0.6 and Linux 5.17 can: update, or set `guard: false` if that is what fails.";
    /// The guard is not there.
    GuardMissing = "guard-missing" Error Host
        "A running agent puts it back within a second; else `gate25 guard --print | nft -j -f -`, and enable gate25-guard.service.";
    /// The guard is not as it should be.
    GuardAltered = "guard-altered" Error Host
        "`gate25 guard --print | nft -j -f -` puts it right; see who changes tables called gate25_guard, or whether the settings changed since the agent started.";
    /// Others use the guard's bit of the mark.
    MarkShared = "mark-shared" Warning Host
        "Give the guard another bit with `guard_mark`, and restart the agent.";
    /// Others have chains where guests' frames pass.
    ForeignChains = "foreign-chains" Warning Host
        "Know whose they are: a manager that flushes the whole ruleset takes gate25's tables along, which a running agent puts back within a second.";
    /// A service replaces the ruleset.
    RulesetManager = "ruleset-manager" Warning Host
        "Enable gate25-guard.service, which loads the guard again after it.";
    /// Containers are to be judged and there is no version 2 hierarchy.
    CgroupsMissing = "cgroup2-missing" Error Host
        "Mount cgroup2, or set `cgroups: {roots: []}` if there are no containers.";
    /// The kernel loses sockets' cgroups.
    Misattributed = "sockets-misattributed" Error Host
        "Stop using the version 1 controllers net_cls and net_prio, or boot Linux 5.15 or later: containers are not judged.";
    /// Controllers that may make the kernel do so.
    NetworkControllers = "network-controllers" Warning Host
        "Before Linux 5.15 they make sockets lose their cgroup once they are used: unmount them.";
    /// A root that the settings name is not there.
    RootAbsent = "root-absent" Warning Host
        "Make the cgroup before the first container, or correct `cgroups.roots`: containers of a root that appears later are judged some milliseconds late.";
    /// Something could not be looked at.
    NotExamined = "not-examined" Error Host
        "Run `gate25 doctor` as root; what was not looked at is not known to be right.";
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub kind: Kind,
    /// What it is about: an interface, a cgroup, a file. May hold text of tenants.
    pub subject: String,
    /// What was seen. May hold text of tenants.
    pub message: String,
    /// What to do about it.
    pub advice: String,
}

impl Finding {
    /// A finding about `subject`.
    #[must_use]
    pub fn new(kind: Kind, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: kind.severity(),
            kind,
            subject: subject.into(),
            message: message.into(),
            advice: kind.advice().to_owned(),
        }
    }

    /// Whether two findings are the same, however they are worded.
    #[must_use]
    pub fn is_about_the_same(&self, other: &Self) -> bool {
        self.kind == other.kind && self.subject == other.subject
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn words_are_unique_and_kebab_case_and_advice_is_a_sentence() {
        let words: BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(words.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let word = kind.as_str();
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(word.chars().all(plain), "{word}");
            assert!(kind.advice().ends_with('.'), "{word}");
            assert_eq!(serde_json::to_value(kind).unwrap(), word);
        }
    }
}
