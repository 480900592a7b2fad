//! Every bound that is not configurable, in one place, each with its reason.

use std::time::Duration;

// The request head. A bound is inclusive: exactly this much is accepted, one byte more is refused.

/// The whole request head, from the first byte (empty lines before the request line included) to
/// the empty line that ends it; more is `431`.
///
/// A CONNECT head is a few hundred bytes; the largest in practice carry a Kerberos ticket in
/// `Proxy-Authorization`, which stays below 64 KiB. This is also what a client that has not been
/// let in yet can make us hold.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;

/// The request target; more is `414`.
///
/// RFC 9110 §4.1 asks for 8000 octets at least. A CONNECT target is at most 260 bytes, but the
/// target of another method is read to its end, so that its refusal can be the truthful `405`.
pub const MAX_TARGET_BYTES: usize = 8 * 1024;

/// The request method; more is `501`.
///
/// The longest method that IANA has registered, `UPDATEREDIRECTREF`, has 17 bytes.
pub const MAX_METHOD_BYTES: usize = 32;

/// Empty lines before the request line, which RFC 9112 §2.2 asks a server to ignore; more is `400`.
///
/// They come from old clients that end a previous body with a line too many: one is known, a few
/// are tolerated, and a stream of them is not HTTP.
pub const MAX_EMPTY_LINES: usize = 4;

// Refusals.

/// How long a refused client may take to read its refusal and close. Closing at once, with bytes
/// of the client unread, would send a reset that can destroy the refusal on its way.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of what a refused client goes on sending is read and thrown away.
pub const LINGER_MAX_BYTES: usize = 16 * 1024 * 1024;

/// How long a client that is not served may take for its request head.
pub const TURNED_AWAY_HEAD_TIMEOUT: Duration = Duration::from_secs(2);

/// How many clients that are not served, since they may not be or since there is no room, are told
/// so at once; more are just closed.
pub const MAX_TURNED_AWAY: usize = 64;

// Before the first request.

/// What may be received of a PROXY header: version 2 has room for 64 KiB of extensions, and a few hundred bytes are used.
pub const MAX_ANNOUNCEMENT_BYTES: usize = 4096;

// Requests that are forwarded.

/// Extensions of one chunk of a body, which nobody uses but to waste time.
pub const MAX_CHUNK_EXTENSION_BYTES: usize = 1024;

/// What is read of a response ahead of its client, and the largest head of one. As large as a request's head may be,
/// twice.
pub const FORWARD_BUFFER_BYTES: usize = 128 * 1024;

/// Connections to origins and parents that are kept for the next request.
pub const MAX_IDLE_UPSTREAMS: usize = 64;

/// How often it is looked whether one of them has been idle for too long.
pub const POOL_SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// How long a client may take for more of its body once it has its whole response.
pub const LATE_BODY_TIMEOUT: Duration = Duration::from_secs(5);

// Users.

/// Passwords that are checked at a time, or fewer where there are fewer processors: each keeps one busy
/// for as long as its hash was made to take.
pub const MAX_PASSWORD_CHECKS: usize = 4;

// Configuration.

/// How often the files of the configuration are looked at. A change counts once they have stayed the
/// same from one look to the next, so that nothing half-written is read.
pub const WATCH_PAUSE: Duration = Duration::from_secs(1);

// The relay.

/// How long a side that is still alive gets to receive what the other had sent before its reset.
pub const RESET_FLUSH: Duration = Duration::from_secs(1);

/// The copy engine's first buffer: a small message fits, and an active chatty tunnel stays cheap.
pub const COPY_BUFFER_MIN_BYTES: usize = 4 * 1024;

/// The copy engine's largest buffer; beyond it nothing is gained but cache misses.
pub const COPY_BUFFER_MAX_BYTES: usize = 256 * 1024;

/// What user space may move one way before the other way, and other tunnels, have their turn.
pub const TURN_BYTES: usize = 512 * 1024;

/// What arrives at once and is at most this much is a message; more is a piece of a stream. The kernel
/// engine is cheaper for bursts of 32 KiB, pipes are for 64 KiB (measured in ARCHITECTURE.md).
pub const MESSAGE_MAX_BYTES: usize = 48 * 1024;

/// Messages after which a tunnel is moved into the kernel, which costs about as much as a dozen of
/// them save (measured in ARCHITECTURE.md). A TLS handshake with one request and its answer has ten
/// or so.
pub const CHATTY_MESSAGES: u32 = 32;

/// What may be read from a socket before its receive buffer is bounded.
pub const UNBOUNDED_READ_BYTES: u64 = 64 * 1024;

