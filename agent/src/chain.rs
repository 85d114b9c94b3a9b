//! Errors with their causes, as one line.

use std::error::Error;

/// An error and all of its causes, in one line.
pub fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Step(&'static str, #[source] Box<dyn Error>);

    #[test]
    fn in_full_of_nested_errors_names_every_cause() {
        let error = Step(
            "load the policy",
            Box::new(Step("read a.yaml", Box::new(io::Error::other("torn")))),
        );
        assert_eq!(in_full(&error), "load the policy: read a.yaml: torn");
    }

    #[test]
    fn in_full_without_a_cause_is_the_message() {
        assert_eq!(in_full(&io::Error::other("torn")), "torn");
    }
}
