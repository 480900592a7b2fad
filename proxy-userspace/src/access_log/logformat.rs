//! The language of Squid's `logformat`: text with codes such as `%>a` and `%6tr`. Pure.
//!
//! A code is `%`, how it is quoted (`"`, `[`, `#`, `'`), where it stands in its width (`-`, `0`, digits), an argument in
//! braces, and a name. Without a word about quoting, it is that of the quotes or brackets around it, as in Squid's
//! `Format::Token::parse`. What is not known is `-`.

use std::{
    borrow::Cow,
    fmt::Write as _,
    net::SocketAddr,
    str::FromStr,
    time::{Duration, UNIX_EPOCH},
};

use jiff::{Timestamp, Zoned, tz::TimeZone};

use super::{Record, squid};
use crate::{http::Refusal, percent::encode};

/// A format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFormat {
    text: Box<str>,
    pieces: Box<[Piece]>,
}

/// A part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Code(Code),
}

/// What stands for a value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Code {
    quoting: Quoting,
    left: bool,
    zero: bool,
    width: usize,
    /// The most that is shown.
    max: Option<usize>,
    argument: Option<String>,
    value: Value,
}

/// How a value is made safe for its line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Quoting {
    /// As it would be in a URL.
    #[default]
    Default,
    /// For between quotes: `\` before what would end them.
    Quotes,
    /// For between brackets: `%XX` for what would end them.
    Brackets,
    /// As a part of a URL, with everything escaped that means anything there.
    Url,
    /// Not at all, but for the end of a line.
    Raw,
}

/// Makes the values of one list, and the table of their names.
macro_rules! values {
    ($($name:ident = $($code:literal)|+ $what:literal;)*) => {
        /// What a code stands for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Value {
            $(#[doc = $what] $name,)*
        }

        /// The codes.
        const CODES: &[(&str, Value)] = &[$($(($code, Value::$name),)+)*];
    };
}

values! {
    ClientAddress = ">a" | ">A" | ">eui" "The client's address; names of clients are not looked up.";
    ClientPort = ">p" "Its port.";
    ListenerAddress = ">la" | "la" "The address of ours that it connected to.";
    ListenerPort = ">lp" | "lp" "Its port.";
    PeerAddress = "<a" "The address that was connected to.";
    PeerPort = "<p" "Its port.";
    PeerName = "<A" "The parent, or the host.";
    LocalAddress = "<la" | "oa" "Our address of that connection.";
    LocalPort = "<lp" "Its port.";
    Seconds = "ts" "Seconds since 1970.";
    Milliseconds = "tu" "Milliseconds of the second.";
    LocalTime = "tl" "The local time, by an argument of strftime.";
    GmtTime = "tg" "The same, in UTC.";
    ResponseTime = "tr" "Milliseconds since the request.";
    DnsTime = "dt" "Milliseconds that addresses were looked for.";
    StartTime = "tS" "Seconds and milliseconds of the request.";
    PeerTime = "<pt" "Milliseconds to the first byte behind our answer.";
    Tag = "Ss" "How it went.";
    Hierarchy = "Sh" "How the way was chosen.";
    Status = ">Hs" | "Hs" "The status that the client got.";
    PeerStatus = "<Hs" "The status of an origin's response.";
    Sent = "<st" "Bytes sent to the client.";
    Received = ">st" "Bytes received from it.";
    Total = "st" "Both together.";
    Method = "rm" | ">rm" | "<rm" "The method.";
    Url = "ru" | ">ru" | "<ru" "The URL, or host and port.";
    Path = "rp" | ">rp" | "<rp" "Its path.";
    Scheme = ">rs" | "<rs" "Its scheme.";
    Host = ">rd" | "<rd" "Its host.";
    Port = ">rP" | "<rP" "Its port.";
    Version = "rv" | ">rv" "The version of HTTP.";
    User = "un" | "ul" "The user.";
    Nobody = "ui" | "ue" | "us" | "ea" | "et" | "note" | "<h" | "adapt::<last_h" "What is never known here.";
    ContentType = "mt" "The type of the response.";
    Field = ">h" | ">ha" "A field of the request, by an argument with its name.";
    Error = "err_code" "What kept the client from being served, as RFC 9209 calls it; or how a tunnel ended.";
    ErrorDetail = "err_detail" "The same in words.";
    Number = "sn" | "master_xaction" "The number of the client's connection.";
    ServerName = "ssl::>sni" "The name in the ClientHello.";
}