/// From this size of the buffer on, which a flow has to fill to get it, bytes go through a pipe
/// instead where the engine is chosen by evidence.
pub const PIPE_FROM_BYTES: usize = 64 * 1024;

/// Below this much at once they do not any more.
pub const PIPE_UNTIL_BYTES: usize = 4 * 1024;

/// What the splice engine moves at once: what a pipe holds by default. Larger pipes are slower, since
/// bytes have left the processor's caches by the time they leave the pipe (measured in
/// ARCHITECTURE.md).
pub const PIPE_BYTES: usize = 64 * 1024;

/// Pipes that are kept for the next direction that needs one.
pub const IDLE_PIPES: usize = 64;

/// For how many descriptors there may be a pipe, which takes two of them: it is held only while bytes
/// are in it, so few are needed at a time.
pub const DESCRIPTORS_PER_PIPE: u64 = 22;

/// The first buffer with which user space moves a direction of a spliced tunnel: enough for what
/// comes before the kernel takes over.
pub const SPLICE_BUFFER_MIN_BYTES: usize = 4 * 1024;

/// The largest such buffer, for a direction that is paused.
pub const SPLICE_BUFFER_MAX_BYTES: usize = 256 * 1024;

/// The most that user space peeks at to hand a direction over to the kernel. The window of a new
/// connection is smaller; on an old one with more bytes waiting, the copying costs more than it gains.
pub const HANDOVER_MAX_BYTES: usize = 256 * 1024;

/// After a sender was too fast for a hand-over, this much is moved before the next attempt; twice
/// as much with every failure.
pub const HANDOVER_BACKOFF_BYTES: usize = 256 * 1024;

/// The receive buffer of a tunnel's socket, in memory: what a sender can send to a receiver that does
/// not read, or into a pause of the splice. The kernel's own limit is 6 MiB, and 32 MiB since Linux
/// 6.18, which is a lot to hold for a client that has stopped reading. This is a window of 450 Mbit/s
/// over a round trip of 100 ms.
pub const RECEIVE_BUFFER_BYTES: usize = proxy_common::sizes::RECEIVE_BUFFER_BYTES;

/// The send buffer with which a spliced socket begins, in memory. The kernel begins with less than
/// two segments as large as it merges them, and widens a buffer only when a writer finds it full,
/// which the splice never does: it stops before.
pub const SPLICE_SEND_BUFFER_BYTES: usize = 512 * 1024;

/// First pause between looks at the kernel's backlog, which announces nothing.
pub const BACKLOG_POLL_MIN: Duration = Duration::from_millis(1);

/// Longest such pause: what a FIN may be late when its receiver is slow.
pub const BACKLOG_POLL_MAX: Duration = Duration::from_millis(20);

// The admin endpoint.

/// Connections to each of its listeners that are served at a time.
pub const MAX_ADMIN_CONNECTIONS: usize = 16;

/// How long one may take for a request.
pub const ADMIN_HEAD_TIMEOUT: Duration = Duration::from_secs(30);

// The process.

/// Descriptors that are not a tunnel's: clients that are turned away, idle connections to origins, listeners, logs,
/// maps, the reactor, names being resolved, and room to spare.
pub const RESERVED_DESCRIPTORS: u64 = 2 * MAX_TURNED_AWAY as u64 + MAX_IDLE_UPSTREAMS as u64;

/// Tunnels at most, whatever the descriptor limit: what the kernel object is compiled for.
pub const MAX_TUNNELS: u32 = 32_768;

const _: () = assert!(MAX_TUNNELS as usize * 2 == proxy_common::sizes::SOCKETS);

/// Pause of an accept loop that ran out of descriptors or memory.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Pause between two warnings of one kind, of which there may be one per client.
pub const WARNING_PAUSE: Duration = Duration::from_secs(10);

/// Lines that may wait for a slow log before lines are dropped.
pub const LOG_QUEUE_LINES: usize = 8192;

/// What a log's writer waits after each write, so that a busy proxy does not wake it line by line.
pub const LOG_PAUSE: Duration = Duration::from_millis(5);

/// How long the process waits for the last lines of a log before it ends without them.
pub const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// What resetting all that is open, and the last lines, may take; for the service manager to know.
pub const STOP_TIME: Duration = Duration::from_secs(10);

/// How often the service manager is told what we do.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(5);

// RFC 9110 §4.1, and room for fields beside the longest target.
const _: () = assert!(MAX_TARGET_BYTES >= 8000);
const _: () = assert!(MAX_TARGET_BYTES * 2 < MAX_HEAD_BYTES);
