//! The head of a request, read byte by byte and strictly (RFC 9112 §2 to §5).
//!
//! The parser is a state machine that looks at one byte at a time, from left to right and never
//! back. So its answer can not depend on how the network cut the bytes into pieces, and what can
//! not become HTTP is refused at the first impossible byte instead of after a deadline.
//!
//! What RFC 9112 lets a lenient recipient repair is refused here, because two recipients that repair
//! differently are how requests are smuggled: bare LF or CR as line ends (§2.2), whitespace before
//! a colon (§5.1), folded lines (§5.2), more than one space in the request line (§3).
//!
//! Syntax only: whether the request is one that we serve is decided in
//! [`ConnectRequest`](super::ConnectRequest).

use std::fmt;

use thiserror::Error;

use super::Status;
use crate::limits::{MAX_EMPTY_LINES, MAX_HEAD_BYTES, MAX_METHOD_BYTES, MAX_TARGET_BYTES};

#[cfg(test)]
mod tests;

/// Reads a request head from pieces of any size.
#[derive(Debug)]
pub struct HeadParser {
    /// After an error this stays the error.
    state: Result<State, HeadError>,
    /// Bytes taken so far, empty lines before the request line included.
    received: usize,
    empty_lines: usize,
    /// Filled as its parts are read; whole once the state is [`State::Complete`].
    head: Head,
}

/// How far the parser came with the bytes it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All bytes are taken and the head is not at its end.
    NeedMore,
    /// The head is complete.
    Complete {
        /// How many bytes of this slice belong to the head; the rest belongs to the tunnel.
        consumed: usize,
    },
}

/// A complete request head.
#[derive(Clone, PartialEq, Eq)]
pub struct Head {
    method: String,
    target: Vec<u8>,
    version: Version,
    /// All field lines as `name ":" value LF`, names in lower case, values without the whitespace
    /// around them. A name has no colon and a value no LF, so the lines can be told apart; one
    /// buffer keeps a head of very many short fields from costing many times its size.
    fields: Vec<u8>,
}

/// The HTTP version of a request, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0, where `Host` is optional.
    Http10,
    /// HTTP/1.1, or a higher minor version, which is to be read as 1.1 (RFC 9110 §2.5).
    Http11,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
        })
    }
}

