//! The program and its tables in a network namespace of their own.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::panic::resume_unwind;
use std::path::Path;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{
    Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf,
    SockMap,
};
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, Program, SchedClassifier, TestRun as _,
    TestRunOptions,
};
use aya::util::nr_cpus;
use gate25::dataplane::Returns;
use gate25::guard::Mark;
use gate25::kernel::bpf::{DebugLines, LoadOptions, load, skb};
use gate25_common::abi::{
    Counting, CustomerId, CustomerPolicy, InterfaceOwner, PrefixKey, PrefixValue,
};
use gate25_common::address::Family;
use gate25_common::bypass::Bypass;
use gate25_common::counters::{CustomerCounters, HostCounters, Sketch};
use gate25_common::decide::HostMode;
use gate25_common::names;
use gate25_common::redirect::{Hindrance, Hindrances};
use gate25_common::returns::ReturnCounters;
use gate25_common::testing::tables::MemoryTables;
use gate25_tests::{Lab, NetNs, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// The loopback interface of every namespace.
pub(crate) const LOOPBACK: u32 = 1;
/// A program is executed sooner than this.
const LIMIT: Duration = Duration::from_secs(5);

/// Where the notice is told.
pub(crate) const NOTICE: SocketAddr =
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 52), 2525));

/// The same for IPv6.
pub(crate) const NOTICE_V6: SocketAddr = SocketAddr::V6(SocketAddrV6::new(
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0xc000, 0x0203),
    2525,
    0,
    0,
));

/// What the program made of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Passed,
    Dropped,
    /// Sent back, changed to this.
    Answered(Vec<u8>),
    /// Let go, changed to this.
    Led(Vec<u8>),
}

/// What the kernel knows of a packet besides its bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meta {
    pub(crate) interface: u32,
    pub(crate) gso_size: u32,
}

impl Default for Meta {
    fn default() -> Self {
        Self {
            interface: LOOPBACK,
            gso_size: 0,
        }
    }
}

impl Meta {
    /// `struct __sk_buff` (include/uapi/linux/bpf.h).
    fn bytes(self) -> [u8; 192] {
        let Self {
            interface,
            gso_size,
        } = self;
        let mut bytes = [0; 192];
        bytes[40..44].copy_from_slice(&interface.to_ne_bytes());
        bytes[176..180].copy_from_slice(&gso_size.to_ne_bytes());
        bytes
    }
}

/// The loaded program. Every thread that makes one stays on one CPU, whose counters it moves.
pub(crate) struct Kernel {
    ebpf: Ebpf,
    responders: Vec<TcpListener>,
}

impl Kernel {
    /// Loads the programs, guarding port 25; what comes back to guests is not judged.
    pub(crate) fn load(host: HostMode) -> Self {
        Self::load_with(host, Returns::Open)
    }

    /// The same with what comes back to guests judged or not.
    pub(crate) fn load_with(host: HostMode, returns: Returns) -> Self {
        let mut cpus = CpuSet::new();
        cpus.set(0).expect("CPU 0 fits");
        sched_setaffinity(Pid::from_raw(0), &cpus).expect("CPU 0 exists");
        let ebpf = load(&LoadOptions {
            ports: vec![25],
            host,
            guard: Some(Mark::DEFAULT),
            notice: vec![NOTICE, NOTICE_V6],
            returns,
            layout: skb::running_kernel().expect("the kernel describes its packets"),
            debug_lines: DebugLines::Off,
            pins: None,
        })
        .expect("the program loads");
        Self {
            ebpf,
            responders: Vec::new(),
        }
    }

    /// The same on a host that is bypassed: it only observes, whatever its settings say.
    pub(crate) fn load_bypassed() -> Self {
        let mut kernel = Self::load(HostMode::Policy);
        kernel.bypass(u64::MAX);
        kernel
    }

    /// Has the programs only observe until a moment, in nanoseconds of `CLOCK_BOOTTIME`.
    pub(crate) fn bypass(&mut self, until: u64) {
        let bypass = Bypass::new(boot_time(), until, "NOC-1").expect("a short ticket");
        let mut table: Array<_, Bypass> = self.map(names::MAP_BYPASS);
        table.set(0, bypass, 0).expect("write the bypass");
    }

