//! The page with plots: one box plot for each group and unit.

use std::fmt::Write as _;

use plotters::prelude::*;

use crate::Failure;
use crate::result::{Group, Report, Row, figure};

/// Pixels of a plot, and of one box in it.
const WIDTH: u32 = 960;
const BOX_HEIGHT: u32 = 34;

/// The report as one HTML page without anything outside it.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn render(report: &Report) -> Result<String, Failure> {
    let mut page = String::from(
        "<!doctype html><meta charset=utf-8><title>Sheaf, measured</title>\
         <style>body{font:15px sans-serif;max-width:62rem;margin:2rem auto}td,th{padding:2px 10px;text-align:left}</style>",
    );
    write!(page, "<h1>Sheaf, measured side by side</h1><p>{}, {} rounds", escape(&report.machine), report.rounds)?;
    for group in &report.groups {
        write!(page, "<h2>{}</h2><p>Target: {}</p>", escape(&group.title), escape(&group.target))?;
        let mut units: Vec<&str> = group.rows.iter().map(|row| row.unit.as_str()).collect();
        units.dedup();
        for unit in units {
            let rows: Vec<&Row> = group.rows.iter().filter(|row| row.unit == unit).collect();
            page.push_str(&plot(unit, &rows)?);
        }
        page.push_str(&ratios(group)?);
    }
    for reason in &report.left_out {
        write!(page, "<p>Left out: {}</p>", escape(reason))?;
    }
    Ok(page)
}

fn ratios(group: &Group) -> Result<String, Failure> {
    if group.ratios.is_empty() {
        return Ok(String::new());
    }
    let mut table = String::from("<table><tr><th>ratio<th><th>aimed at");
    for ratio in &group.ratios {
        let (what, value) = (escape(&ratio.what), figure(ratio.value));
        write!(table, "<tr><td>{what}<td>{value}<td>{}", escape(&ratio.verdict()))?;
    }
    table.push_str("</table>");
    Ok(table)
}

/// Median, quartiles and extremes of each row, one below the other.
fn plot(unit: &str, rows: &[&Row]) -> Result<String, Failure> {
    let largest = rows.iter().map(|row| row.quantile(1.0) as f32).filter(|value| value.is_finite()).fold(0.0, f32::max);
    let mut svg = String::new();
    let height = rows.len() as u32 * BOX_HEIGHT + 60;
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(430)
            .build_cartesian_2d(0.0..largest.max(f32::MIN_POSITIVE) * 1.05, (0..rows.len()).into_segmented())?;
        let name = |place: &SegmentValue<usize>| match place {
            SegmentValue::CenterOf(index) => rows.get(*index).map_or(String::new(), |row| row.what.clone()),
            _ => String::new(),
        };
        let labels = rows.len() + 1;
        chart.configure_mesh().disable_y_mesh().y_labels(labels).y_label_formatter(&name).x_desc(unit).draw()?;
        for (index, row) in rows.iter().enumerate().filter(|(_, row)| !row.values.is_empty()) {
            let at = SegmentValue::CenterOf(index);
            let quartiles = Quartiles::new(&row.values);
            chart.draw_series([Boxplot::new_horizontal(at, &quartiles).width(18)])?;
        }
        area.present()?;
    }
    Ok(svg)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