/// Why the bytes are not an HTTP/1 request head that we accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// A TLS record header where the method should be.
    #[error("this looks like TLS; use http:// in the proxy URL, this port does not speak TLS")]
    Tls,
    /// The version byte of SOCKS 4 or 5 where the method should be.
    #[error("this looks like SOCKS; configure this port as an HTTP proxy, it does not speak SOCKS")]
    Socks,
    /// A byte that is in no method.
    #[error("this is not an HTTP request: the method has an invalid character")]
    InvalidMethod,
    /// The request line begins with a space, or has two where one belongs.
    #[error("the parts of the request line must be separated by exactly one space")]
    ExtraSpace,
    /// The line ends after the method.
    #[error("the request line has no target; write CONNECT host:port HTTP/1.1")]
    MissingTarget,
    /// A control character or a byte above 126 in the target.
    #[error("the request target has a character that is not visible ASCII")]
    InvalidTarget,
    /// The line ends after the target, as in HTTP/0.9.
    #[error("the request line has no HTTP version; write CONNECT host:port HTTP/1.1")]
    MissingVersion,
    /// Not `HTTP/` digit `.` digit.
    #[error("the HTTP version is malformed; write HTTP/1.1")]
    InvalidVersion,
    /// A version that is well formed and is not HTTP/1.
    #[error("the HTTP version is not supported; this port speaks HTTP/1.1 and HTTP/1.0")]
    UnsupportedVersion,
    /// A line that begins with whitespace.
    #[error("a header line begins with a space or a tab; folded lines are not accepted")]
    FoldedLine,
    /// A field name that is empty or has a character that is not allowed.
    #[error("a header name is empty or has an invalid character")]
    InvalidFieldName,
    /// `Name : value`.
    #[error("a header name is followed by a space or a tab; the colon must follow at once")]
    SpaceBeforeColon,
    /// A line that ends within the name.
    #[error("a header line has no colon")]
    MissingColon,
    /// NUL or another control character in a value.
    #[error("a header value has a control character")]
    InvalidFieldValue,
    /// LF without CR.
    #[error("a line ends in LF alone; lines must end in CRLF")]
    BareLf,
    /// CR without LF.
    #[error("a CR is not followed by LF; lines must end in CRLF")]
    BareCr,
    /// More than [`MAX_EMPTY_LINES`] before the request line.
    #[error("too many empty lines before the request line")]
    EmptyLines,
    /// More than [`MAX_METHOD_BYTES`].
    #[error("the method is longer than any that is known")]
    MethodTooLong,
    /// More than [`MAX_TARGET_BYTES`].
    #[error("the request target is longer than {MAX_TARGET_BYTES} bytes")]
    TargetTooLong,
    /// More than [`MAX_HEAD_BYTES`].
    #[error("the request head is larger than {MAX_HEAD_BYTES} bytes")]
    TooLarge,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing of the request yet; at most empty lines.
    Start,
    /// The LF of an empty line before the request line.
    EmptyLineLf,
    /// The method, or the space after it.
    Method,
    /// The target, or the space after it.
    Target,
    /// `HTTP/`, of which this much is still to come.
    VersionName(&'static [u8]),
    /// The digit before the dot.
    Major,
    /// The dot after this digit.
    Dot(u8),
    /// The digit after the dot.
    Minor(u8),
    /// The CR of the request line.
    RequestLineCr,
    /// The LF of the request line or of a field line.
    LineLf,
    /// The first byte of a field line, or the CR that ends the head.
    LineStart,
    /// A field name, or the colon after it.
    Name,
    /// The whitespace before a value, its first byte, or the CR of an empty value.
    ValueStart,
    /// A value, or the CR after it.
    Value,
    /// The LF that ends the head.
    FinalLf,
    /// The head is whole; the next byte belongs to the tunnel.
    Complete,
}

