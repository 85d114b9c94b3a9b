//! Any bytes as a policy directory of up to three files: refused or accepted, never a panic; what is
//! accepted can be compiled; and which of the files holds what changes nothing.

#![no_main]

use std::path::Path;

use gate25::compile::{CompileError, compile};
use gate25::policy::Policy;
use gate25::policy::loader::{Circumstances, Loader, Purpose, SourceFile};
use gate25_common::abi::CustomerId;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;

/// Divides the input into files: no UTF-8 holds it.
const BETWEEN: u8 = 0xff;
const NAMES: [&str; 3] = ["a.yaml", "b.yaml", "customers/c.yml"];

fuzz_target!(|input: &[u8]| {
    let contents: Vec<_> = input.splitn(NAMES.len(), |byte| *byte == BETWEEN).collect();
    for purpose in [Purpose::Check, Purpose::Run] {
        let circumstances = Circumstances {
            purpose,
            now: Timestamp::constant(1_795_000_000, 0),
            customer_key: |id| CustomerId::from_name(id).get(),
        };
        let forwards = load(contents.iter().copied(), &circumstances);
        let backwards = load(contents.iter().rev().copied(), &circumstances);
        assert_eq!(
            forwards.is_ok(),
            backwards.is_ok(),
            "the order of files decides"
        );
        if let Ok(policy) = forwards {
            check(&policy, circumstances.now);
        }
    }
});

/// The policy, or how many errors there are.
fn load<'a>(
    contents: impl Iterator<Item = &'a [u8]>,
    circumstances: &Circumstances,
) -> Result<Policy, usize> {
    let files: Vec<_> = contents
        .zip(NAMES)
        .map(|(bytes, name)| SourceFile {
            path: Path::new(name).into(),
            bytes: bytes.into(),
        })
        .collect();
    match Loader::default().load(&files, circumstances) {
        Ok(loaded) => Ok(loaded.policy),
        Err(refused) => {
            assert_ne!(refused.errors(), 0, "refused without an error");
            Err(refused.errors())
        }
    }
}

fn check(policy: &Policy, now: Timestamp) {
    match compile(policy, now) {
        Ok(image) => assert!(
            image.customers.contains_key(&CustomerId::UNASSIGNED),
            "nothing governs what nobody owns"
        ),
        // More than the tables hold, and digests that happen to be equal.
        Err(
            CompileError::TooManyExemptions(..)
            | CompileError::TooManySources(_)
            | CompileError::SetCollision(_),
        ) => {}
        Err(error @ (CompileError::CustomerCollision(..) | CompileError::Unknown { .. })) => {
            panic!("accepted, and then: {error}")
        }
    }
}
