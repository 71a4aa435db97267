//! Charts, as SVG: bars with a whisker from the smallest to the largest round, with a panel and
//! scale for each kind of work; and lines on logarithmic scales for values that grow with a count.

use super::{OURS, Row, format, is_limit, rows};
use crate::results::{Results, Unit};
use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 900;
const BAR_PIXELS: i32 = 16;
const GAP_PIXELS: i32 = 4;
const TITLE_PIXELS: i32 = 30;
const LABEL_PIXELS: i32 = 190;
const VALUE_PIXELS: i32 = 90;
/// The factor by which the scale exceeds the last count, for the names of the lines.
const LEGEND_ROOM: f64 = 12.0;
const PANELS_ABREAST: i32 = 2;

const OURS_COLOUR: RGBColor = RGBColor(0x1b, 0x7f, 0x5c);
const VARIANT_COLOUR: RGBColor = RGBColor(0x6d, 0xb8, 0x9c);
const LIMIT_COLOUR: RGBColor = RGBColor(0xc9, 0xcd, 0xd4);
const PEER_COLOUR: RGBColor = RGBColor(0x5b, 0x7d, 0xb1);
const TEXT_COLOUR: RGBColor = RGBColor(0x22, 0x26, 0x2b);
const LINES: [RGBColor; 6] = [
    RGBColor(0x5b, 0x7d, 0xb1),
    RGBColor(0xc0, 0x6c, 0x3e),
    RGBColor(0x8c, 0x5f, 0xa8),
    RGBColor(0xb0, 0x9a, 0x2c),
    RGBColor(0xb2, 0x4a, 0x5c),
    RGBColor(0x55, 0x8f, 0x99),
];

/// Draws a group's bars.
///
/// # Errors
/// When the plotting library fails.
pub(super) fn bars(rows: &[Row]) -> anyhow::Result<String> {
    let heights: Vec<i32> = rows.chunks(2).map(panels_height).collect();
    let height = heights.iter().sum::<i32>().max(1);
    let mut text = String::new();
    {
        let size = (WIDTH, u32::try_from(height)?);
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut top = 0;
        for (pair, height) in rows.chunks(2).zip(&heights) {
            let width = i32::try_from(WIDTH)? / PANELS_ABREAST;
            for (column, row) in (0..).zip(pair) {
                panel(&area, row, (column * width, top), width)?;
            }
            top += height;
        }
        area.present().map_err(failed)?;
    }
    Ok(text)
}

fn panels_height(rows: &[Row]) -> i32 {
    let most = rows.iter().map(|row| row.series.len()).max().unwrap_or(0);
    TITLE_PIXELS + i32::try_from(most).unwrap_or(0) * (BAR_PIXELS + GAP_PIXELS) + 2 * GAP_PIXELS
}

fn panel(area: &Area, row: &Row, (left, top): (i32, i32), width: i32) -> anyhow::Result<()> {
    let better = if row.unit.higher_is_better() {
        "more is better"
    } else {
        "less is better"
    };
    let bold = text_style(13).into_font().style(FontStyle::Bold);
    let title = format!("{} ({better})", row.work);
    let at = (left + 8, top + 8);
    area.draw(&Text::new(title, at, bold.color(&TEXT_COLOUR)))
        .map_err(failed)?;
    let greatest = row
        .series
        .iter()
        .filter_map(|series| series.summary)
        .fold(0.0, |greatest: f64, summary| greatest.max(summary.max));
    let room = f64::from(width - LABEL_PIXELS - VALUE_PIXELS);
    let pixels = |value: f64| {
        let share = if greatest > 0.0 {
            value / greatest
        } else {
            0.0
        };
        left + LABEL_PIXELS + (share * room).round() as i32
    };
    for (index, series) in (0..).zip(&row.series) {
        let Some(summary) = series.summary else {
            continue;
        };
        let y = top + TITLE_PIXELS + index * (BAR_PIXELS + GAP_PIXELS);
        let label = text_style(12).into_font().color(&TEXT_COLOUR);
        let at = (left + 8, y + 2);
        area.draw(&Text::new(series.peer.clone(), at, label.clone()))
            .map_err(failed)?;
        let corners = [(pixels(0.0), y), (pixels(summary.median), y + BAR_PIXELS)];
        let bar = Rectangle::new(corners, colour(&series.peer).filled());
        area.draw(&bar).map_err(failed)?;
        let middle = y + BAR_PIXELS / 2;
        let ends = [(pixels(summary.min), middle), (pixels(summary.max), middle)];
        let whisker = PathElement::new(ends, TEXT_COLOUR.stroke_width(1));
        area.draw(&whisker).map_err(failed)?;
        let at = (pixels(summary.max.max(summary.median)) + 5, y + 2);
        let value = format(row.unit, summary.median);
        area.draw(&Text::new(value, at, label)).map_err(failed)?;
    }
    Ok(())
}

