//! What `underpass top` shows, and what keys change. Pure.

use std::collections::VecDeque;

use clap::ValueEnum as _;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{Look, Wanted};
use crate::{
    admin::{
        Listing, Sort, TunnelView,
        cli::{Order, query_of, query_of_words},
    },
    units,
};

/// How many looks the sparklines remember.
const REMEMBERED: usize = 300;

/// How many more rows than can be seen are asked for, so that scrolling does not wait.
const AHEAD: usize = 100;

/// What a key asks for, beyond what is shown.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    Nothing,
    Quit,
    /// To be sent to this path.
    Kill(String),
}

/// What takes the keys.
#[derive(Debug, PartialEq)]
pub(super) enum Mode {
    Table,
    /// A filter is being written.
    Filter(String),
    /// The selected tunnel, in full.
    Detail,
    Help,
    /// A question, and where to send it if the answer is yes.
    Confirm(String, String),
}

/// What is shown.
#[derive(Debug)]
pub(super) struct State {
    pub(super) mode: Mode,
    /// Words, as they were written.
    pub(super) filter: String,
    pub(super) order: Order,
    pub(super) is_paused: bool,
    pub(super) look: Option<Look>,
    /// Bytes in a second up and down, the newest first.
    pub(super) history: VecDeque<(f64, f64)>,
    /// What went wrong or well: told until the next key.
    pub(super) notice: Option<String>,
    /// Since when, and why, there is no answer.
    pub(super) trouble: Option<String>,
    /// The row that is selected; its tunnel, once one was chosen.
    selected: usize,
    chosen: Option<u64>,
    /// The last one is to be selected, once it is here.
    seeks_end: bool,
    /// The first row that can be seen, and how many can.
    first: usize,
    height: usize,
    limit: usize,
}

impl State {
    pub(super) fn new(filter: String, order: Order, limit: usize) -> Self {
        Self {
            mode: Mode::Table,
            filter,
            order,
            is_paused: false,
            look: None,
            history: VecDeque::new(),
            notice: None,
            trouble: None,
            selected: 0,
            chosen: None,
            seeks_end: false,
            first: 0,
            height: 0,
            limit,
        }
    }

    /// What is to be shown.
    ///
    /// # Errors
    /// The filter makes no sense.
    pub(super) fn wanted(&self) -> Result<Wanted, String> {
        let limit = ("limit", self.limit.to_string());
        let mut query = query_of(self.order.given().chain([limit]));
        let filter = query_of_words(&self.filter)?;
        if !filter.is_empty() {
            query.push('&');
            query.push_str(&filter);
        }
        let filter = self.filter.clone();
        Ok(Wanted { query, filter })
    }

    /// The tunnels that fit the filter, once there was a look for them: whoever acts on a row means one of these.
    pub(super) fn listing(&self) -> Option<&Listing> {
        let look = self.look.as_ref();
        look.filter(|look| look.filter == self.filter)
            .map(|look| &look.tunnels)
    }

    pub(super) fn tunnels(&self) -> &[TunnelView] {
        self.listing().map_or(&[], |listing| &listing.tunnels)
    }

    /// How many fit.
    pub(super) fn total(&self) -> usize {
        self.listing().map_or(0, |listing| listing.total)
    }

    /// The tunnel that is selected.
    pub(super) fn selected(&self) -> Option<&TunnelView> {
        self.tunnels().get(self.selected)
    }

    /// Its row, counted from one.
    pub(super) fn place(&self) -> usize {
        self.selected + 1
    }

    /// The rows that can be seen when so many fit, and which of them is selected.
    pub(super) fn window(&mut self, height: usize) -> (std::ops::Range<usize>, usize) {
        self.height = height;
        let count = self.tunnels().len();
        let last_first = count.saturating_sub(height);
        self.first = self
            .first
            .max((self.selected + 1).saturating_sub(height))
            .min(self.selected)
            .min(last_first);
        self.limit = self.limit.max(self.first + height + AHEAD);
        let end = count.min(self.first + height);
        (self.first..end, self.selected.saturating_sub(self.first))
    }

    /// Takes a look.
    pub(super) fn show(&mut self, look: Look) {
        self.trouble = None;
        // One that was asked for something else comes too late. A picture is held once there is one.
        let is_late = look.filter != self.filter;
        if self.listing().is_some() && (self.is_paused || is_late) {
            return;
        }
        let rates = (look.status.up_rate, look.status.down_rate);
        self.history.push_front(rates);
        self.history.truncate(REMEMBERED);
        self.look = Some(look);
        if std::mem::take(&mut self.seeks_end) {
            self.select(self.tunnels().len().saturating_sub(1));
        }
        // Who was chosen stays so, wherever it is now.
        let place = self
            .chosen
            .and_then(|id| self.tunnels().iter().position(|tunnel| tunnel.id == id));
        match place {
            Some(place) => self.selected = place,
            None => self.select(self.selected.min(self.tunnels().len().saturating_sub(1))),
        }
        if self.mode == Mode::Detail && self.selected().is_none() {
            self.mode = Mode::Table;
        }
    }

