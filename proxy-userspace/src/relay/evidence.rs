//! Whether a tunnel is cheaper in the kernel, judged by how it behaves. Pure.
//!
//! In the kernel a message costs no wake-up of ours, which is most of what a small one costs; and to
//! get there costs about as much as a handful of messages save. A flow that fills whatever it is read
//! into is cheapest through pipes. ARCHITECTURE.md has the numbers.

use crate::limits::{CHATTY_MESSAGES, MESSAGE_MAX_BYTES};

/// What was seen of one tunnel, both directions together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Evidence {
    /// Messages, discounted by the longer bursts since.
    messages: u32,
}

impl Evidence {
    /// So many bytes came one way until there was nothing to read.
    pub(super) fn add(&mut self, burst: usize) {
        if burst <= MESSAGE_MAX_BYTES {
            self.messages = self.messages.saturating_add(1);
        } else {
            self.messages /= 2;
        }
    }

    /// Whether the tunnel exchanges messages, and has done so often enough to go on.
    pub(super) fn is_chatty(self) -> bool {
        self.messages >= CHATTY_MESSAGES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_messages_are_a_chat() {
        let mut evidence = Evidence::default();
        for _ in 1..CHATTY_MESSAGES {
            evidence.add(64);
            assert!(!evidence.is_chatty());
        }
        evidence.add(MESSAGE_MAX_BYTES);
        assert!(evidence.is_chatty());
    }

    #[test]
    fn bulk_with_small_answers_is_none() {
        let mut evidence = Evidence::default();
        for _ in 0..1000 {
            for _ in 0..CHATTY_MESSAGES / 4 {
                evidence.add(40);
            }
            evidence.add(MESSAGE_MAX_BYTES + 1);
        }
        assert!(!evidence.is_chatty());
    }
}
