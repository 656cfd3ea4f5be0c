//! Bar charts as SVG, written by hand: a few rectangles and words need no library.

use super::job::Job;
use super::results::Results;
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const LABEL: f64 = 120.0;
const BAR: f64 = 22.0;
const GAP: f64 = 8.0;
const TOP: f64 = 40.0;

/// Returns a chart of one job: a bar for each contestant, with the range of its runs.
pub fn job(results: &Results, job: Job) -> String {
    let cells: Vec<_> = results
        .contenders
        .iter()
        .filter_map(|contender| {
            let cell = results.cell(contender.contestant, job)?;
            Some((contender.contestant, cell))
        })
        .collect();
    let most = cells
        .iter()
        .map(|(_, cell)| cell.figure.max)
        .fold(1.0, f64::max);
    let scale = (WIDTH - LABEL - 110.0) / most;
    let height = TOP + (BAR + GAP) * cells.len() as f64 + GAP;
    let unit = if job.is_bandwidth() { "MB/s" } else { "IOPS" };
    let mut bars = String::new();
    for (number, (contestant, cell)) in cells.iter().enumerate() {
        let y = TOP + (BAR + GAP) * number as f64;
        let middle = y + BAR / 2.0;
        let colour = if contestant.is_bulkhead() {
            "#1f6f8b"
        } else {
            "#a8a8a8"
        };
        let (end, least, most) = (
            LABEL + cell.figure.median * scale,
            LABEL + cell.figure.min * scale,
            LABEL + cell.figure.max * scale,
        );
        let text = middle + 4.0;
        // Writing to a string cannot fail.
        let _ = writeln!(
            bars,
            "<text x=\"{:.1}\" y=\"{text:.1}\" text-anchor=\"end\">{contestant}</text>\
             <rect x=\"{LABEL:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR:.1}\" fill=\"{colour}\"/>\
             <path d=\"M{least:.1} {middle:.1}H{most:.1}\" stroke=\"black\"/>\
             <text x=\"{:.1}\" y=\"{text:.1}\">{:.0}{}</text>",
            LABEL - 6.0,
            end - LABEL,
            most.max(end) + 6.0,
            cell.figure.median,
            cell.mark(),
        );
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LABEL:.0}\" y=\"22\" font-size=\"15\">{job}, {unit}</text>\n{bars}</svg>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::{JOB, example};

    #[test]
    fn every_contestant_has_a_bar_within_the_picture() {
        let svg = super::job(&example(), JOB);
        assert_eq!(svg.matches("<rect x=").count(), 3);
        assert!(svg.contains("bulkhead-pvh") && svg.contains(">6100<"));
        let widths = svg.split("width=\"").skip(1);
        for width in widths.filter_map(|rest| rest.split('"').next()?.parse::<f64>().ok()) {
            assert!(width > 0.0 && width < super::WIDTH);
        }
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }
}
