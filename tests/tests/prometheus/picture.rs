//! A picture of a dashboard, drawn from what Prometheus answers to its queries. Not Grafana's, and no more
//! than enough to see what a dashboard tells.

use std::{env, fmt::Write as _, fs, path::Path};

use anyhow::Context as _;
use serde_json::Value;

use super::dashboard::{Dashboard, Panel, Place};
use super::server::{Prometheus, Span};

const COLUMN: f64 = 56.0;
const ROW: f64 = 34.0;
const GAP: f64 = 6.0;
/// Height of a line of text, and of a panel's title.
const LINE: f64 = 17.0;
const COLOURS: [&str; 8] = [
    "#2f7ed8", "#d9534f", "#3c9d4e", "#e0a030", "#8058b8", "#1aa6a6", "#b35900", "#777777",
];

/// Draws a dashboard into the folder `GATE25_PICTURES`, if somebody wants that.
pub(crate) fn publish(dashboard: &Dashboard, prometheus: &Prometheus) -> anyhow::Result<()> {
    let Some(dir) = env::var_os("GATE25_PICTURES") else {
        return Ok(());
    };
    let path = Path::new(&dir).join(format!("{}.svg", dashboard.name));
    let text = draw(dashboard, prometheus)?;
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

fn draw(dashboard: &Dashboard, prometheus: &Prometheus) -> anyhow::Result<String> {
    let bottoms = dashboard
        .panels
        .iter()
        .map(|it| it.place.y + it.place.height);
    let height = bottoms.fold(0.0, f64::max) * ROW + 40.0;
    let width = 24.0 * COLUMN + GAP;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"DejaVu Sans, sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#f2f3f5\"/>\n"
    );
    label(&mut svg, GAP + 4.0, 24.0, 17.0, "#222", &dashboard.title)?;
    for panel in &dashboard.panels {
        let frame = Frame::of(panel.place);
        if panel.kind == "row" {
            label(
                &mut svg,
                frame.x + 4.0,
                frame.y + 22.0,
                13.0,
                "#444",
                &panel.title,
            )?;
            continue;
        }
        frame.outline(&mut svg)?;
        label(
            &mut svg,
            frame.x + 8.0,
            frame.y + 16.0,
            11.5,
            "#222",
            &panel.title,
        )?;
        match panel.kind.as_str() {
            "timeseries" => curves(&mut svg, panel, frame, prometheus)?,
            "stat" => figure(&mut svg, panel, frame, prometheus)?,
            "table" => rows(&mut svg, panel, frame, prometheus)?,
            other => anyhow::bail!("a panel of kind {other}"),
        }
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// A panel's place in the picture.
#[derive(Debug, Clone, Copy)]
struct Frame {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Frame {
    fn of(place: Place) -> Self {
        Self {
            x: place.x * COLUMN + GAP,
            y: place.y * ROW + 34.0 + GAP,
            width: place.width * COLUMN - GAP,
            height: place.height * ROW - GAP,
        }
    }

    fn outline(self, svg: &mut String) -> std::fmt::Result {
        let Self {
            x,
            y,
            width,
            height,
        } = self;
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"3\" fill=\"#fff\" stroke=\"#d5d8dc\"/>"
        )
    }
}

/// The points of a series, in time.
type Curve = (String, Vec<(f64, f64)>);

fn curves(
    svg: &mut String,
    panel: &Panel,
    frame: Frame,
    prometheus: &Prometheus,
) -> anyhow::Result<()> {
    let mut found: Vec<Curve> = Vec::new();
    for asked in &panel.asked {
        for series in prometheus.curves(&asked.query)? {
            let points = series["values"].as_array().context("values")?;
            let points = points.iter().filter_map(point).collect();
            found.push((name(&asked.legend, &series["metric"]), points));
        }
    }
    let highest = found
        .iter()
        .flat_map(|it| &it.1)
        .map(|it| it.1)
        .fold(0.0, f64::max);
    let top = if highest > 0.0 { highest * 1.05 } else { 1.0 };
    let Span { from, to } = prometheus.span()?;
    let plot = Frame {
        x: frame.x + 58.0,
        y: frame.y + 26.0,
        width: frame.width - 68.0,
        height: frame.height - 26.0 - LINE - 12.0,
    };
    for part in [0.0, 0.5, 1.0] {
        let y = plot.y + plot.height * (1.0 - part);
        writeln!(
            svg,
            "<line x1=\"{}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#e6e8ea\"/>",
            plot.x,
            plot.x + plot.width
        )?;
        label(
            svg,
            frame.x + 6.0,
            y + 4.0,
            9.5,
            "#777",
            &shown(top * part, &panel.unit),
        )?;
    }
    let mut legend = frame.x + 8.0;
    for (index, (name, points)) in found.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let mut path = String::new();
        for (time, value) in points {
            let x = plot.x + plot.width * (time - from as f64) / (to - from).max(1) as f64;
            let y = plot.y + plot.height * (1.0 - value / top);
            write!(path, "{x:.1},{y:.1} ")?;
        }
        writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
            path.trim_end()
        )?;
        let end = legend + 14.0 + name.chars().count() as f64 * 6.2;
        if end < frame.x + frame.width {
            label(
                svg,
                legend,
                frame.y + frame.height - 8.0,
                10.0,
                colour,
                &format!("● {name}"),
            )?;
        }
        legend = end + 8.0;
    }
    if found.is_empty() {
        nothing(svg, frame)?;
    }
    Ok(())
}

