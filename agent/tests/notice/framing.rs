//! Whatever anybody writes or sends, what goes out is a sequence of SMTP replies.

use gate25::notice::Sender;
use gate25::notice::session::{MAX_COMMANDS, Session, Step};
use gate25::notice::template::{MAX_LINE, MAX_LINES, Template};
use proptest::prelude::*;

/// Octets that a conversation says besides its answers: a greeting and the last word.
const BESIDES: usize = 2 * MAX_LINE;

/// Words that mean something to the template or to the session, and any others.
fn text() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        Just("{customer}".to_owned()),
        Just("{relay}".to_owned()),
        Just("{url}".to_owned()),
        Just("{{".to_owned()),
        Just("}}".to_owned()),
        Just("\n".to_owned()),
        Just("554 ".to_owned()),
        "[ -z]{0,40}",
        "[a-z]{0,700}",
        ".{0,4}",
    ];
    prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat())
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "(?s).{0,400}",
        "[a-z0-9 \r\n]{0,80}",
        Just("\r\n250 Ok\r\n".to_owned())
    ]
}

fn input() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just(b"EHLO x\r\n".to_vec()),
        Just(b"MAIL FROM:<a@b>\r\n".to_vec()),
        Just(b"RCPT TO:<a@b>\n".to_vec()),
        Just(b"DATA\r\n".to_vec()),
        Just(b"BDAT 5\r\n12345".to_vec()),
        Just(b"BDAT 700 LAST\r\n".to_vec()),
        Just(b"QUIT\r\n".to_vec()),
        Just(b"\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..60),
        (400_usize..1500).prop_map(|length| vec![b'x'; length]),
    ];
    prop::collection::vec(line, 0..150).prop_map(|lines| lines.concat())
}

proptest! {
    #[test]
    fn notice_of_any_text_and_values_is_one_reply(
        text in text(), customer in value(), relay in prop::option::of(value())
    ) {
        if let Ok(template) = Template::new(&text, Some("https://example.com/")) {
            let sender = Sender { customer, relay };
            let replies = replies(&template.reply(Some(&sender)))?;
            prop_assert_eq!(replies.len(), 1);
            prop_assert!(replies.iter().all(|(code, lines)| code == "554" && *lines <= MAX_LINES));
            prop_assert!(template.reply(Some(&sender)).lines().all(|line| line[3..].starts_with("-5.7.1")
                || line[3..].starts_with(" 5.7.1")));
        }
    }

    #[test]
    fn conversation_of_any_input_in_any_pieces_is_replies_bounded_by_the_input(
        host in value(), customer in value(), input in input(), sizes in prop::collection::vec(1_usize..900, 1..20)
    ) {
        let refusal = Template::standard(None).reply(Some(&Sender { customer, relay: None }));
        let longest = refusal.len().max(MAX_LINE);
        let mut session = Session::new(&host, refusal);
        let greeting = session.greeting();
        let whole = converse(&mut session.clone(), &input, &[input.len().max(1)]);
        let said = converse(&mut session, &input, &sizes);
        prop_assert_eq!(&said, &whole, "the pieces do not matter");
        let replies = replies(&format!("{greeting}{said}"))?;
        let lines = input.iter().filter(|byte| **byte == b'\n').count();
        prop_assert!(replies.len() <= 2 + lines.min(MAX_COMMANDS as usize + 1));
        prop_assert!(said.len() <= lines * longest + BESIDES);
    }
}

fn converse(session: &mut Session, input: &[u8], sizes: &[usize]) -> String {
    let mut said = String::new();
    let mut waiting = Vec::new();
    let mut rest = input;
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*size).min(rest.len()));
        waiting.extend_from_slice(piece);
        rest = after;
        loop {
            let (taken, step) = session.step(&waiting);
            waiting.drain(..taken);
            match step {
                Step::More if taken > 0 && !waiting.is_empty() => {}
                Step::More => break,
                Step::Reply(reply) => said.push_str(&reply),
                Step::Asked(reply) | Step::TooFar(reply) => return said + &reply,
            }
        }
    }
    said
}

/// Takes replies apart by RFC 5321, 4.2: their codes and numbers of lines.
fn replies(said: &str) -> Result<Vec<(String, usize)>, TestCaseError> {
    let mut replies = Vec::new();
    let mut open: Option<(String, usize)> = None;
    let mut rest = said;
    while !rest.is_empty() {
        let Some((line, after)) = rest.split_once("\r\n") else {
            return Err(TestCaseError::fail(format!("no end: {rest:?}")));
        };
        rest = after;
        prop_assert!(line.len() + 2 <= MAX_LINE, "too long: {:?}", line);
        let printable = line.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        prop_assert!(printable, "not printable: {:?}", line);
        let Some((code, text)) = line.split_at_checked(3) else {
            return Err(TestCaseError::fail(format!("no code: {line:?}")));
        };
        let digits = code.as_bytes();
        prop_assert!((b'2'..=b'5').contains(&digits[0]), "code: {:?}", line);
        prop_assert!(
            digits[1..].iter().all(u8::is_ascii_digit),
            "code: {:?}",
            line
        );
        if let Some((first, _)) = &open {
            prop_assert_eq!(first, code, "another code within a reply");
        }
        let lines = open.take().map_or(0, |(_, lines)| lines) + 1;
        if text.starts_with('-') {
            open = Some((code.to_owned(), lines));
        } else {
            prop_assert!(text.starts_with(' '), "neither dash nor space: {:?}", line);
            replies.push((code.to_owned(), lines));
        }
    }
    prop_assert!(open.is_none(), "a reply without its last line");
    Ok(replies)
}