impl LogFormat {
    /// The format as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The fields of requests that are in it, in lower case.
    pub(super) fn fields(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Code(Code {
                value: Value::Field,
                argument,
                ..
            }) => argument.as_deref(),
            _ => None,
        })
    }

    /// The record's line.
    pub(super) fn line(&self, record: &Record<'_>) -> String {
        let mut line = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => line.push_str(text),
                Piece::Code(code) => code.write(record, &mut line),
            }
        }
        line
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains(['\r', '\n']) {
            return Err("a log format is one line".to_owned());
        }
        let mut pieces = Vec::new();
        let mut around = Quoting::Default;
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            let (before, code) = rest.split_at(at);
            push(&mut pieces, before, &mut around);
            let code = code.strip_prefix('%').unwrap_or_default();
            rest = if let Some(behind) = code.strip_prefix('%') {
                push(&mut pieces, "%", &mut around);
                behind
            } else {
                let (code, behind) = Code::parse(code, around)?;
                pieces.push(Piece::Code(code));
                behind
            };
        }
        push(&mut pieces, rest, &mut around);
        Ok(Self {
            text: text.into(),
            pieces: pieces.into(),
        })
    }
}

/// Adds text, and notes which quotes or brackets it opens and closes.
fn push(pieces: &mut Vec<Piece>, text: &str, around: &mut Quoting) {
    for char in text.chars() {
        *around = match (char, *around) {
            ('"', Quoting::Quotes) | (']', Quoting::Brackets) => Quoting::Default,
            ('"', Quoting::Default) => Quoting::Quotes,
            ('[', Quoting::Default) => Quoting::Brackets,
            (_, around) => around,
        };
    }
    match pieces.last_mut() {
        Some(Piece::Text(last)) => last.push_str(text),
        _ if text.is_empty() => {}
        _ => pieces.push(Piece::Text(text.to_owned())),
    }
}

impl Code {
    /// The code at the beginning of the text behind its `%`, and what is behind it.
    fn parse(text: &str, around: Quoting) -> Result<(Self, &str), String> {
        let whole = text;
        let (quoting, text) = match text.as_bytes().first() {
            Some(b'"') => (Quoting::Quotes, &text[1..]),
            Some(b'[') => (Quoting::Brackets, &text[1..]),
            Some(b'#') => (Quoting::Url, &text[1..]),
            Some(b'\'') => (Quoting::Raw, &text[1..]),
            _ => (around, text),
        };
        let (left, text) = after(text, '-');
        let (zero, text) = after(text, '0');
        let (width, text) = number(text)?;
        let (max, text) = match text.strip_prefix('.') {
            Some(text) => number(text)?,
            None => (None, text),
        };
        let (before, text) = argument(text)?;
        let known = CODES.iter().filter(|(name, _)| text.starts_with(name));
        let Some((name, value)) = known.max_by_key(|(name, _)| name.len()) else {
            let shown: String = whole.chars().take(12).collect();
            return Err(format!("the code at '%{shown}' is not known"));
        };
        let (behind, text) = argument(text.get(name.len()..).unwrap_or_default())?;
        let argument = match (*value, behind.or(before)) {
            (Value::Field, None) => {
                return Err(format!(
                    "%{name} needs a field, as in %{{User-Agent}}{name}"
                ));
            }
            (Value::Field, Some(field)) => Some(field.trim_end_matches(':').to_ascii_lowercase()),
            (Value::LocalTime | Value::GmtTime, Some(pattern)) => {
                jiff::fmt::strtime::format(pattern, &Zoned::default())
                    .map_err(|error| format!("%{name}: '{pattern}': {error}"))?;
                Some(pattern.to_owned())
            }
            (_, argument) => argument.map(str::to_owned),
        };
        let code = Self {
            quoting,
            left,
            zero,
            width: width.unwrap_or_default(),
            max,
            argument,
            value: *value,
        };
        Ok((code, text))
    }