fn point(pair: &Value) -> Option<(f64, f64)> {
    let value: f64 = pair[1].as_str()?.parse().ok()?;
    value.is_finite().then_some((pair[0].as_f64()?, value))
}

fn figure(
    svg: &mut String,
    panel: &Panel,
    frame: Frame,
    prometheus: &Prometheus,
) -> anyhow::Result<()> {
    let mut text = None;
    for asked in &panel.asked {
        if let Some(series) = prometheus.query(&asked.query)?.first() {
            let value = series["value"][1].as_str().context("a value")?.to_owned();
            let mapped = panel.defaults["mappings"][0]["options"][&value]["text"].as_str();
            text = Some(match (panel.options["textMode"].as_str(), mapped) {
                (Some("name"), _) => name(&asked.legend, &series["metric"]),
                (_, Some(mapped)) => mapped.to_owned(),
                (_, None) => shown(value.parse()?, &panel.unit),
            });
        }
    }
    match text {
        Some(text) => label(svg, frame.x + 12.0, frame.y + 74.0, 34.0, "#2f7ed8", &text)?,
        None => nothing(svg, frame)?,
    }
    Ok(())
}

fn rows(
    svg: &mut String,
    panel: &Panel,
    frame: Frame,
    prometheus: &Prometheus,
) -> anyhow::Result<()> {
    let mut found: Vec<(f64, String)> = Vec::new();
    for asked in &panel.asked {
        for series in prometheus.query(&asked.query)? {
            let value: f64 = series["value"][1].as_str().context("a value")?.parse()?;
            found.push((value, name("", &series["metric"])));
        }
    }
    found.sort_by(|one, other| other.0.total_cmp(&one.0));
    let fit = ((frame.height - 30.0) / LINE) as usize;
    for (index, (value, name)) in found.iter().take(fit).enumerate() {
        let y = frame.y + 38.0 + index as f64 * LINE;
        label(svg, frame.x + 10.0, y, 11.0, "#333", name)?;
        label(
            svg,
            frame.x + frame.width - 90.0,
            y,
            11.0,
            "#333",
            &shown(*value, &panel.unit),
        )?;
    }
    if found.is_empty() {
        nothing(svg, frame)?;
    }
    Ok(())
}

fn nothing(svg: &mut String, frame: Frame) -> std::fmt::Result {
    label(svg, frame.x + 12.0, frame.y + 46.0, 11.0, "#999", "no data")
}

fn label(
    svg: &mut String,
    x: f64,
    y: f64,
    size: f64,
    colour: &str,
    text: &str,
) -> std::fmt::Result {
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{colour}\">{text}</text>"
    )
}

/// What a series is called: by the legend, or by its labels.
fn name(legend: &str, metric: &Value) -> String {
    let labels = metric.as_object().into_iter().flatten();
    let labels = labels.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)));
    if !legend.is_empty() && legend != "__auto" {
        return labels.fold(legend.to_owned(), |text, (key, value)| {
            text.replace(&format!("{{{{{key}}}}}"), value)
        });
    }
    let shown = labels.filter(|(key, _)| !["__name__", "job"].contains(key));
    shown.map(|(_, value)| value).collect::<Vec<_>>().join("  ")
}

/// A value with its unit, as people read it.
fn shown(value: f64, unit: &str) -> String {
    match unit {
        "percentunit" => format!("{:.1} %", value * 100.0),
        "s" if value >= 86_400.0 => format!("{:.1} days", value / 86_400.0),
        "s" if value >= 3_600.0 => format!("{:.1} h", value / 3_600.0),
        "s" if value >= 1.0 => format!("{value:.1} s"),
        "s" => format!("{:.2} ms", value * 1_000.0),
        "bytes" => format!("{:.1} MiB", value / 1_048_576.0),
        "Bps" => format!("{:.1} kB/s", value / 1_000.0),
        "cps" | "pps" => format!("{}/s", rounded(value)),
        _ => rounded(value),
    }
}

fn rounded(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}