    /// Listens on the addresses, whoever has them, and has senders led there: one a family.
    pub(crate) fn listen(&mut self, addresses: &[SocketAddr]) {
        for address in addresses {
            let (index, family) = match address {
                SocketAddr::V4(_) => (Family::V4 as u32, "ipv4"),
                SocketAddr::V6(_) => (Family::V6 as u32, "ipv6"),
            };
            let nonlocal = format!("/proc/sys/net/{family}/ip_nonlocal_bind");
            fs::write(nonlocal, "1").expect("addresses of others can be bound");
            // A program that another test starts has this one's sockets until it is executed.
            let listener = poll(
                "the address to be free",
                LIMIT,
                || match TcpListener::bind(address) {
                    Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
                    other => Ok(Some(other?)),
                },
            )
            .expect("the address is free");
            let mut responders: SockMap<_> = self.map(names::MAP_RESPONDERS);
            responders
                .set(index, &listener, 0)
                .expect("insert a socket");
            self.responders.push(listener);
        }
    }

    /// Closes what was listened on.
    pub(crate) fn fall_silent(&mut self) {
        self.responders.clear();
    }

    /// Writes `tables`, whose owner is that of the workload at `interface`.
    pub(crate) fn fill(&mut self, interface: u32, tables: &MemoryTables) {
        self.own(interface, tables.owner);
        let mut customers: HashMap<_, CustomerId, CustomerPolicy> = self.map(names::MAP_CUSTOMERS);
        for (customer, policy) in &tables.policies {
            customers
                .insert(*customer, *policy, 0)
                .expect("insert a policy");
        }
        let mut prefixes: LpmTrie<_, PrefixKey, PrefixValue> = self.map(names::MAP_PREFIXES);
        for (set, contents) in &tables.prefixes {
            for ((address, length), value) in contents {
                let key = Key::new(64 + u32::from(*length), PrefixKey::new(*set, *address));
                prefixes.insert(&key, *value, 0).expect("insert a prefix");
            }
        }
        for customer in tables.policies.keys() {
            self.track(*customer);
        }
    }

    /// Gives the workload at `interface` to `owner`.
    pub(crate) fn own(&mut self, interface: u32, owner: Option<CustomerId>) {
        let mut interfaces: HashMap<_, u32, InterfaceOwner> = self.map(names::MAP_INTERFACES);
        match owner {
            Some(owner) => interfaces
                .insert(interface, InterfaceOwner::new(owner, Counting::All), 0)
                .expect("insert an interface"),
            None if interfaces.get(&interface, 0).is_ok() => {
                interfaces.remove(&interface).expect("remove an interface");
            }
            None => {}
        }
    }

    /// Gives the control group with this id to `owner`.
    pub(crate) fn own_cgroup(&mut self, id: u64, owner: Option<CustomerId>) {
        let mut cgroups: HashMap<_, u64, CustomerId> = self.map(names::MAP_CGROUPS);
        match owner {
            Some(owner) => cgroups.insert(id, owner, 0).expect("insert a group"),
            None if cgroups.get(&id, 0).is_ok() => cgroups.remove(&id).expect("remove a group"),
            None => {}
        }
    }

    /// What is counted of the packets from `interface`.
    pub(crate) fn count(&mut self, interface: u32, counting: Counting) {
        let mut interfaces: HashMap<_, u32, InterfaceOwner> = self.map(names::MAP_INTERFACES);
        let owner = interfaces.get(&interface, 0).expect("its owner");
        let owner = InterfaceOwner::new(owner.customer(), counting);
        interfaces
            .insert(interface, owner, 0)
            .expect("insert an interface");
    }

