//! `cargo xtask bench`: Underpass and its peers side by side, in three network namespaces.
//!
//! Every round runs every scenario with every subject, one after the other, so that what disturbs the machine
//! disturbs all of them; what is reported are medians over the rounds. It measures and prints, and judges nothing.
#![expect(clippy::print_stdout, reason = "the report is its output")]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "it ends at what it did not expect"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "what is measured has three digits"
)]

mod ends;
mod machine;
mod plot;
mod report;
mod results;
mod scenario;
mod subject;
mod usage;

use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;
use proxy_tests::{
    lab::Lab,
    netns::run,
    privilege::{namespaces_missing, sockmap_missing},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::{
    ends::Origin,
    results::Results,
    scenario::Scenario,
    subject::{Kind, Subject},
};

/// Measure Underpass beside direct forwarding and other proxies.
#[derive(Parser)]
#[command(
    name = "cargo xtask bench",
    bin_name = "cargo xtask bench",
    max_term_width = 100
)]
struct Options {
    /// A check of the essentials, in less than two minutes
    #[arg(long)]
    short: bool,
    /// How often everything is measured
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// How long one measurement takes
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    seconds: f64,
    /// Only these subjects; repeat for more
    #[arg(long, value_enum, value_name = "NAME")]
    subject: Vec<Kind>,
    /// Only scenarios whose name contains this; repeat for more
    #[arg(long, value_name = "TEXT")]
    scenario: Vec<String>,
    /// List the scenarios and end
    #[arg(long)]
    list: bool,
    /// Write the report here too, with the machine described
    #[arg(long, value_name = "PATH")]
    markdown: Option<PathBuf>,
    /// Write every sample here
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Draw the ratios to direct forwarding here, as SVG
    #[arg(long, value_name = "PATH")]
    plot: Option<PathBuf>,
}

impl Options {
    fn scenarios(&self) -> Vec<Scenario> {
        let all = Scenario::all().into_iter().filter(|scenario| {
            let name = scenario.name();
            let chosen = self.scenario.is_empty()
                || self
                    .scenario
                    .iter()
                    .any(|text| name.contains(text.as_str()));
            chosen && (!self.short || !self.scenario.is_empty() || scenario.is_essential())
        });
        all.collect()
    }

    fn subjects(&self) -> Vec<Kind> {
        use clap::ValueEnum as _;

        let all = Kind::value_variants().iter().copied();
        let chosen = all.filter(|kind| match self.subject.as_slice() {
            [] => !self.short || !kind.is_peer(),
            some => some.contains(kind) || *kind == Kind::Direct,
        });
        chosen.collect()
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let scenarios = options.scenarios();
    if options.list {
        for scenario in &scenarios {
            println!("{}", scenario.name());
        }
        return ExitCode::SUCCESS;
    }
    if let Some(reason) = namespaces_missing() {
        eprintln!("the benchmark {reason}");
        return ExitCode::FAILURE;
    }
    raise_descriptor_limit();
    let lab = Lab::alone();
    ready(&lab);
    let origin = Origin::start(&lab);
    let mut subjects = Vec::new();
    let mut results = Results::default();
    for kind in options.subjects() {
        if matches!(kind, Kind::Sockmap | Kind::Auto)
            && let Some(missing) = sockmap_missing()
        {
            results.leave_out(kind, missing.replace('\n', " "));
            continue;
        }
        match Subject::start(kind, &lab) {
            Ok(subject) => subjects.push(subject),
            Err(reason) => results.leave_out(kind, reason),
        }
    }
    let rounds = options.rounds.unwrap_or(if options.short { 1 } else { 3 });
    let start = Instant::now();
    for round in 1..=rounds {
        for scenario in &scenarios {
            for subject in &mut subjects {
                let outcome = scenario.measure(subject, &lab, &origin, options.seconds);
                if let Err(wrong) = subject.calm_down() {
                    eprintln!("{} cannot be started again: {wrong}", subject.name());
                }
                let said = match &outcome {
                    Ok(sample) => sample.to_string(),
                    Err(wrong) => format!("failed: {wrong}"),
                };
                eprintln!(
                    "{:4} s  round {round} of {rounds}  {:24} {:14} {said}",
                    start.elapsed().as_secs(),
                    scenario.name(),
                    subject.name(),
                );
                results.add(scenario, subject.kind, outcome);
            }
        }
    }
    let report = report::markdown(&results, &machine::describe(&subjects));
    println!("{report}");
    let written = [
        (&options.markdown, report),
        (&options.json, results.json()),
        (&options.plot, plot::svg(&results)),
    ];
    for (path, text) in written {
        if let Some(path) = path
            && let Err(error) = fs::write(path, text)
        {
            eprintln!("cannot write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Both ends of thousands of connections are ours.
fn raise_descriptor_limit() {
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit).expect("up to the maximum it may be raised");
}

/// Lets the middle forward packets, for those that are not to be proxied, and gives ports enough to all.
fn ready(lab: &Lab) {
    for netns in [&lab.client, &lab.proxy, &lab.origin] {
        netns.run_in(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 65000").unwrap();
            fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").unwrap();
        });
    }
    for (netns, network, gateway) in [
        (&lab.client, "10.77.2.0/24", "10.77.1.2"),
        (&lab.origin, "10.77.1.0/24", "10.77.2.2"),
    ] {
        run(netns
            .command("ip")
            .args(["route", "add", network, "via", gateway]));
    }
}
