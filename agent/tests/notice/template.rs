//! Texts and the replies that come of them, written by hand.

use gate25::notice::Sender;
use gate25::notice::template::{Template, TemplateError, shown};

#[test]
fn reply_fills_places_and_ends_its_last_line_with_a_space() {
    let text = "Closed for {customer}.\nUse {relay}, see {url} {{here}}.\n";
    let template = Template::new(text, Some("https://example.com/25")).unwrap();
    assert_eq!(
        template.reply(Some(&sender("c-1", Some("relay.example.com")))),
        "554-5.7.1 Closed for c-1.\r\n\
         554 5.7.1 Use relay.example.com, see https://example.com/25 {here}.\r\n"
    );
}

#[test]
fn reply_to_nobody_says_unassigned_and_names_no_relay() {
    let template = Template::new("{customer}: {relay}", None).unwrap();
    let expected = "554 5.7.1 unassigned: your provider's mail relay\r\n";
    assert_eq!(template.reply(None), expected);
    assert_eq!(
        template.reply(Some(&sender("c-2", None))),
        "554 5.7.1 c-2: your provider's mail relay\r\n"
    );
}

#[test]
fn reply_keeps_empty_lines_and_folds_spaces() {
    let template = Template::new("  one   two \n\nthree", None).unwrap();
    assert_eq!(
        template.reply(None),
        "554-5.7.1 one two\r\n554-5.7.1\r\n554 5.7.1 three\r\n"
    );
}

#[test]
fn reply_of_a_long_text_is_wrapped_between_words_at_512_octets() {
    // 100 words of 9 letters: 50 with their spaces are 499 characters, of 500 that fit.
    let text = vec!["abcdefghi"; 100].join(" ");
    let line = vec!["abcdefghi"; 50].join(" ");
    let template = Template::new(&text, None).unwrap();
    assert_eq!(
        template.reply(None),
        format!("554-5.7.1 {line}\r\n554 5.7.1 {line}\r\n")
    );
}

#[test]
fn reply_with_a_word_longer_than_a_line_is_broken_within_it() {
    let text = format!("a {} b", "x".repeat(1001));
    let template = Template::new(&text, None).unwrap();
    let full = "x".repeat(500);
    assert_eq!(
        template.reply(None),
        format!("554-5.7.1 a\r\n554-5.7.1 {full}\r\n554-5.7.1 {full}\r\n554 5.7.1 x b\r\n")
    );
    let exact = Template::new(&full, None).unwrap();
    assert_eq!(exact.reply(None), format!("554 5.7.1 {full}\r\n"));
}

#[test]
fn reply_shows_what_a_customer_supplies_as_printable_ascii() {
    let template = Template::new("[{customer}] [{relay}]", None).unwrap();
    let nasty = sender("x\r\n250 Ok\0", Some("\u{7f}rel\u{e9}\t{customer}\n"));
    assert_eq!(
        template.reply(Some(&nasty)),
        "554 5.7.1 [x??250 Ok?] [?rel??{customer}?]\r\n"
    );
}

#[test]
fn reply_cuts_what_a_customer_supplies_off() {
    let template = Template::new("{customer}", None).unwrap();
    let long = sender(&"y".repeat(64), None);
    let shown = format!("554 5.7.1 {}...\r\n", "y".repeat(60));
    assert_eq!(template.reply(Some(&long)), shown);
    let fits = sender(&"y".repeat(63), None);
    let shown = format!("554 5.7.1 {}\r\n", "y".repeat(63));
    assert_eq!(template.reply(Some(&fits)), shown);
}

#[test]
fn standard_text_names_customer_relay_port_and_page() {
    let reply = Template::standard(Some("https://example.com/25"))
        .reply(Some(&sender("c-1", Some("relay.example.com"))));
    for word in [
        "c-1",
        "relay.example.com",
        "port 25",
        "port 587",
        "https://example.com/25",
    ] {
        assert!(reply.contains(word), "{word}: {reply}");
    }
    assert_eq!(reply.lines().count(), 4, "{reply}");
    assert!(!Template::standard(None).reply(None).contains("See"));
}

#[test]
fn text_that_smtp_cannot_carry_is_refused_with_its_place() {
    for (text, found, at) in [
        ("a\r\n250 Ok", '\r', 2),
        ("\0", '\0', 1),
        ("one\ntwo\t", '\t', 8),
        ("\u{e4}\u{f6}", '\u{e4}', 1),
        ("ok \u{7f}", '\u{7f}', 4),
        ("ok\u{85}250", '\u{85}', 3),
        ("ok\u{2028}250", '\u{2028}', 3),
    ] {
        let error = Template::new(text, None).unwrap_err();
        assert_eq!(error, TemplateError::Character { found, at }, "{text:?}");
    }
}

#[test]
fn text_with_braces_that_make_no_sense_is_refused_with_their_place() {
    let unknown = |name: &str, at| TemplateError::Unknown {
        name: name.to_owned(),
        at,
    };
    let lone = |brace, at| TemplateError::Brace { brace, at };
    for (text, expected) in [
        ("a {name}", unknown("name", 3)),
        ("{}", unknown("", 1)),
        ("{ customer }", unknown(" customer ", 1)),
        ("{Customer}", unknown("Customer", 1)),
        ("{{customer}", lone('}', 11)),
        ("x {", lone('{', 3)),
        ("}", lone('}', 1)),
        ("{url}", TemplateError::NoUrl),
        ("", TemplateError::Empty),
        ("\n", TemplateError::Empty),
    ] {
        assert_eq!(Template::new(text, None).unwrap_err(), expected, "{text:?}");
    }
}

#[test]
fn text_that_could_take_more_than_sixteen_lines_is_refused() {
    let lines = |count: usize| vec!["x"; count].join("\n");
    assert!(Template::new(&lines(16), None).is_ok());
    let error = Template::new(&lines(17), None).unwrap_err();
    assert_eq!(error, TemplateError::TooLong { lines: 17 });
    // A relay of 255 characters twice with what is between them does not fit into one line.
    let text = format!("{}\n{{relay}} {{relay}}", lines(15));
    let error = Template::new(&text, None).unwrap_err();
    assert_eq!(error, TemplateError::TooLong { lines: 17 });
}

#[test]
fn shown_values_have_their_length_at_most() {
    assert_eq!(shown("abc", 3), "abc");
    assert_eq!(shown("abcdef", 5), "ab...");
    assert_eq!(shown("abcdef", 2), "..");
}

fn sender(customer: &str, relay: Option<&str>) -> Sender {
    Sender {
        customer: customer.to_owned(),
        relay: relay.map(str::to_owned),
    }
}
