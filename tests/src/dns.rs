//! A name server that changes its mind: it answers each query for an IPv4 address with the next address of a list.
//!
//! That is what an attacker's resolver does who wants one address to be judged and another one to be connected to.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::netns::Netns;

/// Bytes of a header: id, flags, and four counts.
const HEADER: usize = 12;
/// Type A.
const TYPE_A: u16 = 1;
/// A pointer to the name of the question, which follows the header.
const NAME_OF_QUESTION: [u8; 2] = [0xc0, 12];

/// The server, which runs until it is dropped.
#[derive(Debug)]
pub struct NameServer {
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Answers on 127.0.0.1 of the namespace: the address of query number n is entry n of the list, the last for all
    /// that follow.
    ///
    /// # Panics
    ///
    /// When it cannot listen.
    pub fn start(netns: &Netns, addresses: Vec<Ipv4Addr>) -> Self {
        Self::serve(netns, addresses, false)
    }

    /// The same, but it says nothing to queries for other types, as some broken ones do.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub fn deaf_to_ipv6(netns: &Netns, addresses: Vec<Ipv4Addr>) -> Self {
        Self::serve(netns, addresses, true)
    }

    fn serve(netns: &Netns, addresses: Vec<Ipv4Addr>, is_deaf: bool) -> Self {
        let socket = netns.run_in(|| UdpSocket::bind("127.0.0.1:53").unwrap());
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let (asked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let thread = thread::spawn({
            let (asked, stop) = (Arc::clone(&asked), Arc::clone(&stop));
            move || {
                let mut query = [0; 512];
                while stop.load(Ordering::Relaxed) == 0 {
                    let Ok((len, client)) = socket.recv_from(&mut query) else {
                        continue;
                    };
                    let query = query.get(..len).unwrap_or_default();
                    let pick = || {
                        let number = asked.fetch_add(1, Ordering::Relaxed);
                        *addresses.get(number).or(addresses.last()).unwrap()
                    };
                    if let Some(answer) = answer(query, pick)
                        && (!is_deaf || has_address(&answer))
                    {
                        socket.send_to(&answer, client).unwrap();
                    }
                }
            }
        });
        Self {
            asked,
            stop,
            thread: Some(thread),
        }
    }

    /// How many IPv4 addresses it was asked for.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(1, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn has_address(answer: &[u8]) -> bool {
    answer.get(6..8) == Some(&[0, 1])
}

/// The answer to a query with one question: an address for type A, nothing for other types (RFC 1035 section 4).
fn answer(query: &[u8], pick: impl FnOnce() -> Ipv4Addr) -> Option<Vec<u8>> {
    let id = query.get(..2)?;
    let question = query.get(HEADER..)?;
    // The labels end with an empty one; type and class follow.
    let end = question.iter().position(|byte| *byte == 0)? + 5;
    let question = question.get(..end)?;
    let kind = question.get(end - 4..end - 2)?;
    let is_a = kind == TYPE_A.to_be_bytes();
    let answers = u16::from(is_a).to_be_bytes();
    // A response, recursion desired and available, no error; one question, no other records.
    let mut message = [id, &[0x81, 0x80, 0, 1], &answers, &[0; 4], question].concat();
    if is_a {
        message.extend(NAME_OF_QUESTION);
        message.extend(kind);
        // Class IN, no time to live, four bytes.
        message.extend([0, 1, 0, 0, 0, 0, 0, 4]);
        message.extend(pick().octets());
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_queries_for_ipv4_get_an_address() {
        let query = |kind: u8| {
            let header = [7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            [&header[..], b"\x01a\x04test\0", &[0, kind, 0, 1]].concat()
        };
        let reply = answer(&query(1), || Ipv4Addr::new(1, 2, 3, 4)).unwrap();
        assert_eq!(&reply[..2], [7, 8]);
        assert_eq!(&reply[6..8], [0, 1]);
        assert!(reply.ends_with(&[0, 4, 1, 2, 3, 4]));
        let reply = answer(&query(28), || unreachable!()).unwrap();
        assert_eq!(&reply[6..8], [0, 0]);
        assert_eq!(answer(b"short", || unreachable!()), None);
    }
}
