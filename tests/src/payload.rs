//! Random payload that is not stored anywhere: every byte follows from a seed and its position.
//!
//! So gigabytes can be sent and verified in constant memory, and a wrong byte is reported with its offset. Blocks
//! that were lost, repeated or swapped cannot go unnoticed, because no two positions of a stream look alike.

use std::{
    fmt,
    io::{self, ErrorKind, Read, Write},
    thread,
    time::Duration,
};

use crate::deadline::uninterrupted;

/// Bytes that [`Payload::send`] and [`Payload::receive`] move at a time.
const CHUNK: usize = 64 * 1024;

/// A small generator of random numbers (splitmix64), for choices a test wants to repeat from its seed.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// A number from `low` to `high`, both possible.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        let span = (high - low) as u64 + 1;
        low + usize::try_from(self.next_u64() % span).unwrap_or(0)
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// How the next step of a transfer goes: at most so many bytes, after a pause.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Largest number of bytes to move.
    pub bytes: usize,
    /// Time to wait before.
    pub pause: Duration,
}

impl Step {
    /// As fast as possible.
    pub fn fast() -> Self {
        Self::of(CHUNK)
    }

    /// So many bytes at once, without a pause.
    pub fn of(bytes: usize) -> Self {
        Self {
            bytes,
            pause: Duration::ZERO,
        }
    }

    /// So many bytes after a pause.
    pub fn after(pause: Duration, bytes: usize) -> Self {
        Self { bytes, pause }
    }
}

/// The first byte of a stream that is not what was sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mismatch {
    /// Its position in the stream.
    pub offset: u64,
    /// What was sent there.
    pub expected: u8,
    /// What arrived.
    pub found: u8,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            offset,
            expected,
            found,
        } = self;
        write!(
            formatter,
            "byte {offset} is {found:#04x} instead of {expected:#04x}"
        )
    }
}

/// An endless stream of random bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Payload {
    seed: u64,
}