impl HeadParser {
    /// A parser that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: Ok(State::Start),
            received: 0,
            empty_lines: 0,
            head: Head {
                method: String::new(),
                target: Vec::new(),
                version: Version::Http11,
                fields: Vec::new(),
            },
        }
    }

    /// A parser of the fields behind the last chunk of a body, which look like those of a head (RFC 9112 section 7.1.2).
    #[must_use]
    pub fn of_trailer() -> Self {
        Self {
            state: Ok(State::LineStart),
            ..Self::new()
        }
    }

    /// Takes the next bytes. Once it has failed it gives the same error again; once it is
    /// complete it consumes no more.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Progress, HeadError> {
        let mut consumed = 0;
        for byte in bytes {
            let state = self.state?;
            if state == State::Complete {
                break;
            }
            self.state = self.step(state, *byte);
            consumed += 1;
        }
        if self.state? == State::Complete {
            Ok(Progress::Complete { consumed })
        } else {
            Ok(Progress::NeedMore)
        }
    }

    /// Whether no byte of a request has come; line ends before the request line do not count.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self.state, Ok(State::Start | State::EmptyLineLf))
    }

    /// The method, once a target follows it; also of a head that is wrong further on.
    #[must_use]
    pub fn method_read(&self) -> Option<&str> {
        (!self.head.target.is_empty()).then_some(self.head.method.as_str())
    }

    /// The head, if it is complete.
    #[must_use]
    pub fn into_head(self) -> Option<Head> {
        (self.state == Ok(State::Complete)).then_some(self.head)
    }

    fn step(&mut self, state: State, byte: u8) -> Result<State, HeadError> {
        if self.received == MAX_HEAD_BYTES {
            return Err(HeadError::TooLarge);
        }
        self.received += 1;
        if byte == b'\n' && !state.expects_lf() {
            return Err(HeadError::BareLf);
        }
        match state {
            State::Start => self.start(byte),
            State::EmptyLineLf => expect_lf(byte, State::Start),
            State::Method => self.method(byte),
            State::Target => self.target(byte),
            State::VersionName(rest) => version_name(rest, byte),
            State::Major if byte.is_ascii_digit() => Ok(State::Dot(byte)),
            State::Dot(major) if byte == b'.' => Ok(State::Minor(major)),
            State::Minor(major) if byte.is_ascii_digit() => self.version(major, byte),
            State::RequestLineCr if byte == b'\r' => Ok(State::LineLf),
            State::Major | State::Dot(_) | State::Minor(_) | State::RequestLineCr => {
                Err(HeadError::InvalidVersion)
            }
            State::LineLf => expect_lf(byte, State::LineStart),
            State::LineStart => self.line_start(byte),
            State::Name => self.name(byte),
            State::ValueStart if is_whitespace(byte) => Ok(State::ValueStart),
            State::ValueStart | State::Value => self.value(byte),
            State::FinalLf => expect_lf(byte, State::Complete),
            State::Complete => Ok(State::Complete),
        }
    }

    fn start(&mut self, byte: u8) -> Result<State, HeadError> {
        match byte {
            b'\r' if self.empty_lines == MAX_EMPTY_LINES => Err(HeadError::EmptyLines),
            b'\r' => {
                self.empty_lines += 1;
                Ok(State::EmptyLineLf)
            }
            b' ' => Err(HeadError::ExtraSpace),
            // RFC 8446 §5.1: the record type of a ClientHello.
            0x16 => Err(HeadError::Tls),
            // RFC 1928 §3; SOCKS 4 has no RFC.
            0x04 | 0x05 => Err(HeadError::Socks),
            _other => self.method(byte),
        }
    }

    fn method(&mut self, byte: u8) -> Result<State, HeadError> {
        match byte {
            b' ' => Ok(State::Target),
            b'\r' => Err(HeadError::MissingTarget),
            byte if !is_token(byte) => Err(HeadError::InvalidMethod),
            _token if self.head.method.len() == MAX_METHOD_BYTES => Err(HeadError::MethodTooLong),
            _token => {
                self.head.method.push(char::from(byte));
                Ok(State::Method)
            }
        }
    }

    fn target(&mut self, byte: u8) -> Result<State, HeadError> {
        match byte {
            b' ' if self.head.target.is_empty() => Err(HeadError::ExtraSpace),
            b' ' => Ok(State::VersionName(b"HTTP/")),
            b'\r' if self.head.target.is_empty() => Err(HeadError::MissingTarget),
            b'\r' => Err(HeadError::MissingVersion),
            byte if !byte.is_ascii_graphic() => Err(HeadError::InvalidTarget),
            _visible if self.head.target.len() == MAX_TARGET_BYTES => Err(HeadError::TargetTooLong),
            _visible => {
                self.head.target.push(byte);
                Ok(State::Target)
            }
        }
    }

    fn version(&mut self, major: u8, minor: u8) -> Result<State, HeadError> {
        self.head.version = match (major, minor) {
            (b'1', b'0') => Version::Http10,
            (b'1', _later) => Version::Http11,
            _unsupported => return Err(HeadError::UnsupportedVersion),
        };
        Ok(State::RequestLineCr)
    }

    fn line_start(&mut self, byte: u8) -> Result<State, HeadError> {
        match byte {
            b'\r' => Ok(State::FinalLf),
            b':' => Err(HeadError::InvalidFieldName),
            byte if is_whitespace(byte) => Err(HeadError::FoldedLine),
            _other => self.name(byte),
        }
    }

    fn name(&mut self, byte: u8) -> Result<State, HeadError> {
        match byte {
            b':' => {
                self.head.fields.push(b':');
                Ok(State::ValueStart)
            }
            b'\r' => Err(HeadError::MissingColon),
            byte if is_whitespace(byte) => Err(HeadError::SpaceBeforeColon),
            byte if !is_token(byte) => Err(HeadError::InvalidFieldName),
            _token => {
                self.head.fields.push(byte.to_ascii_lowercase());
                Ok(State::Name)
            }
        }
    }

    fn value(&mut self, byte: u8) -> Result<State, HeadError> {
        match byte {
            b'\r' => {
                // The colon before the value ends this at the latest.
                while self
                    .head
                    .fields
                    .pop_if(|last| is_whitespace(*last))
                    .is_some()
                {}
                self.head.fields.push(b'\n');
                Ok(State::LineLf)
            }
            byte if byte.is_ascii_control() && byte != b'\t' => Err(HeadError::InvalidFieldValue),
            _field_content => {
                self.head.fields.push(byte);
                Ok(State::Value)
            }
        }
    }
}

