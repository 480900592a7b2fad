//! A TCP segment in an IP packet, taken apart and made longer. Pure.

/// A segment with payload.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Segment {
    /// The IP header and the TCP header.
    head: Vec<u8>,
    /// Bytes of the IP header.
    ip: usize,
    payload: Vec<u8>,
}

/// TCP's protocol number.
const TCP: u8 = 6;

/// Where the TCP header begins, if it is a TCP packet.
fn tcp_header(packet: &[u8]) -> Option<usize> {
    match packet.first()? >> 4 {
        4 if *packet.get(9)? == TCP => Some(usize::from(packet.first()? & 15) * 4),
        6 if *packet.get(6)? == TCP => Some(40),
        _ => None,
    }
}

/// Whether a packet resets a connection.
pub fn is_reset(packet: &[u8]) -> bool {
    const RST: u8 = 4;
    let flags = tcp_header(packet).and_then(|tcp| packet.get(tcp + 13));
    flags.is_some_and(|flags| flags & RST != 0)
}

impl Segment {
    /// Reads a packet; `None` if it is not TCP or has no payload.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let ip = tcp_header(packet)?;
        let tcp = usize::from(packet.get(ip + 12)? >> 4) * 4;
        let (head, payload) = packet.split_at_checked(ip + tcp)?;
        (!payload.is_empty()).then(|| Self {
            head: head.to_owned(),
            ip,
            payload: payload.to_owned(),
        })
    }

    fn sequence(&self) -> u32 {
        self.number(self.ip + 4)
    }

    fn number(&self, at: usize) -> u32 {
        let bytes = self
            .head
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok());
        u32::from_be_bytes(bytes.unwrap_or_default())
    }

    /// Source and destination port.
    fn ports(&self) -> u32 {
        self.number(self.ip)
    }

    /// The packet that says the same and repeats the last `back` bytes of the segment `before`; `None`
    /// unless this one follows on that.
    pub fn reaching_back(&self, before: &Self, back: usize) -> Option<Vec<u8>> {
        let follows = before
            .sequence()
            .wrapping_add(u32::try_from(before.payload.len()).ok()?)
            == self.sequence();
        if !follows || before.ports() != self.ports() || before.ip != self.ip {
            return None;
        }
        let back = back.min(before.payload.len());
        let repeated = before.payload.get(before.payload.len() - back..)?;
        let mut packet = self.head.clone();
        packet.extend_from_slice(repeated);
        packet.extend_from_slice(&self.payload);
        let sequence = self.sequence().wrapping_sub(u32::try_from(back).ok()?);
        put(&mut packet, self.ip + 4, &sequence.to_be_bytes());
        finish(&mut packet, self.ip)?;
        Some(packet)
    }
}

/// Sets lengths and checksums (RFC 791, RFC 8200, RFC 9293 section 3.1).
fn finish(packet: &mut [u8], ip: usize) -> Option<()> {
    let total = u16::try_from(packet.len()).ok()?;
    let payload = total - u16::try_from(ip).ok()?;
    let addresses = if packet.first()? >> 4 == 4 {
        put(packet, 2, &total.to_be_bytes());
        put(packet, 10, &[0, 0]);
        let sum = checksum(&[packet.get(..ip)?]);
        put(packet, 10, &sum.to_be_bytes());
        packet.get(12..20)?.to_owned()
    } else {
        put(packet, 4, &payload.to_be_bytes());
        packet.get(8..40)?.to_owned()
    };
    put(packet, ip + 16, &[0, 0]);
    let pseudo = [0, TCP];
    let sum = checksum(&[
        &addresses,
        &pseudo,
        &payload.to_be_bytes(),
        packet.get(ip..)?,
    ]);
    put(packet, ip + 16, &sum.to_be_bytes());
    Some(())
}

fn put(packet: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = packet.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// The Internet checksum (RFC 1071) of parts, each but the last of an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            let high = pair.first().copied().unwrap_or_default();
            let low = pair.get(1).copied().unwrap_or_default();
            sum += u64::from(u16::from_be_bytes([high, low]));
        }
    }
    while sum >> 16 > 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment over IPv4 or IPv6 without options.
    fn packet(version: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let ip = if version == 4 { 20 } else { 40 };
        let mut packet = vec![0; ip + 20];
        packet[0] = version << 4 | if version == 4 { 5 } else { 0 };
        packet[if version == 4 { 9 } else { 6 }] = TCP;
        packet[ip - 1] = 7;
        packet[ip..ip + 4].copy_from_slice(&[1, 2, 3, 4]);
        packet[ip + 4..ip + 8].copy_from_slice(&sequence.to_be_bytes());
        packet[ip + 12] = 5 << 4;
        packet.extend_from_slice(payload);
        finish(&mut packet, ip).unwrap();
        packet
    }

    #[test]
    fn a_longer_segment_is_the_one_that_a_sender_would_have_sent() {
        for version in [4, 6] {
            let before = Segment::parse(&packet(version, u32::MAX - 1, b"abcd")).unwrap();
            let segment = Segment::parse(&packet(version, 2, b"efg")).unwrap();
            let longer = segment.reaching_back(&before, 3).unwrap();
            assert_eq!(longer, packet(version, u32::MAX, b"bcdefg"), "IPv{version}");
            assert_eq!(segment.reaching_back(&segment, 3), None);
        }
    }

    #[test]
    fn a_checksum_over_a_packet_with_its_checksum_is_zero() {
        let packet = packet(4, 9, b"odd");
        assert_eq!(checksum(&[&packet[..20]]), 0);
        let len = 23_u16.to_be_bytes();
        let parts: [&[u8]; 4] = [&packet[12..20], &[0, TCP], &len, &packet[20..]];
        assert_eq!(checksum(&parts), 0);
    }

    #[test]
    fn a_reset_is_known_by_its_flag() {
        for version in [4, 6] {
            let mut packet = packet(version, 1, b"");
            assert!(!is_reset(&packet));
            let ip = packet.len() - 20;
            packet[ip + 13] = 0x14;
            assert!(is_reset(&packet), "IPv{version}");
        }
        assert!(!is_reset(b""));
    }

    #[test]
    fn other_packets_are_no_segments() {
        assert_eq!(Segment::parse(&packet(4, 1, b"")), None);
        assert_eq!(Segment::parse(b""), None);
        assert_eq!(Segment::parse(&[0x45; 12]), None);
    }
}
