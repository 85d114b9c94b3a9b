//! Packets through the real programs on the real tables, by BPF_PROG_TEST_RUN, and through the
//! pure function: both decide alike.
#![cfg(feature = "root")]
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

mod verdict {
    mod bulk;
    mod cgroup;
    mod connect;
    mod counting;
    mod egress;
    mod events;
    mod kernel;
    mod redirect;
    mod reset;
    mod table;
}
