//! Tables that a run puts into the documents.

use std::fs;

use anyhow::Context as _;

use crate::cargo::root;

const BEGIN: &str = "<!-- table: begin -->\n";
const END: &str = "<!-- table: end -->\n";

/// Puts a table into a document of the workspace, in place of the one that is there.
pub(crate) fn publish(document: &str, table: &str) -> anyhow::Result<()> {
    let path = root().join(document);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let new =
        replace(&text, table).with_context(|| format!("no marks of a table in {document}"))?;
    fs::write(&path, new).with_context(|| format!("write {}", path.display()))
}

fn replace(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replace_keeps_what_is_around_the_table() {
        let text = format!("# T\n\n{BEGIN}old\n{END}\nend\n");
        assert_eq!(
            replace(&text, "new\n").unwrap(),
            format!("# T\n\n{BEGIN}new\n{END}\nend\n")
        );
        assert_eq!(replace("no marks", "new\n"), None);
    }
}