    fn write(&self, record: &Record<'_>, line: &mut String) {
        let value = self.value(record);
        let mut value = quote(value.as_deref().unwrap_or("-"), self.quoting);
        if let Some(max) = self.max
            && let Some((end, _)) = value.char_indices().nth(max)
        {
            value.to_mut().truncate(end);
        }
        let width = self.width;
        // A String takes everything.
        let _ = match (self.left, self.zero) {
            (true, _) => write!(line, "{value:<width$}"),
            (false, true) => write!(line, "{value:0>width$}"),
            (false, false) => write!(line, "{value:>width$}"),
        };
    }

    /// What the code stands for, if that is known.
    fn value<'a>(&self, record: &'a Record<'_>) -> Option<Cow<'a, str>> {
        let milliseconds = |duration: Option<Duration>| duration.map(|time| time.as_millis());
        let time = || record.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let owned = |text: &dyn ToString| Some(Cow::Owned(text.to_string()));
        let of = |text: Option<String>| text.map(Cow::Owned);
        let borrowed = |text: Option<&'a str>| text.map(Cow::Borrowed);
        let ip = |address: SocketAddr| owned(&address.ip());
        let port = |address: SocketAddr| owned(&address.port());
        match self.value {
            Value::ClientAddress => ip(record.client),
            Value::ClientPort => port(record.client),
            Value::ListenerAddress => ip(record.listener),
            Value::ListenerPort => port(record.listener),
            Value::PeerAddress => of(record.peer.map(|peer| peer.to_string())),
            Value::PeerPort => of(record.peer_port.map(|port| port.to_string())),
            Value::PeerName => {
                let host = || record.target.map(|target| target.host().to_string());
                record.peer?;
                borrowed(record.parent).or_else(|| of(host()))
            }
            Value::LocalAddress => ip(record.local?),
            Value::LocalPort => port(record.local?),
            Value::Seconds => owned(&time().as_secs()),
            Value::Milliseconds => Some(format!("{:03}", time().subsec_millis()).into()),
            Value::LocalTime => of(self.strftime(record, TimeZone::system())),
            Value::GmtTime => of(self.strftime(record, TimeZone::UTC)),
            Value::ResponseTime => owned(&record.elapsed.as_millis()),
            Value::DnsTime => of(milliseconds(record.timings.dns).map(|ms| ms.to_string())),
            Value::PeerTime => of(milliseconds(record.timings.first_byte).map(|ms| ms.to_string())),
            Value::StartTime => {
                let start = time().saturating_sub(record.elapsed);
                Some(format!("{}.{:03}", start.as_secs(), start.subsec_millis()).into())
            }
            Value::Tag => owned(&record.tag),
            Value::Hierarchy if record.peer.is_none() => Some("HIER_NONE".into()),
            Value::Hierarchy => owned(&record.hierarchy),
            Value::Status => owned(&record.status),
            Value::PeerStatus => {
                let is_forwarded = record.target.is_some()
                    && record.method != "CONNECT"
                    && record.refusal.is_none()
                    && record.status != 0;
                is_forwarded.then(|| record.status.to_string().into())
            }
            Value::Sent => owned(&record.sent),
            Value::Received => owned(&record.received),
            Value::Total => owned(&(record.sent + record.received)),
            Value::Method => Some(record.method.into()),
            Value::Url => Some(Cow::Borrowed(&*record.url)),
            Value::Path => {
                let (_, rest) = record.url.split_once("://")?;
                let at = rest.find('/').unwrap_or(rest.len());
                Some(Cow::Borrowed(&rest[at..])).filter(|path| !path.is_empty())
            }
            Value::Scheme => borrowed(record.url.split_once("://").map(|(scheme, _)| scheme)),
            Value::Host => of(record.target.map(|target| target.host().to_string())),
            Value::Port => of(record.target.map(|target| target.port().to_string())),
            Value::Version => of(record.version.map(|version| version.to_string())),
            Value::User => borrowed(record.user),
            Value::Nobody => None,
            Value::ContentType => borrowed(record.content_type.as_deref()),
            Value::Field => borrowed(record.field(self.argument.as_deref()?)),
            Value::Error => {
                let token = record.refusal.map(|refusal| refusal.error().as_str());
                borrowed(token).or_else(|| of(record.ending.map(ToString::to_string)))
            }
            Value::ErrorDetail => {
                let reason = record.refusal.map(Refusal::reason);
                borrowed(reason.or_else(|| record.ending?.detail()))
            }
            Value::Number => owned(&record.id),
            Value::ServerName => borrowed(record.sni),
        }
    }

