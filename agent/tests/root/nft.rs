//! nft as the agent runs it.

use gate25::kernel::nft::{Nft, NftError};
use nftables::batch::Batch;
use nftables::schema::{NfListObject, Nftables, Table};
use nftables::types::NfFamily;

use crate::netns::{run, within};

#[test]
fn ruleset_that_is_applied_is_listed_again() {
    within(|| async {
        let nft = Nft::default();
        assert!(nft.table(NfFamily::INet, "probe").unwrap().is_none());
        nft.check(&table("probe")).unwrap();
        assert!(!nft.has_table(NfFamily::INet, "probe").unwrap());
        nft.apply(&table("probe")).unwrap();
        let listed = nft.table(NfFamily::INet, "probe").unwrap().unwrap();
        assert_eq!(listed.objects.len(), 2, "{listed:?}");
        assert!(!nft.has_table(NfFamily::IP, "probe").unwrap());
        run("nft delete table inet probe");
        assert!(nft.table(NfFamily::INet, "probe").unwrap().is_none());
    });
}

#[test]
fn refusal_tells_what_nft_said() {
    within(|| async {
        let mut batch = Batch::new();
        batch.delete(NfListObject::Table(Table {
            name: "absent".into(),
            family: NfFamily::INet,
            ..Table::default()
        }));
        let refused = Nft::default().apply(&batch.to_nftables()).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("No such file or directory"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    });
}

#[test]
fn missing_program_is_named() {
    let missing = Nft::new("/nonexistent/nft").apply(&table("probe"));
    let text = missing.as_ref().unwrap_err().to_string();
    assert_eq!(text, "run /nonexistent/nft to apply a ruleset");
    assert!(matches!(missing, Err(NftError::Run { .. })));
}

fn table(name: &'static str) -> Nftables<'static> {
    let mut batch = Batch::new();
    batch.add(NfListObject::Table(Table {
        name: name.into(),
        family: NfFamily::INet,
        ..Table::default()
    }));
    batch.to_nftables()
}
