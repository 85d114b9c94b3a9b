//! Labs in network namespaces for gate25's tests and its demo.
