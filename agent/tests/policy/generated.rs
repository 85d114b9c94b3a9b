//! Big sets, made by rule.

use std::fmt::Write as _;
use std::time::Instant;

use gate25::policy::loader::{Loader, Purpose, SourceFile};
use gate25::policy::ownership::{Owner, Ownership};

use super::{DEFAULT, circumstances, file};

const CUSTOMERS: usize = 10_000;
const PREFIXES: usize = 10;
const FILES: usize = 100;

/// A valid set: `files` files, each with its share of `customers` customers, each with an
/// interface `tap<number>i0` and an allowlist of `prefixes` prefixes of its own; the set's other
/// names are in `base.yaml`.
pub(crate) fn policy_set(customers: usize, prefixes: usize, files: usize) -> Vec<SourceFile> {
    let mut texts = vec![(String::new(), String::new()); files];
    for customer in 0..customers {
        let (lists, owners) = &mut texts[customer * files / customers];
        let nets: Vec<_> = (0..prefixes)
            .map(|i| prefix(customer * prefixes + i))
            .collect();
        writeln!(
            lists,
            "  - name: list-{customer}\n    to: [{}]",
            nets.join(", ")
        )
        .unwrap();
        writeln!(
            owners,
            "  - id: c-{customer}\n    name: Customer {customer} Ltd\n    allow: [list-{customer}]\n    \
             workloads:\n      - {{interface: \"tap{customer}i*\", hosts: [\"hv-*\"]}}",
        )
        .unwrap();
    }
    let mut set: Vec<_> = texts
        .into_iter()
        .enumerate()
        .map(|(index, (lists, owners))| {
            let text = format!("schema: 1\nallowlists:\n{lists}customers:\n{owners}");
            file(&format!("customers-{index:03}.yaml"), text)
        })
        .collect();
    set.push(file("base.yaml", DEFAULT));
    set
}

/// Two in three are IPv4.
fn prefix(number: usize) -> String {
    let (a, b, c) = (number >> 16 & 0x3f, number >> 8 & 0xff, number & 0xff);
    match number % 3 {
        0 => format!("\"2001:db8:{a:x}:{b:x}{c:02x}::/64\""),
        _ => format!("{}.{b}.{c}.0/24", 100 + a),
    }
}

#[test]
fn large_set_loads_and_an_edit_parses_one_file() {
    let mut set = policy_set(CUSTOMERS, PREFIXES, FILES);
    let bytes: usize = set.iter().map(|file| file.bytes.len()).sum();
    let mut loader = Loader::default();
    let begin = Instant::now();
    let first = loader.load(&set, &circumstances(Purpose::Check)).unwrap();
    let cold = begin.elapsed();
    assert_eq!(first.parsed, FILES + 1);
    assert_eq!(first.policy.customers.len(), CUSTOMERS);
    assert_eq!(
        first
            .policy
            .allowlists
            .values()
            .map(|list| list.to.len())
            .sum::<usize>(),
        100_000
    );

    set[7].bytes = [&*set[7].bytes, b"  - id: new\n"].concat().into();
    let begin = Instant::now();
    let second = loader.load(&set, &circumstances(Purpose::Run)).unwrap();
    let edit = begin.elapsed();
    assert_eq!(second.parsed, 1);
    assert_eq!(second.policy.customers.len(), CUSTOMERS + 1);
    assert_ne!(first.hash, second.hash);
    println!(
        "{} files, {bytes} bytes: loaded in {cold:?}, one file edited in {edit:?}",
        set.len()
    );
    // A quadratic step would take minutes.
    assert!(cold.as_secs() < 60, "{cold:?}");
}

#[test]
fn ownership_of_a_thousand_interfaces_among_ten_thousand_customers_is_found() {
    let set = policy_set(CUSTOMERS, 0, FILES);
    let loaded = Loader::default()
        .load(&set, &circumstances(Purpose::Run))
        .unwrap();
    let begin = Instant::now();
    let ownership = Ownership::new(&loaded.policy, "hv-1");
    let prepared = begin.elapsed();
    for number in 0..1000 {
        let name = format!("tap{number}i0");
        let expected = format!("c-{number}");
        let owner = ownership.of_interface(&name);
        assert!(
            matches!(owner, Owner::Customer(id, _) if id == expected),
            "{name}: {owner:?}"
        );
    }
    println!(
        "ownership prepared in {prepared:?}, 1,000 names in {:?}",
        begin.elapsed() - prepared
    );
}

#[test]
fn patterns_that_start_alike_are_still_compared_in_bounded_time() {
    let mut text = "schema: 1\ncustomers:\n".to_owned();
    for customer in 0..CUSTOMERS {
        writeln!(
            text,
            "  - {{id: c-{customer}, workloads: [{{interface: \"*-{customer}e\"}}]}}"
        )
        .unwrap();
    }
    let set = [file("a.yaml", text), file("default.yaml", DEFAULT)];
    let begin = Instant::now();
    let loaded = Loader::default()
        .load(&set, &circumstances(Purpose::Check))
        .unwrap();
    let taken = begin.elapsed();
    assert_eq!(loaded.policy.customers.len(), CUSTOMERS);
    println!("{CUSTOMERS} patterns without a common beginning to sort by: {taken:?}");
    assert!(taken.as_secs() < 120, "{taken:?}");
}