impl Default for HeadParser {
    fn default() -> Self {
        Self::new()
    }
}

impl Head {
    /// The method; methods are case-sensitive (RFC 9110 §9.1).
    #[must_use]
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The request target: visible ASCII, not empty.
    #[must_use]
    pub fn target(&self) -> &[u8] {
        &self.target
    }

    /// The version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The field lines in their order: the name in lower case, the value without the whitespace
    /// around it.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.split(|byte| *byte == b'\n').filter_map(|line| {
            let mut parts = line.splitn(2, |byte| *byte == b':');
            let name = str::from_utf8(parts.next()?).ok()?;
            Some((name, parts.next()?))
        })
    }

    /// The values of all field lines of this name, which must be given in lower case.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields()
            .filter(move |(other, _value)| *other == name)
            .map(|(_name, value)| value)
    }
}

/// Values are left out: they may hold credentials.
impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.fields().map(|(name, _value)| name).collect();
        f.debug_struct("Head")
            .field("method", &self.method)
            .field("target", &String::from_utf8_lossy(&self.target))
            .field("version", &self.version)
            .field("fields", &names)
            .finish()
    }
}

impl HeadError {
    /// The status of the refusal.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::MethodTooLong => Status::NOT_IMPLEMENTED,
            Self::TargetTooLong => Status::URI_TOO_LONG,
            Self::TooLarge => Status::HEADER_FIELDS_TOO_LARGE,
            Self::UnsupportedVersion => Status::VERSION_NOT_SUPPORTED,
            Self::Tls
            | Self::Socks
            | Self::InvalidMethod
            | Self::ExtraSpace
            | Self::MissingTarget
            | Self::InvalidTarget
            | Self::MissingVersion
            | Self::InvalidVersion
            | Self::FoldedLine
            | Self::InvalidFieldName
            | Self::SpaceBeforeColon
            | Self::MissingColon
            | Self::InvalidFieldValue
            | Self::BareLf
            | Self::BareCr
            | Self::EmptyLines => Status::BAD_REQUEST,
        }
    }
}

impl State {
    fn expects_lf(self) -> bool {
        matches!(self, Self::EmptyLineLf | Self::LineLf | Self::FinalLf)
    }
}

fn expect_lf(byte: u8, next: State) -> Result<State, HeadError> {
    if byte == b'\n' {
        Ok(next)
    } else {
        Err(HeadError::BareCr)
    }
}

fn version_name(rest: &'static [u8], byte: u8) -> Result<State, HeadError> {
    let is_first = rest == b"HTTP/";
    match (rest, byte) {
        (_, b' ') if is_first => Err(HeadError::ExtraSpace),
        (_, b'\r') if is_first => Err(HeadError::MissingVersion),
        ([last], _) if *last == byte => Ok(State::Major),
        ([expected, rest @ ..], _) if *expected == byte => Ok(State::VersionName(rest)),
        _other => Err(HeadError::InvalidVersion),
    }
}

/// `OWS` (RFC 9110 §5.6.3).
fn is_whitespace(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// `tchar` (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
