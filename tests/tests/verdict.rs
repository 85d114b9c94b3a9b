//! Packets through the real program on the real tables, by BPF_PROG_TEST_RUN, and through the
//! pure function: both decide alike.
#![cfg(feature = "root")]
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

mod verdict {
    mod bulk;
    mod counting;
    mod events;
    mod kernel;
    mod reset;
    mod table;
}