    /// Gives a customer counters and a sketch.
    pub(crate) fn track(&mut self, customer: CustomerId) {
        let cpus = nr_cpus().expect("the CPUs can be counted");
        let zeros = vec![CustomerCounters::ZERO; cpus];
        let zeros = PerCpuValues::try_from(zeros).expect("one a CPU");
        let mut counters: PerCpuHashMap<_, CustomerId, CustomerCounters> =
            self.map(names::MAP_CUSTOMER_COUNTERS);
        counters
            .insert(customer, zeros, 0)
            .expect("insert counters");
        let zeros = PerCpuValues::try_from(vec![ReturnCounters::ZERO; cpus]).expect("one a CPU");
        let mut returns: PerCpuHashMap<_, CustomerId, ReturnCounters> =
            self.map(names::MAP_RETURN_CUSTOMERS);
        returns.insert(customer, zeros, 0).expect("insert counters");
        let mut sketches: HashMap<_, CustomerId, Sketch> = self.map(names::MAP_SKETCHES);
        sketches
            .insert(customer, Sketch::EMPTY, 0)
            .expect("insert a sketch");
    }

    /// Gives a customer another one's policy.
    pub(crate) fn adopt(&mut self, from: CustomerId, to: CustomerId) {
        let mut customers: HashMap<_, CustomerId, CustomerPolicy> = self.map(names::MAP_CUSTOMERS);
        let policy = customers.get(&from, 0).expect("a policy");
        customers.insert(to, policy, 0).expect("insert a policy");
    }

    /// Takes a customer's policy away.
    pub(crate) fn forget(&mut self, customer: CustomerId) {
        let mut customers: HashMap<_, CustomerId, CustomerPolicy> = self.map(names::MAP_CUSTOMERS);
        customers.remove(&customer).expect("remove a policy");
    }

    /// Runs the program on `packet`.
    pub(crate) fn run(&self, packet: &[u8], meta: Meta) -> Action {
        let (action, bytes) = self.raw(packet, meta);
        match action {
            -1 if bytes == packet => Action::Passed,
            -1 => Action::Led(bytes),
            2 => Action::Dropped,
            7 => Action::Answered(bytes),
            other => panic!("the program returned {other}"),
        }
    }

    /// Puts the programs for control groups on the group at `path`, until this is dropped.
    pub(crate) fn attach(&mut self, path: &Path) {
        // More than one may be there all the same (kernel 5.7).
        let mode = CgroupAttachMode::Single;
        let group = File::open(path).expect("the group");
        for name in names::PROGRAMS {
            let program = self.ebpf.program_mut(name).expect("the program");
            if let Program::CgroupSkb(program) = program {
                program
                    .attach(&group, CgroupSkbAttachType::Egress, mode)
                    .map(drop)
                    .expect("attach to packets");
            } else if let Program::CgroupSockAddr(program) = program {
                program
                    .attach(&group, mode)
                    .map(drop)
                    .expect("attach to connects");
            } else if let Program::CgroupSock(program) = program {
                program
                    .attach(&group, mode)
                    .map(drop)
                    .expect("attach to sockets");
            }
        }
    }

    /// Runs the program for control groups on the packet in `frame`, which is plain Ethernet.
    pub(crate) fn run_egress(&self, frame: &[u8], meta: Meta) -> Action {
        let program = self
            .ebpf
            .program(names::PROGRAM_CGROUP_EGRESS)
            .expect("the program");
        let program: &CgroupSkb = program.try_into().expect("one for control groups");
        let context = meta.bytes();
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .unwrap_or_else(|error| panic!("run {frame:02x?} with {meta:?}: {error:?}"));
        match result.return_value {
            1 => Action::Passed,
            0 => Action::Dropped,
            other => panic!("the program returned {other}"),
        }
    }

    /// Runs the program on `packet`; what it returned, and what has become of the packet.
    pub(crate) fn raw(&self, packet: &[u8], meta: Meta) -> (i32, Vec<u8>) {
        self.classify(names::PROGRAM_TC_INGRESS, packet, meta)
    }

    /// Runs the program for replies on `packet`.
    pub(crate) fn reply(&self, packet: &[u8], meta: Meta) -> (i32, Vec<u8>) {
        self.classify(names::PROGRAM_TC_EGRESS, packet, meta)
    }

