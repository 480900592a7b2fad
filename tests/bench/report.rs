//! The report, in Markdown.

use std::fmt::Write as _;

use crate::{
    results::{Metric, Results, number},
    subject::Kind,
};

/// Tables by scenario, the machine, and what we aim at.
pub(crate) fn markdown(results: &Results, machine: &str) -> String {
    let mut text = format!("{machine}\n");
    text += "Medians, least and greatest in brackets; in the last columns the medians by those of direct \
             forwarding.\n";
    for (kind, reason) in &results.left_out {
        let _ = writeln!(text, "\nLeft out: {}: {reason}", kind.name());
    }
    text += &aims(results);
    for scenario in &results.scenarios {
        let _ = write!(text, "\n### {scenario}\n\n");
        table(&mut text, results, scenario);
    }
    text
}

fn table(text: &mut String, results: &Results, scenario: &str) {
    let metrics = results.metrics(scenario);
    let titles: Vec<_> = metrics.iter().map(|metric| metric.title()).collect();
    let ratios: Vec<_> = metrics
        .iter()
        .filter(|metric| **metric != Metric::Fairness)
        .collect();
    let _ = write!(text, "| | {} |", titles.join(" | "));
    for metric in &ratios {
        let _ = write!(text, " {} / direct |", metric.title());
    }
    let columns = metrics.len() + ratios.len();
    let _ = writeln!(text, "\n| --- |{}", " ---: |".repeat(columns));
    for &kind in &results.subjects {
        if let Some(wrong) = results.failure(scenario, kind) {
            let _ = writeln!(
                text,
                "| {} | failed: {wrong} |{}",
                kind.name(),
                " |".repeat(columns - 1)
            );
            continue;
        }
        let _ = write!(text, "| {} |", kind.name());
        for &metric in &metrics {
            match results.summary(scenario, kind, metric) {
                Some(summary) => {
                    let [median, least, greatest] =
                        [summary.median, summary.least, summary.greatest].map(number);
                    let _ = write!(text, " {median} ({least} - {greatest}) |");
                }
                None => text.push_str(" |"),
            }
        }
        for &&metric in &ratios {
            match results.ratio(scenario, kind, metric) {
                Some(ratio) => {
                    let _ = write!(text, " {ratio:.2} |");
                }
                None => text.push_str(" |"),
            }
        }
        text.push('\n');
    }
}

/// What `auto` is to reach, and what it and the best of the others reach.
fn aims(results: &Results) -> String {
    let mut rows = Vec::new();
    for (tunnels, least) in [(1, "1.0"), (8, "0.9"), (64, "0.75")] {
        for direction in ["down", "up", "both"] {
            rows.push(Aim {
                what: format!("bulk, {tunnels} {direction}: throughput by direct"),
                wanted: format!(">= {least}"),
                of: results.by_kind(|kind| {
                    results.ratio(
                        &format!("bulk {tunnels} {direction}"),
                        kind,
                        Metric::Throughput,
                    )
                }),
                more_is_better: true,
            });
        }
        rows.push(Aim {
            what: format!("bulk, {tunnels} both: the slower way by the faster"),
            wanted: ">= 0.9".to_owned(),
            of: results.by_kind(|kind| {
                results.median(&format!("bulk {tunnels} both"), kind, Metric::Fairness)
            }),
            more_is_better: true,
        });
    }
    for scenario in results
        .scenarios
        .iter()
        .filter(|name| name.starts_with("paced"))
    {
        rows.push(Aim {
            what: format!("{scenario}: CPU s/GB added to direct"),
            wanted: "<= splice's".to_owned(),
            of: results.by_kind(|kind| {
                let direct = results.median(scenario, Kind::Direct, Metric::CpuPerGigabyte)?;
                Some(results.median(scenario, kind, Metric::CpuPerGigabyte)? - direct)
            }),
            more_is_better: false,
        });
    }
    let one_cpu = "round trip 1, one CPU";
    rows.push(Aim {
        what: "round trip of 64 bytes, one CPU, by direct".to_owned(),
        wanted: "<= 1.75".to_owned(),
        of: results.by_kind(|kind| results.ratio(one_cpu, kind, Metric::RoundTrip)),
        more_is_better: false,
    });
    rows.push(Aim {
        what: "its CPU us".to_owned(),
        wanted: "<= 0.7 of any other proxy's".to_owned(),
        of: results.by_kind(|kind| results.median(one_cpu, kind, Metric::CpuPerMessage)),
        more_is_better: false,
    });
    rows.push(Aim {
        what: "tunnels a second, by direct".to_owned(),
        wanted: ">= 0.65".to_owned(),
        of: results.by_kind(|kind| results.ratio("short tunnels 8", kind, Metric::Tunnels)),
        more_is_better: true,
    });
    rows.push(Aim {
        what: "idle tunnel, bytes of process and kernel added to direct".to_owned(),
        wanted: "<= 6144".to_owned(),
        of: results.by_kind(|kind| {
            let median = |kind, metric| results.median("idle 3000", kind, metric);
            let kernel = median(kind, Metric::Kernel)? - median(Kind::Direct, Metric::Kernel)?;
            Some(median(kind, Metric::Resident)? + kernel)
        }),
        more_is_better: false,
    });
    rows.retain(|row| row.of.iter().any(|(kind, _)| *kind == Kind::Auto));
    if rows.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "\n### What we aim at\n\n| | aim | auto | sockmap | splice | copy | best of the others |\n\
         | --- | --- | ---: | ---: | ---: | ---: | --- |\n",
    );
    for row in rows {
        row.write(&mut text);
    }
    text
}

struct Aim {
    what: String,
    wanted: String,
    of: Vec<(Kind, f64)>,
    more_is_better: bool,
}

impl Aim {
    fn write(&self, text: &mut String) {
        let _ = write!(text, "| {} | {} |", self.what, self.wanted);
        for wanted in [Kind::Auto, Kind::Sockmap, Kind::Splice, Kind::Copy] {
            let value = self.of.iter().find(|(kind, _)| *kind == wanted);
            let shown = value.map(|(_, value)| number(*value)).unwrap_or_default();
            let _ = write!(text, " {shown} |");
        }
        let others = self.of.iter().filter(|(kind, _)| kind.is_peer());
        let by_value = |one: &&(Kind, f64), other: &&(Kind, f64)| one.1.total_cmp(&other.1);
        let best = if self.more_is_better {
            others.max_by(by_value)
        } else {
            others.min_by(by_value)
        };
        let shown = best.map(|(kind, value)| format!("{} {}", kind.name(), number(*value)));
        let _ = writeln!(text, " {} |", shown.unwrap_or_default());
    }
}

impl Results {
    /// A value for each subject that has one.
    fn by_kind(&self, value: impl Fn(Kind) -> Option<f64>) -> Vec<(Kind, f64)> {
        let values = self
            .subjects
            .iter()
            .filter_map(|&kind| Some((kind, value(kind)?)));
        values.collect()
    }
}
