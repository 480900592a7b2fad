//! The columns of the table, and which of them fit. Pure.

use crate::{
    admin::{Sort, TunnelView},
    units,
};

/// From this width on there is room for more than what matters.
pub(super) const WIDE: u16 = 110;

/// A column.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) is_number: bool,
    /// The order that it is for.
    pub(super) sort: Option<Sort>,
    /// What stands there, in a column so wide.
    pub(super) cell: fn(&TunnelView, u16) -> String,
    /// Where it is too narrow for all, those with the highest go first.
    loss: u8,
    /// As wide as what stands there needs, within this.
    width: (u16, u16),
}

const TARGET: &str = "TARGET";

/// From left to right.
const COLUMNS: [Column; 9] = [
    Column {
        title: "ID",
        is_number: true,
        sort: None,
        cell: |view, _| view.id.to_string(),
        loss: 8,
        width: (4, 12),
    },
    Column {
        title: "AGE",
        is_number: true,
        sort: Some(Sort::Age),
        cell: |view, _| units::seconds(view.age),
        loss: 6,
        width: (6, 6),
    },
    Column {
        title: "CLIENT",
        is_number: false,
        sort: Some(Sort::Client),
        cell: client,
        loss: 2,
        width: (15, 15),
    },
    Column {
        title: "USER",
        is_number: false,
        sort: None,
        cell: |view, _| view.user.clone().unwrap_or_default(),
        loss: 7,
        // Where nobody has a name there is none.
        width: (0, 16),
    },
    Column {
        title: TARGET,
        is_number: false,
        sort: Some(Sort::Target),
        cell: |view, _| view.target.clone(),
        loss: 0,
        // And all that is left.
        width: (20, 20),
    },
    Column {
        title: "ENGINE",
        is_number: false,
        sort: Some(Sort::Engine),
        cell: |view, _| view.engine.clone().unwrap_or_else(|| "forward".to_owned()),
        loss: 5,
        width: (7, 7),
    },
    Column {
        title: "UP",
        is_number: true,
        sort: Some(Sort::Bytes),
        cell: |view, _| units::amount(view.up),
        loss: 4,
        width: (7, 7),
    },
    Column {
        title: "DOWN",
        is_number: true,
        sort: Some(Sort::Bytes),
        cell: |view, _| units::amount(view.down),
        loss: 3,
        width: (7, 7),
    },
    Column {
        title: "RATE",
        is_number: true,
        sort: Some(Sort::Rate),
        cell: |view, _| units::rate(view.up_rate + view.down_rate),
        loss: 1,
        width: (9, 9),
    },
];

/// The client, without its port where that is too long.
fn client(view: &TunnelView, width: u16) -> String {
    let client = view.client.as_str();
    let address = client
        .rsplit_once(':')
        .map_or(client, |(address, _)| address);
    let is_short = client.len() <= usize::from(width);
    if is_short { client } else { address }.to_owned()
}

impl Column {
    /// How wide it is to be for these tunnels, if it has anything to say.
    fn wanted(&self, tunnels: &[TunnelView], is_wide: bool) -> Option<u16> {
        let (least, mut most) = self.width;
        if self.sort == Some(Sort::Client) && is_wide {
            most = 26;
        }
        if least == most {
            return Some(least);
        }
        let lengths = tunnels
            .iter()
            .map(|view| (self.cell)(view, most).chars().count());
        let longest = u16::try_from(lengths.max().unwrap_or_default()).unwrap_or(most);
        match longest.clamp(least, most) {
            0 => None,
            // Its title has to fit, too.
            width => Some(width.max(u16::try_from(self.title.len()).unwrap_or(width))),
        }
    }
}

/// Those that fit, how wide each is, and how far they stand apart.
pub(super) fn that_fit(width: u16, tunnels: &[TunnelView]) -> (Vec<(&'static Column, u16)>, u16) {
    let is_wide = width >= WIDE;
    let spacing = if is_wide { 2 } else { 1 };
    let mut chosen: Vec<_> = COLUMNS
        .iter()
        .filter_map(|column| Some((column, column.wanted(tunnels, is_wide)?)))
        .collect();
    let used = |chosen: &[(&Column, u16)]| -> u16 {
        let gaps = u16::try_from(chosen.len().saturating_sub(1)).unwrap_or_default();
        chosen.iter().map(|(_, width)| width).sum::<u16>() + gaps * spacing
    };
    while chosen.len() > 1 && used(&chosen) > width {
        let place =
            (0..chosen.len()).max_by_key(|place| chosen.get(*place).map(|(column, _)| column.loss));
        chosen.remove(place.unwrap_or_default());
    }
    let rest = width.saturating_sub(used(&chosen));
    for (column, width) in &mut chosen {
        if column.title == TARGET {
            *width += rest;
        }
    }
    (chosen, spacing)
}
