//! Any bytes as `gate25.yaml`: refused with a reason or accepted, never a panic.

#![no_main]

use std::path::Path;
use std::sync::Arc;

use gate25::settings;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let file: Arc<Path> = Path::new("gate25.yaml").into();
    match settings::parse(&file, input) {
        Ok(loaded) => assert!(
            (1..=8).contains(&loaded.settings.guarded_ports.len()),
            "settings that guard nothing were accepted"
        ),
        Err(problems) => assert!(!problems.is_empty(), "refused without a reason"),
    }
});
