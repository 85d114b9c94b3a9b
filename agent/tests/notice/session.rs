//! Conversations, written by hand after RFC 5321.

use gate25::notice::session::{MAX_COMMANDS, MAX_ERRORS, MAX_INPUT, Session, Step};

const REFUSAL: &str = "554-5.7.1 Closed.\r\n554 5.7.1 Use the relay.\r\n";

/// How a conversation stands after some input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Open,
    Asked,
    TooFar,
}

#[test]
fn greeting_names_the_host_without_a_code_of_its_own() {
    assert_eq!(session().greeting(), "220 hv1.example.net ESMTP\r\n");
    let odd = Session::new("a\r\n250 b", String::new());
    assert_eq!(odd.greeting(), "220 a??250 b ESMTP\r\n");
    let long = Session::new(&"h".repeat(300), String::new());
    assert_eq!(
        long.greeting(),
        format!("220 {}... ESMTP\r\n", "h".repeat(252))
    );
}

#[test]
fn conversation_as_postfix_has_it_is_refused_at_mail() {
    check(
        "EHLO shop.example.com\r\nMAIL FROM:<a@example.com> BODY=8BITMIME\r\nRSET\r\nQUIT\r\n",
        &format!("{EHLO}{REFUSAL}250 2.0.0 Ok\r\n{BYE}"),
        Then::Asked,
    );
}

#[test]
fn conversation_pipelined_is_answered_in_order() {
    check(
        "HELO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\nNOOP\r\nMAIL FROM:<>\r\nQUIT\r\n",
        &format!("{HELO}{REFUSAL}{REFUSAL}{REFUSAL}250 2.0.0 Ok\r\n{REFUSAL}{BYE}"),
        Then::Asked,
    );
}

#[test]
fn conversation_after_quit_goes_no_further() {
    check("QUIT\r\nMAIL FROM:<>\r\n", BYE, Then::Asked);
}

#[test]
fn ehlo_offers_neither_tls_nor_passwords_nor_pipelining() {
    for word in ["STARTTLS", "AUTH", "PIPELINING", "CHUNKING", "SIZE"] {
        assert!(!EHLO.contains(word), "{word}");
    }
    check("EHLO x\r\n", EHLO, Then::Open);
}

#[test]
fn commands_are_known_in_any_case_and_with_any_line_end() {
    check(
        "mail from:<>\nRsEt\n",
        &format!("{REFUSAL}250 2.0.0 Ok\r\n"),
        Then::Open,
    );
    check("helo \r\n", "501 5.5.4 Name yourself\r\n", Then::Open);
    check("EHLO\r\n", "501 5.5.4 Name yourself\r\n", Then::Open);
}

#[test]
fn commands_besides_mail_have_their_answers() {
    for (command, answer) in [
        (
            "VRFY root",
            "252 2.5.0 Cannot verify: no mail is taken here\r\n",
        ),
        (
            "HELP",
            "214 2.0.0 No mail is taken here: the answer to MAIL tells why\r\n",
        ),
        (
            "HELP MAIL",
            "214 2.0.0 No mail is taken here: the answer to MAIL tells why\r\n",
        ),
        ("NOOP x", "250 2.0.0 Ok\r\n"),
        ("STARTTLS", "502 5.5.1 Not available here\r\n"),
        ("AUTH PLAIN AGEAYg==", "502 5.5.1 Not available here\r\n"),
        ("EXPN all", "502 5.5.1 Not available here\r\n"),
        ("GET / HTTP/1.1", "500 5.5.2 Unknown command\r\n"),
        ("", "500 5.5.2 Unknown command\r\n"),
        ("MAILFROM:<>", "500 5.5.2 Unknown command\r\n"),
        ("M\u{c4}IL", "500 5.5.2 Unknown command\r\n"),
    ] {
        check(&format!("{command}\r\n"), answer, Then::Open);
    }
}

#[test]
fn chunk_is_let_fall_before_its_refusal() {
    check(
        "BDAT 12\r\nQUIT\r\nQUIT\r\nBDAT 0 LAST\r\nBDAT 3 last\r\nabcQUIT\r\n",
        &format!("{REFUSAL}{REFUSAL}{REFUSAL}{BYE}"),
        Then::Asked,
    );
    for arguments in ["", " x", " -1", " 5 FIRST", " 99999999999999999999"] {
        check(
            &format!("BDAT{arguments}\r\n"),
            "501 5.5.4 Size expected\r\n",
            Then::Open,
        );
    }
}

