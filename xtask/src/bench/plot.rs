//! Pictures of how costs grow.

use anyhow::Context as _;
use plotters::{
    chart::{ChartBuilder, SeriesLabelPosition},
    drawing::IntoDrawingArea as _,
    prelude::{IntoLogRange as _, LineSeries, PathElement, SVGBackend},
    style::{BLACK, Color as _, IntoFont as _, RGBColor, WHITE},
};

use super::{
    figures::Figures,
    path::{Contender, Traffic, contender_name},
    scale::Scale,
};
use crate::cargo::root;

/// Colours that are told apart by colour-blind eyes (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(0, 0, 0),
];
const SIZE: (u32, u32) = (760, 420);

/// One picture: its file, its title, and the sizes along its axis.
struct Picture {
    file: &'static str,
    title: &'static str,
    axis: &'static str,
    scales: &'static [Scale],
    size: fn(Scale) -> usize,
}

const PICTURES: [Picture; 2] = [
    Picture {
        file: "speed-customers.svg",
        title: "What refusing a packet adds: customers, 10 prefixes each",
        axis: "customers",
        scales: &[
            Scale::new(10, 10),
            Scale::new(1_000, 10),
            Scale::new(10_000, 10),
        ],
        size: |scale| scale.customers,
    },
    Picture {
        file: "speed-prefixes.svg",
        title: "What refusing a packet adds: prefixes of 10 customers",
        axis: "prefixes",
        scales: &[
            Scale::new(10, 1),
            Scale::new(10, 10),
            Scale::new(10, 100),
            Scale::new(10, 1_000),
            Scale::new(10, 10_000),
        ],
        size: |scale| scale.total(),
    },
];

/// The pictures' files, in the document's folder, and their titles.
pub(crate) fn files() -> impl Iterator<Item = (&'static str, &'static str)> {
    PICTURES.iter().map(|picture| (picture.file, picture.title))
}

/// Draws them all, into the document's folder.
pub(crate) fn draw(figures: &Figures) -> anyhow::Result<()> {
    for picture in &PICTURES {
        picture
            .draw(figures)
            .with_context(|| format!("draw {}", picture.file))?;
    }
    Ok(())
}

impl Picture {
    /// Points of a contender: size, nanoseconds.
    fn points(&self, figures: &Figures, contender: Contender) -> Vec<(f64, f64)> {
        self.scales
            .iter()
            .filter_map(|scale| {
                let name = contender_name(contender, *scale);
                let added = figures.get(&format!("added_{name}_{}_ns", Traffic::Mail.name()))?;
                // A logarithmic axis has no zero: what cannot be told from nothing is at its foot.
                Some(((self.size)(*scale) as f64, added.max(1.0)))
            })
            .collect()
    }

    fn draw(&self, figures: &Figures) -> anyhow::Result<()> {
        let lines: Vec<_> = Contender::ALL
            .into_iter()
            .map(|contender| (contender, self.points(figures, contender)))
            .filter(|(_, points)| points.len() > 1)
            .collect();
        let all = || lines.iter().flat_map(|(_, points)| points);
        let most = all().map(|(_, cost)| *cost).fold(10.0, f64::max);
        let sizes = || all().map(|(size, _)| *size);
        let (first, last) = (
            sizes().fold(f64::INFINITY, f64::min),
            sizes().fold(0.0, f64::max),
        );
        if last <= first {
            anyhow::bail!("nothing was measured at more than one size");
        }
        let path = root().join("tests").join(self.file);
        let area = SVGBackend::new(&path, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 16).into_font())
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d((first..last).log_scale(), (1.0..most * 2.0).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(self.axis)
            .y_desc("ns a packet")
            .draw()?;
        for ((contender, points), colour) in lines.iter().zip(COLOURS) {
            chart
                .draw_series(
                    LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3),
                )?
                .label(contender.title())
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
        area.present()?;
        Ok(())
    }
}