impl Payload {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            seed: mix(seed.wrapping_add(GOLDEN)),
        }
    }

    /// Writes the bytes at `offset` into `out`.
    pub fn fill(self, offset: u64, out: &mut [u8]) {
        let mut word = offset / 8;
        // At most seven bytes of the first word belong to earlier positions.
        let skip = usize::try_from(offset % 8).unwrap_or(0);
        let (first, rest) = out.split_at_mut(out.len().min((8 - skip) % 8));
        if !first.is_empty() {
            for (place, byte) in first.iter_mut().zip(self.word(word).iter().skip(skip)) {
                *place = *byte;
            }
            word += 1;
        }
        for chunk in rest.chunks_mut(8) {
            for (place, byte) in chunk.iter_mut().zip(self.word(word)) {
                *place = byte;
            }
            word += 1;
        }
    }

    fn word(self, number: u64) -> [u8; 8] {
        mix(self.seed.wrapping_add(number.wrapping_mul(GOLDEN))).to_le_bytes()
    }

    /// The first `len` bytes.
    pub fn bytes(self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(0, &mut bytes);
        bytes
    }

    /// Compares what arrived at `offset`.
    pub fn check(self, offset: u64, arrived: &[u8]) -> Result<(), Mismatch> {
        let mut expected = vec![0; arrived.len()];
        self.fill(offset, &mut expected);
        if expected == arrived {
            return Ok(());
        }
        let wrong = (offset..)
            .zip(expected.iter().zip(arrived))
            .find(|(_, (expected, found))| expected != found);
        wrong.map_or(Ok(()), |(offset, (&expected, &found))| {
            Err(Mismatch {
                offset,
                expected,
                found,
            })
        })
    }

    /// Sends the bytes of positions `from..to`.
    pub fn send_range(
        self,
        stream: &mut impl Write,
        from: u64,
        to: u64,
        mut step: impl FnMut(u64) -> Step,
    ) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut position = from;
        while position < to {
            let Step { bytes, pause } = step(position);
            wait(pause);
            let left = usize::try_from(to - position).unwrap_or(usize::MAX);
            buffer.resize(bytes.min(left), 0);
            self.fill(position, &mut buffer);
            stream
                .write_all(&buffer)
                .map_err(|error| at(position, &error))?;
            position += buffer.len() as u64;
        }
        Ok(())
    }

    /// Sends the first `len` bytes as fast as possible.
    pub fn send(self, stream: &mut impl Write, len: u64) -> io::Result<()> {
        self.send_range(stream, 0, len, |_| Step::fast())
    }

    /// Receives and verifies the bytes of positions `from..to`; an early end is an error.
    pub fn receive_range(
        self,
        stream: &mut impl Read,
        from: u64,
        to: u64,
        step: impl FnMut(u64) -> Step,
    ) -> io::Result<()> {
        let position = self.read_until(stream, from, to, step)?;
        if position < to {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                format!("end at byte {position} of {to}"),
            ));
        }
        Ok(())
    }

    /// Receives and verifies the first `len` bytes as fast as possible; an early end is an error.
    pub fn receive(self, stream: &mut impl Read, len: u64) -> io::Result<()> {
        self.receive_range(stream, 0, len, |_| Step::fast())
    }

    /// Receives and verifies until the sender ends, from position `from` on; returns the position of the end.
    pub fn receive_to_end(self, stream: &mut impl Read, from: u64) -> io::Result<u64> {
        self.read_until(stream, from, u64::MAX, |_| Step::fast())
    }

    /// Receives and verifies until the sender ends, in steps; returns the position of the end.
    pub fn receive_to_end_by(
        self,
        stream: &mut impl Read,
        step: impl FnMut(u64) -> Step,
    ) -> io::Result<u64> {
        self.read_until(stream, 0, u64::MAX, step)
    }

    fn read_until(
        self,
        stream: &mut impl Read,
        from: u64,
        to: u64,
        mut step: impl FnMut(u64) -> Step,
    ) -> io::Result<u64> {
        let mut buffer = Vec::new();
        let mut position = from;
        while position < to {
            let Step { bytes, pause } = step(position);
            wait(pause);
            let left = usize::try_from(to - position).unwrap_or(usize::MAX);
            buffer.resize(bytes.min(left), 0);
            let count =
                uninterrupted(|| stream.read(&mut buffer)).map_err(|error| at(position, &error))?;
            if count == 0 {
                break;
            }
            let arrived = buffer.get(..count).unwrap_or_default();
            self.check(position, arrived)
                .map_err(|mismatch| io::Error::new(ErrorKind::InvalidData, mismatch.to_string()))?;
            position += count as u64;
        }
        Ok(position)
    }
}

fn wait(pause: Duration) {
    if !pause.is_zero() {
        thread::sleep(pause);
    }
}

/// Keeps the kind of an error and adds where it happened.
fn at(position: u64, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("at byte {position}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_follows_from_its_position_alone() {
        let payload = Payload::new(7);
        let whole = payload.bytes(1000);
        for (offset, len) in [
            (0, 1),
            (1, 1),
            (3, 5),
            (5, 20),
            (8, 8),
            (7, 1),
            (13, 900),
            (999, 1),
        ] {
            let mut part = vec![0; len];
            payload.fill(offset as u64, &mut part);
            assert_eq!(
                part,
                whole[offset..offset + len],
                "offset {offset} length {len}"
            );
        }
        assert_ne!(whole, Payload::new(8).bytes(1000));
    }

    #[test]
    fn the_first_wrong_byte_is_reported() {
        let payload = Payload::new(1);
        let mut bytes = payload.bytes(5000);
        bytes[4321] ^= 1;
        let error = payload.receive(&mut &bytes[..], 5000).unwrap_err();
        assert!(error.to_string().starts_with("byte 4321 is "), "{error}");
        bytes[4321] ^= 1;
        payload.receive(&mut &bytes[..], 5000).unwrap();
        // A lost block shifts everything behind it.
        bytes.drain(1000..1016);
        let error = payload.receive(&mut &bytes[..], 5000).unwrap_err();
        assert!(error.to_string().starts_with("byte 100"), "{error}");
    }

    #[test]
    fn an_early_end_is_an_error() {
        let bytes = Payload::new(1).bytes(10);
        let error = Payload::new(1).receive(&mut &bytes[..], 11).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert_eq!(
            Payload::new(1).receive_to_end(&mut &bytes[..], 0).unwrap(),
            10
        );
    }
}
