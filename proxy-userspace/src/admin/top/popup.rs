//! What stands in front of the table for a while. Pure.

use ratatui::{
    Frame,
    layout::{Constraint, Rect},
    style::{Color, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Block, BorderType, Clear, Padding, Paragraph, Wrap},
};

use super::draw::BAD;
use crate::{admin::TunnelView, units};

/// What the keys do.
const KEYS: [(&str, &str); 11] = [
    ("↑ ↓ PgUp PgDn Home End", "select a tunnel"),
    ("Enter", "all about it"),
    ("k", "kill it"),
    ("/", "show only those that fit a filter"),
    ("Esc", "show all again"),
    ("K", "kill all that fit the filter"),
    ("s S", "next order, previous order"),
    ("r", "the other way round"),
    ("space", "hold the picture, and go on"),
    ("?", "this help"),
    ("q", "leave"),
];

/// A question that is answered by `y`, or not.
pub(super) fn draw_question(frame: &mut Frame<'_>, area: Rect, question: &str) {
    let lines = vec![
        Line::from(question),
        Line::default(),
        Line::from(vec![
            "y".bold(),
            Span::raw(" kill    "),
            "any other key".bold(),
            Span::raw(" leave as it is"),
        ]),
    ];
    draw_popup(frame, area, "Kill", lines, BAD);
}

pub(super) fn draw_detail(frame: &mut Frame<'_>, area: Rect, view: &TunnelView) {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let flow = |bytes: u64, rate: f64| {
        let amount = units::amount(bytes);
        format!(
            "{amount} ({} bytes), {}",
            units::count(bytes),
            units::rate(rate)
        )
    };
    let rows = [
        ("number", view.id.to_string()),
        ("request", format!("{} {}", view.method, view.target)),
        ("client", view.client.clone()),
        ("user", or_none(&view.user)),
        ("listener", view.listener.clone()),
        ("rule", or_none(&view.rule)),
        ("upstream", view.upstream.clone()),
        ("parent", or_none(&view.parent)),
        ("TLS name", or_none(&view.sni)),
        (
            "engine",
            view.engine.clone().unwrap_or_else(|| "forward".to_owned()),
        ),
        ("open for", units::seconds(view.age)),
        ("to client", flow(view.down, view.down_rate)),
        ("from client", flow(view.up, view.up_rate)),
    ];
    let lines = rows
        .into_iter()
        .map(|(name, value)| {
            Line::from(vec![
                Span::from(format!("{name:<12}")).dim(),
                Span::raw(value),
            ])
        })
        .collect();
    draw_popup(frame, area, "Tunnel", lines, Color::Reset);
}

pub(super) fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let keys = KEYS
        .iter()
        .map(|(key, what)| Line::from(vec![format!("{key:<24}").bold(), Span::raw(*what)]));
    let lines = keys
        .chain([
            Line::default(),
            Line::from("A filter is words: a part of the target, or key=value of"),
            Line::from("client user target upstream parent rule listener engine"),
            Line::from("min_age (seconds) min_bytes. All of them must fit."),
        ])
        .collect();
    draw_popup(frame, area, "Keys", lines, Color::Reset);
}

/// In the middle of the screen, as large as its lines.
fn draw_popup(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &'static str,
    lines: Vec<Line<'_>>,
    colour: Color,
) {
    let widest = lines.iter().map(Line::width).max().unwrap_or_default();
    let width = u16::try_from(widest + 4)
        .unwrap_or(u16::MAX)
        .min(area.width);
    let inside = usize::from(width.saturating_sub(4).max(1));
    // Words that do not fit start a line of their own: one more than there are letters for.
    let needed = lines.iter().map(|line| match line.width() {
        width if width > inside => width.div_ceil(inside) + 1,
        _ => 1,
    });
    let height = u16::try_from(needed.sum::<usize>() + 2)
        .unwrap_or(u16::MAX)
        .min(area.height);
    let paragraph = Paragraph::new(lines).wrap(Wrap { trim: false });
    let place = area.centered(Constraint::Length(width), Constraint::Length(height));
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(Style::new().fg(colour))
        .padding(Padding::horizontal(1))
        .title(format!(" {title} "));
    frame.render_widget(Clear, place);
    frame.render_widget(paragraph.block(block), place);
}
