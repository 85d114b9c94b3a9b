//! The lab's containers: without an agent every runtime's reach everybody.
#![cfg(feature = "root")]

use gate25_tests::{Network, Runtime, World};

#[test]
fn container_without_agent_reaches_the_exchanger_by_every_runtime() {
    for runtime in [Runtime::Lab, Runtime::Crun, Runtime::Podman, Runtime::Lxc] {
        let world = World::new().unwrap();
        for (name, network) in [
            ("shared", Network::Hypervisor),
            ("own", Network::own(104, "ct104")),
        ] {
            let container = world
                .container_by(runtime, name, &network)
                .unwrap_or_else(|error| panic!("{runtime:?}, {name}: {error:#}"));
            world
                .check_free(&container.tenant)
                .unwrap_or_else(|error| panic!("{runtime:?}, {name}: {error:#}"));
            let inside = container.cgroup.processes().unwrap();
            assert!(!inside.is_empty(), "{runtime:?}, {name}");
        }
    }
}
