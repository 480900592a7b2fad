//! The ratios to direct forwarding as bars, in SVG.

use std::fmt::Write as _;

use crate::results::{Metric, Results};

const BAR: usize = 14;
const GAP: usize = 34;
const LABEL: usize = 330;
const WIDTH: usize = 460;
/// The longest bar.
const MOST: f64 = 3.0;

/// One picture: for each scenario its first quantity, by subject.
pub(crate) fn svg(results: &Results) -> String {
    let mut bars = String::new();
    let mut y = 30;
    for scenario in &results.scenarios {
        let Some(&metric) = results
            .metrics(scenario)
            .iter()
            .find(|metric| !matches!(metric, Metric::Resident))
        else {
            continue;
        };
        let _ = writeln!(
            bars,
            "<text x=\"10\" y=\"{y}\" font-weight=\"bold\">{scenario}: {} / direct</text>",
            metric.title()
        );
        y += 8;
        for &kind in &results.subjects {
            let Some(ratio) = results.ratio(scenario, kind, metric) else {
                continue;
            };
            let length = ratio.min(MOST) / MOST * WIDTH as f64;
            let fill = if kind.is_peer() { "#999" } else { "#2a6f97" };
            let _ = writeln!(
                bars,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LABEL}\" y=\"{y}\" width=\"{length:.0}\" height=\"{}\" fill=\"{fill}\"/>\
                 <text x=\"{:.0}\" y=\"{}\">{ratio:.2}</text>",
                LABEL - 6,
                y + BAR - 3,
                kind.name(),
                BAR - 3,
                LABEL as f64 + length + 5.0,
                y + BAR - 3,
            );
            y += BAR;
        }
        y += GAP;
    }
    let one = LABEL as f64 + WIDTH as f64 / MOST;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{y}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <line x1=\"{one:.0}\" x2=\"{one:.0}\" y1=\"14\" y2=\"{y}\" stroke=\"#c33\" stroke-dasharray=\"3\"/>\n\
         {bars}</svg>\n",
        LABEL + WIDTH + 60
    )
}
