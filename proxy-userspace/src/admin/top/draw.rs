//! How `underpass top` looks, at any size. Pure.
//!
//! Colours are the sixteen that terminals let their users choose; `NO_COLOR` leaves them out. What they say is
//! said in words too.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Cell, Row, Table, TableState},
};

use super::{
    columns::{self, Column},
    panels::{draw_panels, engine_colour, summary},
    popup::{draw_detail, draw_help, draw_question},
    state::{Mode, State},
};
use crate::{admin::Sort, units};

pub(super) const DOWN: Color = Color::Cyan;
pub(super) const UP: Color = Color::Magenta;
pub(super) const GOOD: Color = Color::Green;
pub(super) const BAD: Color = Color::Red;

/// From this size on there is room for panels above the table.
const ROOMY: (u16, u16) = (72, 18);

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, state: &mut State) {
    let area = frame.area();
    let is_roomy = area.width >= ROOMY.0 && area.height >= ROOMY.1;
    let above = if is_roomy { 6 } else { 2 };
    let [title, panels, table, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(above),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_title(frame, title, state);
    if let Some(look) = &state.look {
        if is_roomy {
            draw_panels(frame, panels, &look.status, state);
        } else {
            frame.render_widget(summary(&look.status), panels);
        }
    }
    draw_table(frame, table, state);
    draw_foot(frame, foot, state);
    match &state.mode {
        Mode::Detail => {
            if let Some(tunnel) = state.selected() {
                draw_detail(frame, area, tunnel);
            }
        }
        Mode::Help => draw_help(frame, area),
        Mode::Confirm(question, _) => draw_question(frame, area, question),
        Mode::Table | Mode::Filter(_) => {}
    }
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let Some(look) = &state.look else {
        return;
    };
    let status = &look.status;
    let colour = if status.state == "ready" { GOOD } else { BAD };
    let uptime = units::seconds(status.uptime);
    let mut parts = vec![
        Span::from(format!("underpass {}", status.version)).bold(),
        Span::raw("  "),
        Span::from(status.state.as_str()).fg(colour).bold(),
        Span::raw(format!("  up {uptime}  ")),
        Span::raw(status.listeners.join(", ")),
    ];
    if state.is_paused {
        parts.push(Span::raw("  "));
        parts.push(" held; space goes on ".reversed());
    }
    frame.render_widget(Line::from(parts), area);
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, state: &mut State) {
    let (rows, selected) = state.window(usize::from(area.height.saturating_sub(1)));
    let tunnels = state.tunnels().get(rows).unwrap_or_default();
    let (columns, spacing) = columns::that_fit(area.width, state.tunnels());
    let place = |text: Span<'static>, column: &Column| {
        let alignment = if column.is_number {
            Alignment::Right
        } else {
            Alignment::Left
        };
        Cell::from(Line::from(text).alignment(alignment))
    };
    let header = columns.iter().map(|(column, _)| {
        let is_sorted = column.sort == Some(state.order.sort);
        let arrow = match (is_sorted, state.order.reverse) {
            (false, _) => "",
            (true, false) => "▼",
            (true, true) => "▲",
        };
        let text = Span::from(format!("{}{arrow}", column.title));
        place(if is_sorted { text.bold() } else { text }, column)
    });
    let body = tunnels.iter().map(|view| {
        let is_idle = view.up_rate + view.down_rate < 0.5;
        let cells = columns.iter().map(|(column, width)| {
            let text = Span::from((column.cell)(view, *width));
            let is_engine = column.sort == Some(Sort::Engine);
            let colour = engine_colour(view.engine.as_deref().unwrap_or_default());
            place(if is_engine { text.fg(colour) } else { text }, column)
        });
        let row = Row::new(cells);
        if is_idle { row.dim() } else { row }
    });
    let widths = columns.iter().map(|(_, width)| Constraint::Length(*width));
    let table = Table::new(body, widths)
        .header(Row::new(header).underlined())
        .column_spacing(spacing)
        .row_highlight_style(Style::new().fg(Color::Reset).reversed());
    let mut selection = TableState::new().with_selected(Some(selected));
    frame.render_stateful_widget(table, area, &mut selection);

    if tunnels.is_empty() && area.height > 2 {
        let text = match (state.listing(), state.filter.as_str()) {
            (None, _) => "looking",
            (Some(_), "") => "no tunnel is open",
            (Some(_), _) => "no tunnel fits the filter",
        };
        let [_, middle, _] = Layout::vertical([
            Constraint::Fill(1),
            Constraint::Length(1),
            Constraint::Fill(2),
        ])
        .areas(area);
        frame.render_widget(Line::from(text).dim().centered(), middle);
    }
}

