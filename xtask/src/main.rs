//! gate25's developer commands: `./xtask/x CMD` installs what they need and runs them.
#![expect(clippy::print_stdout, reason = "its output is what a developer reads")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod acceptance;
mod bench;
mod binaries;
mod builds;
mod cargo;
mod debian;
mod demo;
mod dist;
mod document;
mod fuzz;
mod kernels;
mod ledger;
mod lint;
mod soak;
mod table;
mod test;
mod vm;

/// gate25's developer commands.
#[derive(Debug, Parser)]
#[command(name = "xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the agent, kernel programs included: target/release/gate25.
    Build,
    /// Build what is published: packages for Debian and RPM, a tarball, checksums: target/dist.
    Dist(dist::Options),
    /// Show gate25 at work in a small provider's network made of namespaces.
    Demo(demo::Options),
    /// Run the tests, quick tiers first.
    Test(test::Options),
    /// Run the tests on other kernels, or the package's acceptance, in virtual machines without KVM.
    Vm(vm::Options),
    /// Repeat the faults under the leak meter until the time is up.
    Soak(soak::Options),
    /// Measure what gate25 costs, beside nftables and iptables with the same policy.
    Bench(bench::Options),
    /// Feed the parser, the policy loader and the settings with anything.
    Fuzz(fuzz::Options),
    /// Check format, lints and shell scripts: the first tier of `test`.
    Lint,
    /// Connect as told, inside a container.
    #[command(hide = true)]
    Tenant {
        /// `serve` and where.
        args: Vec<String>,
    },
    /// Carry frames between the taps on stdin and stdout.
    #[command(hide = true)]
    Pump,
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Build => cargo::build().map(|binary| {
            println!("{}", binary.display());
            ExitCode::SUCCESS
        }),
        Command::Dist(options) => dist::run(&options).map(|built| {
            built
                .files()
                .for_each(|file| println!("{}", file.display()));
            ExitCode::SUCCESS
        }),
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Vm(options) => vm::run(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Fuzz(options) => fuzz::command(&options),
        Command::Lint => test::run(&test::Options::only(test::Tier::Lint)),
        Command::Tenant { args } => gate25_tests::tenant(&args).map(|()| ExitCode::SUCCESS),
        Command::Pump => gate25_tests::pump_stdio().map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        println!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publish_takes_whole_tables_alone() {
        let is_taken = |words: &str| {
            let words = ["xtask"].into_iter().chain(words.split(' '));
            Args::try_parse_from(words).is_ok()
        };
        for command in ["test", "test --full", "soak", "vm"] {
            assert!(is_taken(&format!("{command} --publish")), "{command}");
            let filtered = format!("{command} --publish --filter name");
            assert!(!is_taken(&filtered), "{command}");
        }
        for part in ["vm system", "vm --kernel 6.1"] {
            assert!(is_taken(part), "{part}");
            assert!(!is_taken(&format!("{part} --publish")), "{part}");
        }
    }
}
