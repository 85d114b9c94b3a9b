//! The parser and the decision against the RFCs and the design, without a kernel.
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

mod pure {
    mod address;
    mod decide;
    mod differential;
    mod evident;
    mod filter;
    mod ipv4;
    mod ipv6;
    mod link;
    mod redirect;
    mod returns;
    mod tcp;

    use gate25_common::address::Family;
    use gate25_common::packet::{Malformed, ParseError, Parsed, Segment, parse};
    use gate25_common::testing::frames::MemoryFrame;

    #[track_caller]
    fn guarded(bytes: &[u8]) -> Segment {
        match parse(&MemoryFrame::new(bytes)) {
            Ok(Parsed::Guarded(segment)) => segment,
            other => panic!("expected a guarded segment, parsed {other:?}"),
        }
    }

    #[track_caller]
    fn other(bytes: &[u8]) {
        assert_eq!(parse(&MemoryFrame::new(bytes)), Ok(Parsed::Other));
    }

    #[track_caller]
    fn malformed(bytes: &[u8], kind: Malformed, family: Family) {
        assert_eq!(
            parse(&MemoryFrame::new(bytes)),
            Err(ParseError::Malformed(kind, family))
        );
    }

    #[track_caller]
    fn short(bytes: &[u8], family: Family) {
        assert_eq!(
            parse(&MemoryFrame::new(bytes)),
            Err(ParseError::ShortNetwork(family))
        );
    }
}
