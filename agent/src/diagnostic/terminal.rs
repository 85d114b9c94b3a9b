//! Diagnostics as people read them: the source line with the place underlined.

use annotate_snippets::{
    Annotation, AnnotationKind, Element, Group, Level, Origin, Renderer, Snippet,
};

use super::{Diagnostic, Location, Severity};

/// Whether output may hold colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Plain text.
    Never,
    /// ANSI colours.
    Always,
}

/// The diagnostic as several lines of text, without a line break at the end.
#[must_use]
pub fn render(diagnostic: &Diagnostic, colour: Colour) -> String {
    let Diagnostic {
        severity,
        code,
        message,
        help,
        primary,
        related,
    } = diagnostic;
    let level = match severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut group = level
        .primary_title(message.as_str())
        .id(*code)
        .elements([element(primary, None, AnnotationKind::Primary)]);
    if let Some(help) = help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    let mut groups = vec![group];
    for place in related {
        let element = element(&place.location, None, AnnotationKind::Context);
        groups.push(
            Group::with_title(Level::NOTE.secondary_title(place.label.as_str())).element(element),
        );
    }
    let renderer = match colour {
        Colour::Never => Renderer::plain(),
        Colour::Always => Renderer::styled(),
    };
    renderer.render(&groups)
}

fn element<'a>(
    location: &'a Location,
    label: Option<&'a str>,
    kind: AnnotationKind,
) -> Element<'a> {
    let path = super::escape(&location.file.to_string_lossy());
    let (Some(position), Some(excerpt)) = (location.position, &location.excerpt) else {
        let origin = Origin::path(path);
        return match location.position {
            Some(position) => origin
                .line(position.line as usize)
                .char_column(position.column as usize)
                .into(),
            None => origin.into(),
        };
    };
    let annotation: Annotation<'a> = kind.span(excerpt.mark.clone()).label(label);
    Snippet::source(excerpt.text.as_str())
        .path(path)
        .line_start(position.line as usize)
        .annotation(annotation)
        .into()
}