    /// There was no answer.
    pub(super) fn fail(&mut self, why: &str) {
        self.trouble = Some(why.to_owned());
    }

    /// So many tunnels were killed, or why not.
    pub(super) fn killed(&mut self, outcome: Result<usize, String>) {
        self.notice = Some(match outcome {
            Ok(1) => "1 tunnel was killed".to_owned(),
            Ok(count) => format!("{count} tunnels were killed"),
            Err(why) => format!("not killed: {why}"),
        });
    }

    /// Does what a key is for.
    pub(super) fn press(&mut self, key: KeyEvent) -> Action {
        self.notice = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Action::Quit,
                _ => Action::Nothing,
            };
        }
        match std::mem::replace(&mut self.mode, Mode::Table) {
            Mode::Table => self.press_in_table(key.code),
            Mode::Filter(text) => {
                self.press_in_filter(text, key.code);
                Action::Nothing
            }
            // Any key closes it, but those that move to another tunnel.
            Mode::Detail => match key.code {
                KeyCode::Up | KeyCode::Down | KeyCode::Char('k') => {
                    let action = self.press_in_table(key.code);
                    if self.mode == Mode::Table {
                        self.mode = Mode::Detail;
                    }
                    action
                }
                _ => Action::Nothing,
            },
            Mode::Help => Action::Nothing,
            Mode::Confirm(_, path) => match key.code {
                KeyCode::Char('y' | 'Y') => Action::Kill(path),
                _ => Action::Nothing,
            },
        }
    }

    fn press_in_table(&mut self, code: KeyCode) -> Action {
        let last = self.tunnels().len().saturating_sub(1);
        let page = self.height.saturating_sub(1).max(1);
        match code {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Up => self.select(self.selected.saturating_sub(1)),
            KeyCode::Down => self.select((self.selected + 1).min(last)),
            KeyCode::PageUp => self.select(self.selected.saturating_sub(page)),
            KeyCode::PageDown => self.select((self.selected + page).min(last)),
            KeyCode::Home => {
                self.select(0);
                // The first row stays selected, whoever is there.
                self.chosen = None;
            }
            KeyCode::End => {
                // All have to be here, to know the last.
                let total = self.total();
                self.seeks_end = self.tunnels().len() < total;
                self.limit = self.limit.max(total);
                self.select(last);
            }
            KeyCode::Char('s') => self.turn(1),
            KeyCode::Char('S') => self.turn(Sort::value_variants().len() - 1),
            KeyCode::Char('r') => self.order.reverse = !self.order.reverse,
            KeyCode::Char(' ' | 'p') => self.is_paused = !self.is_paused,
            KeyCode::Char('/' | 'f') => self.mode = Mode::Filter(self.filter.clone()),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.mode = Mode::Help,
            KeyCode::Enter if self.selected().is_some() => {
                self.pin();
                self.mode = Mode::Detail;
            }
            KeyCode::Char('k') | KeyCode::Delete => {
                self.pin();
                if let Some(tunnel) = self.selected() {
                    let question = format!(
                        "Kill {}, from {} to {}?",
                        tunnel.id, tunnel.client, tunnel.target
                    );
                    self.mode = Mode::Confirm(question, format!("/tunnels/{}/kill", tunnel.id));
                }
            }
            KeyCode::Char('K') => self.ask_for_all(),
            _ => {}
        }
        Action::Nothing
    }

    /// Asks whether all that fit the filter are to be killed.
    fn ask_for_all(&mut self) {
        let total = self.total();
        match query_of_words(&self.filter) {
            Ok(query) if !query.is_empty() => {
                let question = match total {
                    1 => format!("Kill the tunnel that fits '{}'?", self.filter),
                    _ => format!(
                        "Kill all {} tunnels that fit '{}'?",
                        units::count(total),
                        self.filter
                    ),
                };
                self.mode = Mode::Confirm(question, format!("/tunnels/kill?{query}"));
            }
            _ => self.notice = Some("K kills all that fit the filter; / sets one".to_owned()),
        }
    }

    fn press_in_filter(&mut self, mut text: String, code: KeyCode) {
        match code {
            KeyCode::Esc => return,
            KeyCode::Enter => match query_of_words(&text) {
                Ok(_) => {
                    text.trim().clone_into(&mut self.filter);
                    self.select(0);
                    self.chosen = None;
                    return;
                }
                Err(why) => self.notice = Some(why),
            },
            KeyCode::Backspace => drop(text.pop()),
            KeyCode::Char(letter) => text.push(letter),
            _ => {}
        }
        self.mode = Mode::Filter(text);
    }

    /// Whoever is selected stays so, even in the first row.
    fn pin(&mut self) {
        self.chosen = self.selected().map(|tunnel| tunnel.id);
    }

    fn select(&mut self, row: usize) {
        self.selected = row;
        self.chosen = match row {
            0 => None,
            row => self.tunnels().get(row).map(|tunnel| tunnel.id),
        };
    }

    /// Goes so many orders further.
    fn turn(&mut self, steps: usize) {
        let orders = Sort::value_variants();
        let place = orders.iter().position(|order| *order == self.order.sort);
        let next = (place.unwrap_or_default() + steps) % orders.len();
        if let Some(order) = orders.get(next) {
            self.order.sort = *order;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::admin::Status;

    pub(in super::super) fn status() -> Status {
        Status {
            version: "0.1.0".to_owned(),
            pid: 4711,
            state: "ready".to_owned(),
            uptime: 12_000.0,
            listeners: vec!["127.0.0.1:3128".to_owned()],
            engines: ["sockmap", "splice", "copy"].map(str::to_owned).to_vec(),
            connections: 4,
            tunnels: [("sockmap", 3), ("splice", 0), ("copy", 1)]
                .map(|(engine, count)| (engine.to_owned(), count))
                .into(),
            forwarding: 0,
            tunnels_max: 9000,
            up: 3_000_000,
            down: 7_000_000_000,
            up_rate: 1_200.0,
            down_rate: 34_000_000.0,
            refusals: [("no-ads".to_owned(), 17)].into(),
            reloads: 0,
            failed_reloads: 0,
            config_error: None,
        }
    }

    pub(in super::super) fn tunnel(id: u64) -> TunnelView {
        TunnelView {
            id,
            client: format!("10.20.30.{}:{}", id % 250, 40_000 + id % 20_000),
            user: (id == 2).then(|| "anna".to_owned()),
            listener: "default".to_owned(),
            method: "CONNECT".to_owned(),
            target: format!("host-{id}.example.com:443"),
            sni: None,
            upstream: "192.0.2.1:443".to_owned(),
            parent: None,
            rule: Some("pods".to_owned()),
            engine: Some("sockmap".to_owned()),
            age: 75.0,
            up: 1000 * id,
            down: 2000 * id,
            up_rate: 10.0,
            down_rate: 20_000.0,
        }
    }

    pub(in super::super) fn look(ids: impl IntoIterator<Item = u64>, total: usize) -> Look {
        Look {
            time: "2026-01-02T03:04:05.678Z".to_owned(),
            status: status(),
            tunnels: Listing {
                total,
                up_rate: 1.0,
                down_rate: 2.0,
                tunnels: ids.into_iter().map(tunnel).collect(),
            },
            filter: String::new(),
        }
    }

    pub(in super::super) fn press(state: &mut State, code: KeyCode) -> Action {
        state.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn type_in(state: &mut State, text: &str) {
        for letter in text.chars() {
            assert_eq!(press(state, KeyCode::Char(letter)), Action::Nothing);
        }
    }

    fn selected(state: &State) -> Option<u64> {
        state.selected().map(|tunnel| tunnel.id)
    }

    #[test]
    fn the_selection_stays_with_its_tunnel() {
        let mut state = State::new(String::new(), Order::default(), 20);
        assert_eq!(press(&mut state, KeyCode::Down), Action::Nothing);
        state.show(look([1, 2, 3, 4], 4));
        // The first row is nobody's.
        state.show(look([4, 2, 3, 1], 4));
        assert_eq!(selected(&state), Some(4));
        press(&mut state, KeyCode::Down);
        assert_eq!(selected(&state), Some(2));
        state.show(look([1, 3, 4, 2], 4));
        assert_eq!(selected(&state), Some(2));
        // It has ended: its row is somebody else's.
        state.show(look([1, 3, 4], 3));
        assert_eq!(selected(&state), Some(4));
        // Nor does one leave that is looked at.
        press(&mut state, KeyCode::Home);
        press(&mut state, KeyCode::Enter);
        state.show(look([3, 1, 4], 3));
        assert_eq!(selected(&state), Some(1));
        assert_eq!(state.mode, Mode::Detail);
        press(&mut state, KeyCode::Up);
        assert_eq!(selected(&state), Some(3));
        assert_eq!(state.mode, Mode::Detail);
        state.show(look([], 0));
        assert_eq!(selected(&state), None);
        press(&mut state, KeyCode::Enter);
        assert_eq!(state.mode, Mode::Table);
    }

    #[test]
    fn rows_scroll_and_more_of_them_are_asked_for() {
        let mut state = State::new(String::new(), Order::default(), 20);
        state.show(look(1..=150, 9000));
        assert_eq!(state.window(10), (0..10, 0));
        assert_eq!(state.wanted().unwrap().query, "sort=rate&limit=110");
        for _ in 0..10 {
            press(&mut state, KeyCode::Down);
        }
        assert_eq!(state.window(10), (1..11, 9));
        press(&mut state, KeyCode::PageUp);
        assert_eq!(state.window(10), (1..11, 0));
        press(&mut state, KeyCode::End);
        assert_eq!(state.window(10), (140..150, 9));
        assert_eq!(state.wanted().unwrap().query, "sort=rate&limit=9000");
        state.show(look(1..=300, 300));
        assert_eq!(selected(&state), Some(300));
        state.show(look(1..=150, 9000));
        // A taller window shows no empty rows while there are tunnels.
        assert_eq!(state.window(40), (110..150, 39));
        press(&mut state, KeyCode::Home);
        assert_eq!(state.window(40), (0..40, 0));
    }

    #[test]
    fn keys_sort_filter_and_pause() {
        let mut state = State::new(String::new(), Order::default(), 20);
        state.show(look([1], 1));
        type_in(&mut state, "sr");
        assert_eq!(
            state.wanted().unwrap().query,
            "sort=bytes&reverse=true&limit=20"
        );
        type_in(&mut state, "Sr/user=anna x+y&z");
        assert_eq!(state.filter, "");
        press(&mut state, KeyCode::Enter);
        assert_eq!(
            state.wanted().unwrap().query,
            "sort=rate&limit=20&user=anna&target=x%2By%26z"
        );
        // One that makes no sense stays where it can be mended.
        type_in(&mut state, "/ colour=red");
        press(&mut state, KeyCode::Enter);
        assert!(state.notice.as_ref().unwrap().contains("colour"));
        assert!(matches!(&state.mode, Mode::Filter(_)));
        press(&mut state, KeyCode::Esc);
        assert_eq!(state.filter, "user=anna x+y&z");
        press(&mut state, KeyCode::Esc);
        assert_eq!(state.wanted().unwrap().query, "sort=rate&limit=20");

        press(&mut state, KeyCode::Char(' '));
        state.show(look([1, 2], 2));
        assert_eq!(state.tunnels().len(), 1);
        // Held or not, another filter wants another picture.
        type_in(&mut state, "/x");
        press(&mut state, KeyCode::Enter);
        let mut fitting = look([3, 4, 5], 3);
        fitting.filter = "x".to_owned();
        state.show(fitting);
        assert_eq!(state.tunnels().len(), 3);
        press(&mut state, KeyCode::Esc);
        press(&mut state, KeyCode::Char(' '));
        state.show(look([1, 2], 2));
        assert_eq!(state.tunnels().len(), 2);
        assert_eq!(press(&mut state, KeyCode::Char('q')), Action::Quit);
    }

    #[test]
    fn killing_asks_first() {
        let mut state = State::new(String::new(), Order::default(), 20);
        assert_eq!(press(&mut state, KeyCode::Char('k')), Action::Nothing);
        assert_eq!(state.mode, Mode::Table);
        state.show(look([7, 8], 2));
        press(&mut state, KeyCode::Down);
        press(&mut state, KeyCode::Char('k'));
        // Whoever comes to that row in the meantime is not meant.
        state.show(look([8, 7], 2));
        assert_eq!(
            press(&mut state, KeyCode::Char('y')),
            Action::Kill("/tunnels/8/kill".to_owned())
        );
        press(&mut state, KeyCode::Char('k'));
        assert_eq!(press(&mut state, KeyCode::Enter), Action::Nothing);
        assert_eq!(state.mode, Mode::Table);

        press(&mut state, KeyCode::Char('K'));
        assert_eq!(state.mode, Mode::Table);
        assert!(state.notice.is_some());
        type_in(&mut state, "/example");
        press(&mut state, KeyCode::Enter);
        // Nothing is there to be killed before there was a look for it.
        assert_eq!(selected(&state), None);
        press(&mut state, KeyCode::Char('k'));
        assert_eq!(state.mode, Mode::Table);
        let mut late = look([7], 1);
        state.show(late.clone());
        assert_eq!(selected(&state), None);
        late.filter = "example".to_owned();
        state.show(late);
        assert_eq!(selected(&state), Some(7));
        press(&mut state, KeyCode::Char('K'));
        assert_eq!(
            press(&mut state, KeyCode::Char('Y')),
            Action::Kill("/tunnels/kill?target=example".to_owned())
        );
        state.killed(Ok(2));
        assert_eq!(state.notice.as_deref(), Some("2 tunnels were killed"));
    }
}
