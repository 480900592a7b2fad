//! Where the body of a request ends (RFC 9112 sections 6 and 7.1), read strictly. Pure.
//!
//! A recipient that finds another end than we do takes a part of the body for the next request: that is how requests
//! are smuggled. So whatever could be read in two ways is refused: both kinds of framing at once, a repeated length,
//! a transfer coding but `chunked`, a line that ends in LF alone.

use std::ops::Range;

use thiserror::Error;

use super::{Head, HeadError, HeadParser, Progress, Status, Version};
use crate::limits::MAX_CHUNK_EXTENSION_BYTES;

/// Hexadecimal digits of a chunk's size at most: beyond, it does not fit 64 bits.
const MAX_SIZE_DIGITS: usize = 15;

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// By its length, in bytes.
    Length(u64),
    /// By a last chunk.
    Chunked,
}

/// Why it is not known where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FramingError {
    /// Two ways to tell the end.
    #[error("Transfer-Encoding and Content-Length exclude each other; send one of them")]
    Both,
    /// `Content-Length` more than once, be it the same one.
    #[error("Content-Length is repeated; send it once")]
    RepeatedLength,
    /// `Content-Length` is no number.
    #[error("Content-Length is not a number of bytes")]
    InvalidLength,
    /// `Transfer-Encoding` more than once, or in disguise.
    #[error("Transfer-Encoding is malformed; send `chunked`, once")]
    InvalidCoding,
    /// A transfer coding that is not `chunked` alone.
    #[error("the transfer coding is not supported; send `chunked`")]
    UnknownCoding,
    /// `Transfer-Encoding` in HTTP/1.0, which does not have it.
    #[error("HTTP/1.0 has no Transfer-Encoding; send HTTP/1.1")]
    OldCoding,
}

impl FramingError {
    /// The status of the refusal.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::UnknownCoding => Status::NOT_IMPLEMENTED,
            _ => Status::BAD_REQUEST,
        }
    }
}

impl Framing {
    /// What the head says of the body behind it.
    ///
    /// # Errors
    /// It can be read in two ways, or in none.
    pub fn of(head: &Head) -> Result<Self, FramingError> {
        let mut codings = head.values("transfer-encoding");
        let mut lengths = head.values("content-length");
        match (codings.next(), lengths.next()) {
            (None, None) => Ok(Self::None),
            (Some(_), Some(_)) => Err(FramingError::Both),
            (None, Some(_)) if lengths.next().is_some() => Err(FramingError::RepeatedLength),
            (None, Some(length)) => decimal(length)
                .map(Self::Length)
                .ok_or(FramingError::InvalidLength),
            (Some(_), None) if head.version() == Version::Http10 => Err(FramingError::OldCoding),
            (Some(_), None) if codings.next().is_some() => Err(FramingError::InvalidCoding),
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Self::Chunked),
            (Some(coding), None) => {
                let text = String::from_utf8_lossy(coding).to_ascii_lowercase();
                let last = text.rsplit(',').next().unwrap_or_default().trim();
                // `gzip, chunked` is honest; `chunked, identity`, `xchunked` or `chunked;q=1` is not.
                let others = text.split(',').rev().skip(1);
                let is_known = |coding: &str| ["gzip", "deflate", "compress"].contains(&coding);
                let is_honest = (last == "chunked" || is_known(last))
                    && others.map(str::trim).all(is_known)
                    && text.is_ascii();
                Err(if is_honest {
                    FramingError::UnknownCoding
                } else {
                    FramingError::InvalidCoding
                })
            }
        }
    }
}

/// Digits and nothing else.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

/// Why the bytes are no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BodyError {
    /// Not a hexadecimal number.
    #[error("the size of a chunk is malformed")]
    InvalidSize,
    /// More digits than any size has.
    #[error("the size of a chunk is too large")]
    SizeTooLarge,
    /// A control character.
    #[error("the extension of a chunk is malformed")]
    InvalidExtension,
    /// Longer than [`MAX_CHUNK_EXTENSION_BYTES`].
    #[error("the extension of a chunk is too long")]
    ExtensionTooLong,
    /// LF without CR.
    #[error("a line of the chunked body ends in LF alone; lines must end in CRLF")]
    BareLf,
    /// CR without LF.
    #[error("a CR in the chunked body is not followed by LF")]
    BareCr,
    /// More data than the chunk's size says.
    #[error("a chunk is longer than its size says")]
    ChunkTooLong,
    /// The fields behind the last chunk.
    #[error("the trailer is malformed: {0}")]
    Trailer(#[from] HeadError),
}