fn draw_foot(frame: &mut Frame<'_>, area: Rect, state: &State) {
    if let Mode::Filter(text) = &state.mode {
        let hint = match &state.notice {
            Some(why) => why.clone().fg(BAD),
            None => {
                "a part of the target, or client=10.0.0.0/8 user=anna engine=copy min_bytes=1000"
                    .dim()
            }
        };
        let line = Line::from(vec![
            "filter: ".bold(),
            Span::raw(text.as_str()),
            "█".slow_blink(),
            Span::raw("  "),
            hint,
        ]);
        return frame.render_widget(line, area);
    }
    let total = state.total();
    let mut counts = match state.filter.as_str() {
        "" => format!("{} open", units::count(total)),
        filter => format!("{} fit '{filter}'", units::count(total)),
    };
    if state.selected().is_some() {
        counts = format!("{} / {counts}", units::count(state.place()));
    }
    let width = u16::try_from(counts.chars().count()).unwrap_or(u16::MAX);
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(width)])
        .spacing(1)
        .areas(area);
    frame.render_widget(Line::from(counts).right_aligned(), right);
    let status = state.look.as_ref().map(|look| &look.status);
    let refused = status.and_then(|status| status.config_error.as_ref());
    let said = match (&state.trouble, &state.notice, refused) {
        (Some(why), _, _) => Line::from(format!("no answer: {why}")).fg(BAD).bold(),
        (None, Some(notice), _) => Line::from(notice.as_str()).bold(),
        (None, None, Some(why)) => Line::from(format!("configuration refused: {why}")).fg(BAD),
        (None, None, None) => {
            let keys = [
                ("?", "help"),
                ("/", "filter"),
                ("s", "sort"),
                ("k", "kill"),
                ("q", "leave"),
            ];
            let mut line = Line::default();
            for (key, what) in keys {
                let more = [key.bold(), Span::raw(format!(" {what}  ")).dim()];
                let width = line.width() + more.iter().map(Span::width).sum::<usize>();
                if width <= usize::from(left.width) {
                    line.extend(more);
                }
            }
            line
        }
    };
    frame.render_widget(said, left);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyCode};

    use super::{
        super::state::tests::{look, press},
        *,
    };
    use crate::admin::Order;

    /// The screen's lines.
    fn screen(state: &mut State, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let rows = buffer.content().chunks(usize::from(width));
        rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect())
            .collect()
    }

    fn state(ids: impl IntoIterator<Item = u64>, total: usize) -> State {
        let mut state = State::new(String::new(), Order::default(), 20);
        state.show(look(ids, total));
        state
    }

    fn has(screen: &[String], text: &str) -> bool {
        screen.iter().any(|line| line.contains(text))
    }

    #[test]
    fn nothing_breaks_at_any_size() {
        let long = "x".repeat(300);
        for ids in [0..0, 1..100] {
            for key in ["", "?", "k", "/", "K", "\n"] {
                for (width, height) in [1, 11, 40, 72, 110]
                    .into_iter()
                    .flat_map(|width| [1, 4, 17, 18, 40].map(|height| (width, height)))
                {
                    let count = ids.clone().count();
                    let mut state = state(ids.clone(), count);
                    state.filter.clone_from(&long);
                    if let Some(look) = &mut state.look {
                        look.filter.clone_from(&long);
                    }
                    for letter in key.chars() {
                        let code = match letter {
                            '\n' => KeyCode::Enter,
                            letter => KeyCode::Char(letter),
                        };
                        press(&mut state, code);
                    }
                    let lines = screen(&mut state, width, height);
                    assert_eq!(lines.len(), usize::from(height));
                }
            }
        }
    }

    #[test]
    fn what_matters_is_there_in_every_width() {
        for (width, seen, unseen) in [
            (
                40,
                ["TARGET", "RATE", "20.0 kB/s"].as_slice(),
                ["ENGINE"].as_slice(),
            ),
            (
                80,
                &[
                    "AGE",
                    "CLIENT",
                    "10.20.30.3 ",
                    "ENGINE",
                    "UP",
                    "DOWN",
                    "1m15s",
                    "sockmap",
                ],
                &["10.20.30.3:40003"],
            ),
            (
                120,
                &[
                    "ID",
                    "10.20.30.3:40003",
                    "USER",
                    "anna",
                    "17 refused",
                    "no-ads",
                ],
                &["forwarding 0"],
            ),
        ] {
            let lines = screen(&mut state(1..4, 3), width, 24);
            for text in seen {
                assert!(has(&lines, text), "{width}: {text}\n{}", lines.join("\n"));
            }
            for text in unseen {
                assert!(!has(&lines, text), "{width}: {text}\n{}", lines.join("\n"));
            }
            assert!(has(&lines, "host-3.example"), "{}", lines.join("\n"));
        }
    }

    #[test]
    fn columns_are_lines() {
        let lines = screen(&mut state([100_000], 1), 80, 10);
        let end = |line: &str, text: &str| {
            let start = line.find(text).unwrap();
            line.get(..start).unwrap().chars().count() + text.chars().count()
        };
        let header = lines.get(3).unwrap();
        let row = lines.get(4).unwrap();
        for (title, value) in [("UP", "100 MB"), ("DOWN", "200 MB"), ("RATE▼", "20.0 kB/s")] {
            assert_eq!(end(header, title), end(row, value), "{header}\n{row}");
        }
        assert_eq!(end(header, "RATE▼"), 80);
    }

    #[test]
    fn what_is_off_is_said() {
        let mut state = state([], 0);
        assert!(has(&screen(&mut state, 80, 24), "no tunnel is open"));
        state.filter = "nowhere".to_owned();
        assert!(has(&screen(&mut state, 80, 24), "looking"));
        let mut nothing = look([], 0);
        nothing.filter.clone_from(&state.filter);
        state.show(nothing);
        assert!(has(
            &screen(&mut state, 80, 24),
            "no tunnel fits the filter"
        ));
        state.fail("it is gone");
        assert!(has(&screen(&mut state, 80, 24), "no answer: it is gone"));
        let mut broken = look([], 0);
        broken.status.config_error = Some("line 3 is odd".to_owned());
        broken.status.state = "draining".to_owned();
        broken.filter.clone_from(&state.filter);
        state.show(broken);
        for (width, height) in [(80, 10), (120, 24)] {
            let lines = screen(&mut state, width, height);
            assert!(has(&lines, "line 3 is odd"), "{}", lines.join("\n"));
            assert!(has(&lines, "draining"), "{}", lines.join("\n"));
        }
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        let mut odd = look([1], 1);
        for view in &mut odd.tunnels.tunnels {
            view.user = Some("\u{1b}[31mred\u{7}".to_owned());
        }
        let mut state = State::new(String::new(), Order::default(), 20);
        state.show(odd);
        let lines = screen(&mut state, 120, 24);
        assert!(lines.iter().all(|line| !line.contains(char::is_control)));
    }
}
