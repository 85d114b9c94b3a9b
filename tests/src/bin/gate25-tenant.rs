//! What the lab runs inside containers: connects as it is told.

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    gate25_tests::tenant(&args)
}