/// Reads a body from pieces of any size.
#[derive(Debug)]
pub struct BodyDecoder {
    state: Result<State, BodyError>,
    /// The parser of the trailer, once there is one.
    trailer: Option<HeadParser>,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The body, of which this much is to come, and whether it is a chunk.
    Data { left: u64, chunk: bool },
    /// A chunk's size so far, with the number of its digits.
    Size { size: u64, digits: usize },
    /// The extensions of a chunk of this size, with their length so far.
    Extension { size: u64, len: usize },
    /// The LF of a chunk's first line.
    SizeLf { size: u64 },
    /// The CR behind a chunk's data.
    DataCr,
    /// The LF behind that.
    DataLf,
    /// The fields behind the last chunk.
    Trailer,
    /// The next message.
    End,
}

/// What was found in a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where in the piece there is data, once framing is taken away.
    pub data: Range<usize>,
    /// How many bytes of the piece are dealt with by that.
    pub consumed: usize,
}

impl BodyDecoder {
    /// A decoder at the beginning of a body.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        Self {
            state: Ok(match framing {
                Framing::None | Framing::Length(0) => State::End,
                Framing::Length(left) => State::Data { left, chunk: false },
                Framing::Chunked => State::Size { size: 0, digits: 0 },
            }),
            trailer: None,
        }
    }

    /// Whether the body is at its end.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.state == Ok(State::End)
    }

    /// The fields behind the last chunk, once the body is at its end.
    #[must_use]
    pub fn into_trailer(self) -> Option<Head> {
        self.trailer?.into_head()
    }

    /// Takes the next bytes, up to and with the first data in them. Once it has failed it gives the same error again;
    /// once it is at the end it consumes no more.
    ///
    /// # Errors
    /// They are no body.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Found, BodyError> {
        let mut consumed = 0;
        while let Some(byte) = bytes.get(consumed) {
            let rest = bytes.get(consumed..).unwrap_or_default();
            match self.state? {
                State::End => break,
                State::Data { left, chunk } => {
                    let len = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                    self.state = Ok(match (left - len as u64, chunk) {
                        (0, true) => State::DataCr,
                        (0, false) => State::End,
                        (left, chunk) => State::Data { left, chunk },
                    });
                    return Ok(Found {
                        data: consumed..consumed + len,
                        consumed: consumed + len,
                    });
                }
                State::Trailer => {
                    let parser = self.trailer.get_or_insert_with(HeadParser::of_trailer);
                    match parser.feed(rest).map_err(BodyError::from) {
                        Ok(Progress::NeedMore) => consumed = bytes.len(),
                        Ok(Progress::Complete { consumed: len }) => {
                            consumed += len;
                            self.state = Ok(State::End);
                        }
                        Err(error) => self.state = Err(error),
                    }
                }
                state => {
                    self.state = step(state, *byte);
                    consumed += 1;
                }
            }
        }
        self.state?;
        Ok(Found {
            data: consumed..consumed,
            consumed,
        })
    }
}

/// One byte of the framing of chunks.
fn step(state: State, byte: u8) -> Result<State, BodyError> {
    match (state, byte) {
        (State::SizeLf { size: 0 }, b'\n') => Ok(State::Trailer),
        (State::SizeLf { size: left }, b'\n') => Ok(State::Data { left, chunk: true }),
        (State::DataLf, b'\n') => Ok(State::Size { size: 0, digits: 0 }),
        (State::SizeLf { .. } | State::DataLf, _) => Err(BodyError::BareCr),
        (_, b'\n') => Err(BodyError::BareLf),
        (State::DataCr, b'\r') => Ok(State::DataLf),
        (State::DataCr, _) => Err(BodyError::ChunkTooLong),
        (State::Size { digits: 0, .. }, b'\r' | b';') => Err(BodyError::InvalidSize),
        (State::Size { size, .. } | State::Extension { size, .. }, b'\r') => {
            Ok(State::SizeLf { size })
        }
        (State::Size { size, .. }, b';') => Ok(State::Extension { size, len: 1 }),
        (State::Size { size, digits }, byte) => {
            let digit = char::from(byte).to_digit(16);
            let digit = digit.ok_or(BodyError::InvalidSize)?;
            if digits == MAX_SIZE_DIGITS {
                return Err(BodyError::SizeTooLarge);
            }
            Ok(State::Size {
                size: size << 4 | u64::from(digit),
                digits: digits + 1,
            })
        }
        (State::Extension { .. }, byte) if byte.is_ascii_control() && byte != b'\t' => {
            Err(BodyError::InvalidExtension)
        }
        (State::Extension { len, .. }, _) if len >= MAX_CHUNK_EXTENSION_BYTES => {
            Err(BodyError::ExtensionTooLong)
        }
        (State::Extension { size, len }, _) => Ok(State::Extension { size, len: len + 1 }),
        // The caller deals with these.
        (state @ (State::Data { .. } | State::Trailer | State::End), _) => Ok(state),
    }
}

#[cfg(test)]
mod tests;
