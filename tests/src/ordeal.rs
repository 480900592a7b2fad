//! The life of one tunnel, by chance that repeats from a seed: how much is sent either way, in what steps, how slowly
//! it is read, and how it ends.

use std::{
    io::{self, ErrorKind},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use crate::payload::{Payload, Random, Step};

/// What one tunnel goes through.
#[derive(Clone, Debug)]
pub struct Ordeal {
    /// Messages to and fro before all else.
    pub chat: usize,
    /// What the client sends.
    pub up: Flow,
    /// What the origin sends.
    pub down: Flow,
    /// Who resets the connection once it has sent all, if anybody.
    pub reset: Option<Sender>,
}

/// An end of a tunnel, as a sender.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sender {
    /// The one that sent CONNECT.
    Client,
    /// The one that it asked for.
    Origin,
}

/// One way.
#[derive(Clone, Debug)]
pub struct Flow {
    seed: u64,
    /// Bytes.
    pub len: u64,
    /// Bytes written at a time.
    write: usize,
    /// Bytes read at a time.
    read: usize,
    /// How often in a hundred the writer pauses for a moment.
    writer_pauses: usize,
    /// The same for the reader.
    reader_pauses: usize,
}

impl Flow {
    fn draw(random: &mut Random, most: usize) -> Self {
        // As often short as long: a size is drawn for each order of magnitude.
        let order = random.between(0, 21);
        let len = random.between(0, (1_usize << order).min(most)) as u64;
        let step = |random: &mut Random| match random.between(0, 9) {
            // So small only where there is little to send.
            0 if len < 20_000 => random.between(1, 3),
            0..=4 => random.between(200, 5000),
            _ => random.between(5000, 150_000),
        };
        let pauses = |random: &mut Random| match random.between(0, 9) {
            0..=1 => random.between(1, 30),
            _ => 0,
        };
        Self {
            seed: random.next_u64(),
            len,
            write: step(random),
            read: step(random),
            writer_pauses: pauses(random),
            reader_pauses: pauses(random),
        }
    }

    fn steps(&self, bytes: usize, pauses: usize) -> impl FnMut(u64) -> Step + use<> {
        let mut random = Random::new(self.seed ^ bytes as u64);
        move |_| {
            if random.between(1, 100) <= pauses {
                Step::after(Duration::from_millis(3), bytes)
            } else {
                Step::of(bytes)
            }
        }
    }

    fn send(&self, mut stream: &TcpStream) -> io::Result<()> {
        let steps = self.steps(self.write, self.writer_pauses);
        Payload::new(self.seed).send_range(&mut stream, 0, self.len, steps)
    }

    /// Receives until the end: how much came before it, or the error.
    fn receive(&self, mut stream: &TcpStream) -> io::Result<u64> {
        let steps = self.steps(self.read, self.reader_pauses);
        Payload::new(self.seed).receive_to_end_by(&mut stream, steps)
    }
}

impl Ordeal {
    /// The next one; with flows of `most` bytes at most.
    pub fn draw(random: &mut Random, most: usize) -> Self {
        Self {
            // Around the number at which `auto` moves a tunnel into the kernel.
            chat: match random.between(0, 2) {
                0 => 0,
                1 => random.between(10, 20),
                _ => random.between(0, 60),
            },
            up: Flow::draw(random, most),
            down: Flow::draw(random, most),
            reset: match random.between(0, 9) {
                0 => Some(Sender::Client),
                1 => Some(Sender::Origin),
                _ => None,
            },
        }
    }

    /// Goes through it with both ends of a tunnel.
    ///
    /// # Errors
    ///
    /// What arrived was not what was sent, or the end was not the one that there was.
    pub fn play(&self, client: TcpStream, origin: TcpStream) -> Result<(), String> {
        for round in 0..self.chat {
            for (from, to) in [(&client, &origin), (&origin, &client)] {
                let message = Payload::new(round as u64);
                message
                    .send(&mut &*from, 100)
                    .and_then(|()| message.receive(&mut &*to, 100))
                    .map_err(|error| format!("message {round}: {error}"))?;
            }
        }
        let copies = (client.try_clone(), origin.try_clone());
        let (Ok(reading_client), Ok(reading_origin)) = copies else {
            return Err("no descriptor to read by".to_owned());
        };
        let (sent_up, sent_down, at_origin, at_client) = thread::scope(|scope| {
            let threads = (
                scope.spawn(move || self.send(Sender::Client, &client)),
                scope.spawn(move || self.send(Sender::Origin, &origin)),
                scope.spawn(move || self.up.receive(&reading_origin)),
                scope.spawn(move || self.down.receive(&reading_client)),
            );
            let panicked = || io::Error::other("panicked");
            (
                threads.0.join().unwrap_or_else(|_| Err(panicked())),
                threads.1.join().unwrap_or_else(|_| Err(panicked())),
                threads.2.join().unwrap_or_else(|_| Err(panicked())),
                threads.3.join().unwrap_or_else(|_| Err(panicked())),
            )
        });
        self.judge(Sender::Client, &sent_up, &at_origin, &sent_down)
            .and_then(|()| self.judge(Sender::Origin, &sent_down, &at_client, &sent_up))
    }

    /// Sends all that one end has to send, and ends as it should.
    fn send(&self, who: Sender, stream: &TcpStream) -> io::Result<()> {
        let flow = match who {
            Sender::Client => &self.up,
            Sender::Origin => &self.down,
        };
        flow.send(stream)?;
        match self.reset {
            Some(resetting) if resetting == who => {
                // Wakes our own reader too, which has another descriptor of the socket.
                stream.shutdown(Shutdown::Read)?;
                // `tcp_disconnect`: a reset, however many descriptors there are.
                Ok(rustix::net::connect_unspec(stream)?)
            }
            // The other one will, at any moment.
            Some(_) => Ok(()),
            None => stream.shutdown(Shutdown::Write),
        }
    }

    /// Whether what `sender` had to send and its end arrived. The other end was `sending` too: who finds a reset
    /// when it writes does not find it again when it reads.
    fn judge(
        &self,
        sender: Sender,
        sent: &io::Result<()>,
        received: &io::Result<u64>,
        sending: &io::Result<()>,
    ) -> Result<(), String> {
        let flow = match sender {
            Sender::Client => &self.up,
            Sender::Origin => &self.down,
        };
        let wrong = match (self.reset, sent, received) {
            (_, _, Err(error)) if error.kind() == ErrorKind::InvalidData => error.to_string(),
            (None, Ok(()), Ok(len)) if *len == flow.len => return Ok(()),
            (None, Ok(()), Ok(len)) => format!("{len} bytes of {}, and a clean end", flow.len),
            (None, Err(error), _) => format!("cannot send: {error}"),
            (Some(resetting), _, Ok(len)) if resetting == sender && sending.is_ok() => {
                format!("a clean end after {len} bytes, not a reset")
            }
            (Some(resetting), _, Err(error))
                if resetting == sender && error.kind() != ErrorKind::ConnectionReset =>
            {
                error.to_string()
            }
            (Some(_), _, _) => return Ok(()),
            (None, Ok(()), Err(error)) => error.to_string(),
        };
        Err(format!("from the {sender:?}: {wrong}"))
    }
}