#[test]
fn line_of_512_octets_is_taken_and_a_longer_one_refused() {
    let exact = format!("NOOP {}\r\n", "x".repeat(505));
    assert_eq!(exact.len(), 512);
    check(&exact, "250 2.0.0 Ok\r\n", Then::Open);
    let long = format!("NOOP {}\r\nRSET\r\n", "x".repeat(506));
    let expected = "500 5.5.2 Line too long\r\n250 2.0.0 Ok\r\n";
    check(&long, expected, Then::Open);
    let longer = format!("{}\nRSET\r\n", "MAIL ".repeat(2000));
    check(&longer, expected, Then::Open);
}

#[test]
fn errors_beyond_ten_end_the_conversation() {
    let input = "STARTTLS\r\n".repeat(MAX_ERRORS as usize + 2);
    let expected = "502 5.5.1 Not available here\r\n".repeat(10)
        + "421 4.7.0 Too many errors: come back later\r\n";
    check(&input, &expected, Then::TooFar);
}

#[test]
fn commands_beyond_a_hundred_end_the_conversation() {
    let input = "NOOP\r\n".repeat(MAX_COMMANDS as usize + 2);
    let expected = "250 2.0.0 Ok\r\n".repeat(100) + "421 4.7.0 Too much of it: come back later\r\n";
    check(&input, &expected, Then::TooFar);
}

#[test]
fn input_beyond_a_mebibyte_ends_the_conversation() {
    let tail = "421 4.7.0 Too much of it: come back later\r\n";
    let chunk = format!("BDAT 2000000\r\n{}", "x".repeat(1_500_000));
    check(&chunk, tail, Then::TooFar);
    let line = "x".repeat(usize::try_from(MAX_INPUT).unwrap() + 512);
    check(&line, tail, Then::TooFar);
}

#[test]
fn notice_that_was_not_told_is_not_counted() {
    let mut session = session();
    let (_, step) = session.step(format!("BDAT {MAX_INPUT}\r\n").as_bytes());
    assert_eq!(step, Step::More);
    let chunk = vec![b'x'; usize::try_from(MAX_INPUT).unwrap()];
    let (taken, step) = session.step(&chunk);
    assert_eq!(taken, chunk.len());
    assert!(matches!(step, Step::TooFar(_)), "{step:?}");
    assert_eq!(session.refusals(), 0);
}

#[test]
fn farewells_are_replies() {
    assert_eq!(
        session().too_slow(),
        "421 4.4.2 hv1.example.net has waited long enough\r\n"
    );
    assert_eq!(session().stopping(), "421 4.3.2 hv1.example.net stops\r\n");
}

const EHLO: &str =
    "250-hv1.example.net\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES\r\n";
const HELO: &str = "250 hv1.example.net\r\n";
const BYE: &str = "221 2.0.0 hv1.example.net closes\r\n";

fn session() -> Session {
    Session::new("hv1.example.net", REFUSAL.to_owned())
}

/// All of the input at once, and octet by octet, come to the same.
#[track_caller]
fn check(input: &str, replies: &str, then: Then) {
    for piece in [input.len().max(1), 1, 7] {
        let mut session = session();
        let mut said = String::new();
        let mut end = Then::Open;
        let mut waiting = Vec::new();
        'input: for part in input.as_bytes().chunks(piece) {
            waiting.extend_from_slice(part);
            loop {
                let (taken, step) = session.step(&waiting);
                waiting.drain(..taken);
                match step {
                    Step::More if taken > 0 && !waiting.is_empty() => {}
                    Step::More => break,
                    Step::Reply(reply) => said.push_str(&reply),
                    Step::Asked(reply) => {
                        said.push_str(&reply);
                        end = Then::Asked;
                        break 'input;
                    }
                    Step::TooFar(reply) => {
                        said.push_str(&reply);
                        end = Then::TooFar;
                        break 'input;
                    }
                }
            }
        }
        assert_eq!((said.as_str(), end), (replies, then), "by {piece}");
    }
}