fn colour(peer: &str) -> RGBColor {
    if peer == OURS || peer == crate::against::AFTER {
        OURS_COLOUR
    } else if peer.starts_with(OURS) {
        VARIANT_COLOUR
    } else if is_limit(peer) {
        LIMIT_COLOUR
    } else {
        PEER_COLOUR
    }
}

fn text_style(pixels: i32) -> (&'static str, i32) {
    ("sans-serif", pixels)
}

/// Draws a line for each peer, of works that end in a count; returns `None` if there are fewer than
/// two.
///
/// # Errors
/// When the plotting library fails.
pub(super) fn lines(rows: &[Row]) -> anyhow::Result<Option<String>> {
    let lines = counted(rows);
    let points = || lines.iter().flat_map(|(_, points)| points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let values = points().map(of);
        let (least, most) = values.fold((f64::MAX, 0.0_f64), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        (least > 0.0 && most > least).then_some((least / 1.5, most * 1.5))
    };
    let (Some(counts), Some(times)) = (range(|point| point.0), range(|point| point.1)) else {
        return Ok(None);
    };
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, 340)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(80)
            .build_cartesian_2d(
                (counts.0..counts.1 * LEGEND_ROOM).log_scale(),
                (times.0..times.1).log_scale(),
            )
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("snapshots there are")
            .y_desc("time of one more")
            .x_label_formatter(&|count| format!("{count:.0}"))
            .y_label_formatter(&|time| format(Unit::Seconds, *time))
            .light_line_style(WHITE)
            .label_style(text_style(12))
            .draw()
            .map_err(failed)?;
        for (number, (peer, points)) in lines.iter().enumerate() {
            let colour = if *peer == OURS {
                OURS_COLOUR
            } else {
                LINES[number % LINES.len()]
            };
            let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
            chart
                .draw_series(line.point_size(4))
                .map_err(failed)?
                .label(*peer)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .background_style(WHITE.mix(0.8))
            .label_font(text_style(12))
            .draw()
            .map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(Some(text))
}

/// Returns each peer's points: the number at the end of a work's name, and the median.
fn counted<'a>(rows: &[Row<'a>]) -> Vec<(&'a str, Vec<(f64, f64)>)> {
    let mut lines: Vec<(&str, Vec<(f64, f64)>)> = Vec::new();
    for row in rows.iter().filter(|row| row.unit == Unit::Seconds) {
        let last = row.work.rsplit(' ').next().unwrap_or_default();
        let Ok(count) = last.parse::<u32>() else {
            continue;
        };
        for series in &row.series {
            let Some(summary) = series.summary else {
                continue;
            };
            let point = (f64::from(count), summary.median);
            match lines.iter_mut().find(|(peer, _)| *peer == series.peer) {
                Some((_, points)) => points.push(point),
                None => lines.push((&series.peer, vec![point])),
            }
        }
    }
    lines
}

/// Draws the chart of a few significant numbers, for the front page.
///
/// # Errors
/// When the plotting library fails.
pub(crate) fn summary(results: &Results) -> anyhow::Result<Option<String>> {
    const SHOWN: [&str; 6] = [
        "4 KiB random read, depth 32",
        "4 KiB random write, depth 32",
        "4 KiB random read, depth 1",
        "4 KiB write + fsync",
        "128 KiB sequential read, depth 8",
        "4 KiB random write pass, first after a snapshot",
    ];
    let Some(backing) = results.backings.first() else {
        return Ok(None);
    };
    let all: Vec<_> = super::groups(results, &backing.name)
        .into_iter()
        .flat_map(|group| rows(results, &backing.name, group))
        .filter(|row| row.unit.higher_is_better())
        .collect();
    let shown: Vec<_> = SHOWN
        .iter()
        .filter_map(|name| all.iter().find(|row| row.work == *name))
        .map(|row| Row {
            work: row.work,
            unit: row.unit,
            series: row.series.clone(),
        })
        .collect();
    if shown.is_empty() {
        return Ok(None);
    }
    bars(&shown).map(Some)
}

fn failed<E: std::fmt::Display>(error: E) -> anyhow::Error {
    anyhow!("draw a chart: {error}")
}
