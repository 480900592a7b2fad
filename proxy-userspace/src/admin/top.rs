//! `underpass top`: the tunnels of a running proxy, live in a terminal.
//!
//! What is shown and what keys do is in `state`, and how it looks in `draw` and what belongs to it; all that is pure.
//! Here is what moves them: the terminal, a clock, and the proxy.

mod columns;
mod draw;
mod panels;
mod popup;
mod state;

use std::{
    io::{self, IsTerminal as _, Write as _},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use jiff::Timestamp;
use ratatui::crossterm::event;
use serde::Serialize;
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};

use self::state::{Action, State};
use super::{
    Listing, Status,
    cli::{Order, Where, Which, status_text, tunnels_text},
    client::Client,
};

/// How many tunnels are printed without a terminal.
const PRINTED: usize = 20;

/// The command line.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Without a terminal:
  underpass top --once                  one look, as text
  underpass top --json                  a look a line, until it is ended
  underpass top --once --json | jq '.tunnels.tunnels[0].target'")]
pub struct Arguments {
    /// Where the proxy is.
    #[command(flatten)]
    of: Where,
    /// Which tunnels.
    #[command(flatten)]
    which: Which,
    /// In which order.
    #[command(flatten)]
    order: Order,
    /// Look this often; the proxy looks at its tunnels once a second itself
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = parse_interval)]
    interval: f64,
    /// Print one look, and end
    #[arg(long)]
    once: bool,
    /// Print this many tunnels at most [default: 20]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

fn parse_interval(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.5..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("from 0.5 to 3600 seconds are possible".to_owned()),
    }
}

/// What a look shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Look {
    /// When, in RFC 3339.
    time: String,
    status: Status,
    tunnels: Listing,
    /// The words that say which tunnels these are.
    #[serde(skip)]
    filter: String,
}

/// What is to be looked at.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wanted {
    /// The query of a URL.
    query: String,
    /// The words that it was made of.
    filter: String,
}

impl Look {
    async fn take(client: &Client, wanted: &Wanted) -> anyhow::Result<Self> {
        // Both come from the same look of the proxy, if the second is asked for at once.
        let tunnels = client.get(&format!("/tunnels?{}", wanted.query)).await?;
        let status = client.get("/status").await?;
        let time = Timestamp::now().strftime("%FT%T%.3fZ").to_string();
        Ok(Self {
            time,
            status,
            tunnels,
            filter: wanted.filter.clone(),
        })
    }
}

/// Shows what runs until the user has seen enough.
///
/// # Errors
/// The proxy does not answer at first, or the terminal is none.
pub async fn top(arguments: &Arguments) -> anyhow::Result<()> {
    let client = Client::new(arguments.of.place.clone())?;
    let mut state = State::new(
        arguments.which.words().map_err(anyhow::Error::msg)?,
        arguments.order,
        arguments.limit.unwrap_or(PRINTED),
    );
    let wanted = state.wanted().map_err(anyhow::Error::msg)?;
    let pause = Duration::from_secs_f64(arguments.interval);
    if arguments.once || arguments.of.json {
        return print(&client, &wanted, pause, arguments).await;
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("this is no terminal; --once prints what there is, --json prints it for programs");
    }
    // Whoever asks for the wrong proxy is told so where it can be read.
    state.show(Look::take(&client, &wanted).await?);
    let mut terminal = ratatui::try_init().context("the terminal cannot be used")?;
    let outcome = interact(&mut terminal, client, state, pause).await;
    ratatui::restore();
    outcome
}

/// Prints looks, one or until somebody closes the pipe.
async fn print(
    client: &Client,
    wanted: &Wanted,
    pause: Duration,
    arguments: &Arguments,
) -> anyhow::Result<()> {
    let mut clock = interval(pause);
    loop {
        clock.tick().await;
        let look = Look::take(client, wanted).await?;
        let text = if arguments.of.json {
            serde_json::to_string(&look)?
        } else {
            let (status, tunnels) = (status_text(&look.status), tunnels_text(&look.tunnels));
            format!("{status}\n{}", tunnels.trim_end())
        };
        match writeln!(io::stdout(), "{text}") {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
        if arguments.once {
            return Ok(());
        }
    }
}

/// What comes from outside.
enum News {
    Event(io::Result<event::Event>),
    Look(anyhow::Result<Box<Look>>),
    Killed(anyhow::Result<usize>),
}

/// Draws, and does what the keys say.
async fn interact(
    terminal: &mut ratatui::DefaultTerminal,
    client: Client,
    mut state: State,
    pause: Duration,
) -> anyhow::Result<()> {
    let (sender, mut news) = mpsc::channel(16);
    let (wanted, all_wanted) = watch::channel(state.wanted().unwrap_or_default());
    read_events(sender.clone());
    let _looks = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(look(
        client.clone(),
        all_wanted,
        pause,
        sender.clone(),
    )));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    loop {
        terminal.draw(|frame| draw::draw(frame, &mut state))?;
        let action = select! {
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            something = news.recv() => match something {
                None => return Ok(()),
                Some(News::Event(event)) => match event.context("the terminal is gone")? {
                    event::Event::Key(key) if key.is_press() => state.press(key),
                    _ => Action::Nothing,
                },
                Some(News::Look(Ok(look))) => {
                    state.show(*look);
                    Action::Nothing
                }
                Some(News::Look(Err(error))) => {
                    state.fail(&format!("{error:#}"));
                    Action::Nothing
                }
                Some(News::Killed(outcome)) => {
                    state.killed(outcome.map_err(|error| format!("{error:#}")));
                    Action::Nothing
                }
            },
        };
        match action {
            Action::Nothing => {}
            Action::Quit => return Ok(()),
            Action::Kill(path) => {
                let (client, sender) = (client.clone(), sender.clone());
                tokio::spawn(async move {
                    let outcome = client.post(&path).await.map(|answer| {
                        let killed = answer.get("killed").and_then(|killed| killed.as_array());
                        killed.map_or(0, Vec::len)
                    });
                    // Nobody asks any more when the user has left.
                    let _ = sender.send(News::Killed(outcome)).await;
                });
            }
        }
        if let Ok(new) = state.wanted() {
            wanted.send_if_modified(|current| {
                let is_new = *current != new;
                *current = new;
                is_new
            });
        }
    }
}

/// Looks in intervals, and as soon as something else is asked for.
async fn look(
    client: Client,
    mut all_wanted: watch::Receiver<Wanted>,
    pause: Duration,
    news: mpsc::Sender<News>,
) {
    let mut clock = interval(pause);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        select! {
            _ = clock.tick() => {}
            changed = all_wanted.changed() => if changed.is_err() { return },
        }
        let wanted = all_wanted.borrow_and_update().clone();
        let look = Look::take(&client, &wanted).await.map(Box::new);
        if news.send(News::Look(look)).await.is_err() {
            return;
        }
    }
}

/// Hands on what the terminal has to say, from a thread that ends with the process: reading blocks.
fn read_events(news: mpsc::Sender<News>) {
    thread::spawn(move || {
        loop {
            let event = event::read();
            let is_end = event.is_err();
            if news.blocking_send(News::Event(event)).is_err() || is_end {
                return;
            }
        }
    });
}
