//! Packets through the real programs on the real tables, by BPF_PROG_TEST_RUN, through the real
//! nftables backend, and through the pure function: all decide alike.
#![cfg(feature = "root")]
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

mod verdict {
    mod agreement;
    mod bulk;
    mod bypass;
    mod cgroup;
    mod connect;
    mod counting;
    mod egress;
    mod events;
    mod form;
    mod kernel;
    mod moments;
    mod pure;
    mod random;
    mod redirect;
    mod reset;
    mod returns;
    mod table;
}