    fn classify(&self, name: &str, packet: &[u8], meta: Meta) -> (i32, Vec<u8>) {
        let program = self.ebpf.program(name).expect("the program");
        let program: &SchedClassifier = program.try_into().expect("a classifier");
        let context = meta.bytes();
        let mut out = vec![0; packet.len() + 256];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .unwrap_or_else(|error| panic!("run {packet:02x?} with {meta:?}: {error:?}"));
        out.truncate(result.data_size_out as usize);
        (result.return_value as i32, out)
    }

    pub(crate) fn host_counters(&self) -> HostCounters {
        let map = self.ebpf.map(names::MAP_HOST_COUNTERS).expect("the table");
        let counters: PerCpuArray<_, HostCounters> = map.try_into().expect("its type");
        let mut sum = HostCounters::ZERO;
        for counters in counters.get(&0, 0).expect("its value").iter() {
            sum.add(counters);
        }
        sum
    }

    pub(crate) fn hindrances(&self, hindrance: Hindrance) -> u64 {
        let map = self.ebpf.map(names::MAP_HINDRANCES).expect("the table");
        let counters: PerCpuArray<_, Hindrances> = map.try_into().expect("its type");
        let mut sum = Hindrances::ZERO;
        for counters in counters.get(&0, 0).expect("its value").iter() {
            sum.add(counters);
        }
        sum.of(hindrance)
    }

    pub(crate) fn customer_counters(&self, customer: CustomerId) -> CustomerCounters {
        let map = self
            .ebpf
            .map(names::MAP_CUSTOMER_COUNTERS)
            .expect("the table");
        let counters: PerCpuHashMap<_, CustomerId, CustomerCounters> =
            map.try_into().expect("its type");
        let mut sum = CustomerCounters::ZERO;
        for counters in counters.get(&customer, 0).expect("its value").iter() {
            sum.add(counters);
        }
        sum
    }

    /// What came back to the host's guests.
    pub(crate) fn returns(&self) -> ReturnCounters {
        let map = self
            .ebpf
            .map(names::MAP_RETURN_COUNTERS)
            .expect("the table");
        let counters: PerCpuArray<_, ReturnCounters> = map.try_into().expect("its type");
        summed(&counters.get(&0, 0).expect("its value"))
    }

    /// What came back to a customer.
    pub(crate) fn customer_returns(&self, customer: CustomerId) -> ReturnCounters {
        let map = self
            .ebpf
            .map(names::MAP_RETURN_CUSTOMERS)
            .expect("the table");
        let counters: PerCpuHashMap<_, CustomerId, ReturnCounters> =
            map.try_into().expect("its type");
        summed(&counters.get(&customer, 0).expect("its value"))
    }

    pub(crate) fn sketch(&self, customer: CustomerId) -> Sketch {
        let map = self.ebpf.map(names::MAP_SKETCHES).expect("the table");
        let sketches: HashMap<_, CustomerId, Sketch> = map.try_into().expect("its type");
        sketches.get(&customer, 0).expect("its value")
    }

    pub(crate) fn events(&mut self) -> RingBuf<&mut MapData> {
        self.map(names::MAP_EVENTS)
    }

    fn map<'a, M: TryFrom<&'a mut Map, Error = MapError>>(&'a mut self, name: &str) -> M {
        let map = self.ebpf.map_mut(name).expect("the table");
        map.try_into().expect("its type")
    }
}

fn summed(values: &PerCpuValues<ReturnCounters>) -> ReturnCounters {
    values.iter().fold(ReturnCounters::ZERO, |mut sum, cpu| {
        sum.add(cpu);
        sum
    })
}

/// Runs `body` in a namespace of its own.
pub(crate) fn in_namespace(body: impl FnOnce(&NetNs) + Send) {
    let lab = Lab::for_test().expect("a lab");
    let namespace = lab.netns("kernel").expect("a namespace");
    let inside = namespace.clone();
    match namespace.run(move || body(&inside)) {
        Ok(()) => {}
        Err(error) => resume_unwind(Box::new(format!("{error:#}"))),
    }
}

/// Nanoseconds of `CLOCK_BOOTTIME`.
pub(crate) fn boot_time() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
