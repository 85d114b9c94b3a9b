//! Sockets that are used in ways that nobody thinks of, and networks whose masters are tenants.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod evasion {
    mod networks;
    #[expect(dead_code, reason = "most packets are made by others here")]
    mod packets;
    mod sockets;
    mod tenants;
}