    fn strftime(&self, record: &Record<'_>, zone: TimeZone) -> Option<String> {
        let pattern = self.argument.as_deref().unwrap_or("%d/%b/%Y:%H:%M:%S %z");
        let time = Timestamp::try_from(record.time).ok()?.to_zoned(zone);
        jiff::fmt::strtime::format(pattern, &time).ok()
    }
}

/// Whether the text begins with the character, and what is behind it.
fn after(text: &str, first: char) -> (bool, &str) {
    match text.strip_prefix(first) {
        Some(rest) => (true, rest),
        None => (false, text),
    }
}

/// The number that the text begins with, if it does.
fn number(text: &str) -> Result<(Option<usize>, &str), String> {
    /// Wider is a mistake, and would be memory for each line.
    const WIDEST: usize = 1024;

    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    if end == 0 {
        return Ok((None, text));
    }
    let (digits, rest) = text.split_at(end);
    match digits.parse() {
        Ok(number) if number <= WIDEST => Ok((Some(number), rest)),
        _ => Err(format!("{digits} is too wide; {WIDEST} is the limit")),
    }
}

/// The argument in braces that the text begins with, if it does.
fn argument(text: &str) -> Result<(Option<&str>, &str), String> {
    let Some(inner) = text.strip_prefix('{') else {
        return Ok((None, text));
    };
    let (argument, rest) = inner
        .split_once('}')
        .ok_or_else(|| format!("there is no end to '{{{inner}'"))?;
    Ok((Some(argument), rest))
}

/// The text as it can stand in a line.
pub(super) fn quote(text: &str, quoting: Quoting) -> Cow<'_, str> {
    let escape = |must: fn(char) -> bool, one: fn(char, &mut String)| -> Cow<'_, str> {
        if !text.contains(must) {
            return text.into();
        }
        let mut escaped = String::with_capacity(text.len() + 8);
        for char in text.chars() {
            if must(char) {
                one(char, &mut escaped);
            } else {
                escaped.push(char);
            }
        }
        escaped.into()
    };
    match quoting {
        Quoting::Default => encode(text, |byte| squid::is_safe(byte) || byte == b'%'),
        Quoting::Url => encode(text, crate::percent::is_unreserved),
        Quoting::Raw => escape(char::is_control, push_percent),
        Quoting::Quotes => escape(
            |char| char.is_control() || matches!(char, '"' | '\\'),
            |char, to| match char {
                '\n' => to.push_str("\\n"),
                '\r' => to.push_str("\\r"),
                '\t' => to.push_str("\\t"),
                '"' | '\\' => to.extend(['\\', char]),
                control => push_percent(control, to),
            },
        ),
        Quoting::Brackets => escape(
            |char| !char.is_ascii() || char.is_control() || matches!(char, '%' | '[' | ']' | '\\'),
            |char, to| match char {
                '\n' => to.push_str("\\n"),
                '\r' => to.push_str("\\r"),
                '\\' => to.push_str("\\\\"),
                // In lower case, as Squid has it here.
                other => {
                    let mut upper = String::new();
                    push_percent(other, &mut upper);
                    to.push_str(&upper.to_ascii_lowercase());
                }
            },
        ),
    }
}

