//! The numbers above the table: in panels, or in two lines where there is no room for them. Pure.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Block, BorderType, Padding, Paragraph, RenderDirection, Sparkline},
};

use super::{
    columns::WIDE,
    draw::{BAD, DOWN, UP},
    state::State,
};
use crate::{admin::Status, relay::EngineKind, units};

/// All numbers in two lines.
pub(super) fn summary(status: &Status) -> Paragraph<'static> {
    let lines = vec![
        Line::from(vec![
            Span::raw(format!("{} tunnels", units::count(open(status)))).bold(),
            Span::raw("  ↓ "),
            Span::from(units::rate(status.down_rate)).fg(DOWN),
            Span::raw("  ↑ "),
            Span::from(units::rate(status.up_rate)).fg(UP),
            Span::raw(format!("  {} refused", units::count(refused(status)))),
        ]),
        engines(status),
    ];
    Paragraph::new(lines)
}

fn open(status: &Status) -> usize {
    status.tunnels.values().sum()
}

fn refused(status: &Status) -> u64 {
    status.refusals.values().sum()
}

/// The engines, the fastest first, how many tunnels each has, and its colour.
fn by_engine(status: &Status) -> impl Iterator<Item = (String, usize, Color)> {
    EngineKind::ALL.into_iter().map(|engine| {
        let name = engine.to_string();
        let count = status.tunnels.get(&name).copied().unwrap_or_default();
        let colour = engine_colour(&name);
        (name, count, colour)
    })
}

fn engines(status: &Status) -> Line<'static> {
    let mut parts = Vec::new();
    for (engine, count, colour) in by_engine(status) {
        parts.push(Span::from(engine).fg(colour));
        parts.push(Span::raw(format!(" {}  ", units::count(count))));
    }
    parts.push(Span::raw(format!(
        "forwarding {}",
        units::count(status.forwarding)
    )));
    Line::from(parts)
}

pub(super) fn engine_colour(engine: &str) -> Color {
    match engine {
        "sockmap" => Color::Cyan,
        "splice" => Color::Green,
        "copy" => Color::Yellow,
        _ => Color::Reset,
    }
}

fn panel(title: impl Into<Line<'static>>) -> Block<'static> {
    Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(Style::new().add_modifier(Modifier::DIM))
        .title(title.into().not_dim())
}

pub(super) fn draw_panels(frame: &mut Frame<'_>, area: Rect, status: &Status, state: &State) {
    let has_refusals = area.width >= WIDE;
    let [numbers, down, up, refusals] = Layout::horizontal([
        Constraint::Length(24),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(if has_refusals { 30 } else { 0 }),
    ])
    .areas(area);

    let room = units::count(status.tunnels_max);
    let title = format!(" {} tunnels ", units::count(open(status)));
    let below = Line::from(format!(" room for {room} "))
        .right_aligned()
        .dim();
    let rows =
        by_engine(status).chain([("forwarding".to_owned(), status.forwarding, Color::Reset)]);
    let lines: Vec<Line<'_>> = rows
        .map(|(name, count, colour)| {
            let width = usize::from(numbers.width.saturating_sub(4));
            let count = units::count(count);
            let space = width.saturating_sub(name.len() + count.len());
            Line::from(vec![
                Span::from(name).fg(colour),
                Span::raw(" ".repeat(space)),
                Span::raw(count),
            ])
        })
        .collect();
    let block = panel(title)
        .title_bottom(below)
        .padding(Padding::horizontal(1));
    frame.render_widget(Paragraph::new(lines).block(block), numbers);

    let directions: [Direction; 2] = [
        ("to clients", status.down, DOWN, |(_, down)| down, down),
        ("from clients", status.up, UP, |(up, _)| up, up),
    ];
    for (name, total, colour, rate_of, area) in directions {
        let now = rate_of((status.up_rate, status.down_rate));
        let total = units::amount(total);
        let title = Line::from(vec![
            Span::raw(format!(" {name} ")),
            Span::from(format!("{} ", units::rate(now)))
                .fg(colour)
                .bold(),
        ]);
        let below = Line::from(format!(" {total} in all "))
            .right_aligned()
            .dim();
        let width = usize::from(area.width.saturating_sub(2));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a bar has eight steps a row"
        )]
        let data: Vec<u64> = state
            .history
            .iter()
            .take(width)
            .map(|rates| rate_of(*rates).max(0.0) as u64)
            .collect();
        let sparkline = Sparkline::default()
            .data(data)
            .direction(RenderDirection::RightToLeft)
            .style(Style::new().fg(colour))
            .block(panel(title).title_bottom(below));
        frame.render_widget(sparkline, area);
    }

    if has_refusals {
        draw_refusals(frame, refusals, status);
    }
}

/// A direction: its name, its bytes, its colour, which rate is its own, and its place.
type Direction = (&'static str, u64, Color, fn((f64, f64)) -> f64, Rect);

fn draw_refusals(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let mut refusals: Vec<_> = status.refusals.iter().collect();
    refusals.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let width = usize::from(area.width.saturating_sub(4));
    let lines: Vec<Line<'_>> = refusals
        .into_iter()
        .map(|(rule, count)| {
            let count = units::count(*count);
            let room = width.saturating_sub(count.len() + 1);
            let name: String = rule.chars().take(room).collect();
            let space = width.saturating_sub(name.chars().count() + count.len());
            Line::from(vec![
                Span::raw(name),
                Span::raw(" ".repeat(space)),
                Span::from(count).fg(BAD),
            ])
        })
        .collect();
    let title = format!(" {} refused ", units::count(refused(status)));
    let block = panel(title).padding(Padding::horizontal(1));
    frame.render_widget(Paragraph::new(lines).block(block), area);
}