/// The character as `%XX`.
fn push_percent(char: char, to: &mut String) {
    for byte in char.encode_utf8(&mut [0; 4]).bytes() {
        // A String takes everything.
        let _ = write!(to, "%{byte:02X}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::record::example, *};

    fn line(format: &str, record: &Record<'_>) -> String {
        format.parse::<LogFormat>().unwrap().line(record)
    }

    #[test]
    fn squids_own_format_says_what_its_native_one_does() {
        let text = "%ts.%03tu %6tr %>a %Ss/%03>Hs %<st %rm %ru %[un %Sh/%<a %mt";
        assert_eq!(line(text, &example()), squid::line(&example()));
        let refused = Record {
            status: 0,
            peer: None,
            user: Some("a[na"),
            ..example()
        };
        assert_eq!(
            line("%03>Hs %[un %Sh/%<a", &refused),
            "000 a%5bna HIER_NONE/-"
        );
    }

    #[test]
    fn values_have_their_place_and_their_quotes() {
        let fields = [("user-agent".into(), "a \"b\"\r\nc%".into())];
        let record = Record {
            fields: &fields,
            url: "http://h/p\"x?".into(),
            ..example()
        };
        for (format, expected) in [
            (
                "<%8tr|%-8tr|%08tr|%.2tr>",
                "<     228|228     |00000228|22>",
            ),
            ("\"%{User-Agent}>h\"", "\"a \\\"b\\\"\\r\\nc%\""),
            ("\"%>h{User-Agent:}\"", "\"a \\\"b\\\"\\r\\nc%\""),
            ("[%{user-agent}>h]", "[a \"b\"\\r\\nc%25]"),
            ("%{user-agent}>h", "a%20%22b%22%0D%0Ac%"),
            ("%#{user-agent}>h", "a%20%22b%22%0D%0Ac%25"),
            ("%'{user-agent}>h", "a \"b\"%0D%0Ac%"),
            ("%{referer}>h 100%%", "- 100%"),
            ("%tS %dt %<pt", "1544160065.020 1 -"),
            ("%{%Y-%m-%dT%H:%M:%S}tg", "2018-12-07T05:21:05"),
            ("[%tg]", "[07/Dec/2018:05:21:05 +0000]"),
            ("%ru %rp %>rs", "http://h/p%22x? /p%22x? http"),
            (
                "%<la:%<lp %la:%lp %>p",
                "172.30.109.95:50000 172.30.109.95:3128 44476",
            ),
            ("%st %>st %rv", "88335 702 1.1"),
        ] {
            assert_eq!(line(format, &record), expected, "{format}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (format, part) in [
            ("%>ha", "needs a field"),
            ("%nonsense", "'%nonsense' is not known"),
            ("%", "is not known"),
            ("%{x", "no end"),
            ("%9999tr", "too wide"),
            ("%{%!}tl", "%!"),
            ("a\nb", "one line"),
        ] {
            let error = format.parse::<LogFormat>().unwrap_err();
            assert!(error.contains(part), "{format}: {error}");
        }
    }

    proptest! {
        #[test]
        fn nobody_can_write_a_second_line(agent: String, url: String, format in "[\"\\[#' a-z%<>{}]{0,20}") {
            let fields = [("user-agent".into(), agent.as_str().into())];
            let record = Record { url: url.as_str().into(), fields: &fields, ..example() };
            let all = "\"%{user-agent}>h\" [%{user-agent}>h] %'{user-agent}>h %#{user-agent}>h %ru %{user-agent}>h";
            prop_assert!(!line(all, &record).contains(['\n', '\r']));
            if let Ok(format) = format.parse::<LogFormat>() {
                prop_assert!(!format.line(&record).contains(['\n', '\r']));
            }
        }
    }
}
