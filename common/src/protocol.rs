//! Messages on the stage's Unix socket (`SOCK_SEQPACKET`, so one packet is one message). Little-endian, fixed layout.
//!
//! A client sends one request and reads packets until the final one. While the flusher works it sends a packet with
//! status [`IN_PROGRESS`] at least every [`PROGRESS_INTERVAL_MS`]; a client that hears nothing for [`SILENCE_LIMIT_MS`]
//! (a program: for SHEAF_TIMEOUT) gives up. So every wait is bounded by the flusher's liveness, not by the size of the
//! work.
//!
//! Request, 16 bytes and then the payload: magic `u32`, version `u16`, kind `u16`, flags `u32`, payload length `u32`.
//! Reply, 24 bytes and then the payload: magic `u32`, version `u16`, reserved `u16`, status `i32` (0, an errno, or
//! [`IN_PROGRESS`]), payload length `u32`, value `u64`.

/// First word of every message: "SHF1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"SHF1");
/// Version of this page. A flusher answers another version with `EPROTO`.
pub const VERSION: u16 = 1;
/// Bytes of a request before its payload.
pub const REQUEST_HEADER: usize = 16;
/// Bytes of a reply before its payload.
pub const REPLY_HEADER: usize = 24;
/// Largest payload of either direction, in bytes.
pub const PAYLOAD_MAX: usize = 16 * 1024;
/// Status of a reply that is not the last one.
pub const IN_PROGRESS: i32 = -1;
/// Longest time between two packets of a flusher that is at work, in milliseconds.
pub const PROGRESS_INTERVAL_MS: u64 = 1000;
/// In the value of a reply to [`Kind::Hello`]: the stage ends with the job, and this client is the first to hear of it.
pub const STAGE_IS_TRANSIENT: u64 = 1 << 63;
/// In the value of an answer to [`Kind::Hello`]: several nodes wrote to one file at the same time, and nobody has been
/// told.
pub const HAS_CONTESTED: u64 = 1 << 62;
/// Silence after which the tools give the flusher up, in milliseconds. Programs do so after SHEAF_TIMEOUT.
pub const SILENCE_LIMIT_MS: u64 = 30_000;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// "I capture": the flusher stays while the peer process lives. No payload. Value, of the two that follow, too: how
    /// many names a cut hides, if nobody has been told, [`STAGE_IS_TRANSIENT`] and [`HAS_CONTESTED`].
    Hello = 1,
    /// Make the tree's mirror of a directory (payload: canonical path), with stubs for what the store holds in it.
    /// `ENOENT` when the directory does not exist, neither on the parallel file system nor in the store.
    Populate = 2,
    /// Make the stub at a canonical path (payload) resident. `EIO` when no intact data can be had.
    Hydrate = 3,
    /// Publish everything that was complete when the request was sent. Value: files that are still open for writing.
    Wait = 4,
    /// The flusher's state, as JSON in the payload.
    Status = 5,
    /// Publish everything, then leave as soon as no client lives.
    Drain = 6,
    /// "I capture no more": the flusher need not stay for the peer process. Value: processes that it still stays for.
    Goodbye = 7,
    /// As `Populate`, with everything below the directory: before it takes another name.
    PopulateBelow = 8,
    /// Publish the file at a canonical path (payload) as it is now, and answer when it is durable; if somebody still
    /// writes to it, what is written so far. `EIO` when it cannot be read, or the store takes nothing.
    Sync = 9,
    /// Make room in the stage (payload: bytes wanted, `u64`). `ENOSPC` when none can be made.
    Room = 10,
    /// Answer when the mirrors show what other nodes had published when this flusher started. The peer is no client by
    /// that. `ETIMEDOUT` when the store cannot be read in time. No payload.
    CatchUp = 11,
    /// Answer when the mirrors show what other nodes have published by now. The peer is no client by that. `ETIMEDOUT`
    /// when the store does not answer in time, `EIO` when it cannot be read. No payload.
    Refresh = 12,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 12] = [
        Kind::Hello,
        Kind::Populate,
        Kind::Hydrate,
        Kind::Wait,
        Kind::Status,
        Kind::Drain,
        Kind::Goodbye,
        Kind::PopulateBelow,
        Kind::Sync,
        Kind::Room,
        Kind::CatchUp,
        Kind::Refresh,
    ];

    /// The kind of this number, if there is one.
    pub fn from_number(number: u16) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u16 == number)
    }
}

/// A request's fixed part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub kind: Kind,
    /// Bytes of payload that follow.
    pub payload_length: usize,
}

/// A reply's fixed part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// 0, an errno, or [`IN_PROGRESS`].
    pub status: i32,
    /// Depends on the request; bytes done so far in a packet with [`IN_PROGRESS`].
    pub value: u64,
    /// Bytes of payload that follow.
    pub payload_length: usize,
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageError {
    /// Shorter than its fixed part, or not as long as it says.
    Length,
    /// Not the magic number of a Sheaf message.
    Magic,
    /// A version that this program does not speak.
    Version,
    /// A request of unknown kind.
    Kind,
}

impl Request {
    /// The fixed part as bytes.
    pub fn encode(self) -> [u8; REQUEST_HEADER] {
        let mut bytes = [0; REQUEST_HEADER];
        put(&mut bytes, 0, &MAGIC.to_le_bytes());
        put(&mut bytes, 4, &VERSION.to_le_bytes());
        put(&mut bytes, 6, &(self.kind as u16).to_le_bytes());
        put(&mut bytes, 12, &(self.payload_length as u32).to_le_bytes());
        bytes
    }

    /// Reads a packet's fixed part; the payload is what follows it.
    ///
    /// # Errors
    /// [`MessageError`] when the packet is no request.
    pub fn decode(packet: &[u8]) -> Result<Request, MessageError> {
        let (number, payload_length) = decode_start(packet, REQUEST_HEADER, 12)?;
        let kind = Kind::from_number(number).ok_or(MessageError::Kind)?;
        Ok(Request { kind, payload_length })
    }
}

impl Reply {
    /// The fixed part as bytes.
    pub fn encode(self) -> [u8; REPLY_HEADER] {
        let mut bytes = [0; REPLY_HEADER];
        put(&mut bytes, 0, &MAGIC.to_le_bytes());
        put(&mut bytes, 4, &VERSION.to_le_bytes());
        put(&mut bytes, 8, &self.status.to_le_bytes());
        put(&mut bytes, 12, &(self.payload_length as u32).to_le_bytes());
        put(&mut bytes, 16, &self.value.to_le_bytes());
        bytes
    }

    /// Reads a packet's fixed part; the payload is what follows it.
    ///
    /// # Errors
    /// [`MessageError`] when the packet is no reply.
    pub fn decode(packet: &[u8]) -> Result<Reply, MessageError> {
        let (_, payload_length) = decode_start(packet, REPLY_HEADER, 12)?;
        let status = i32::from_le_bytes(take(packet, 8).ok_or(MessageError::Length)?);
        let value = u64::from_le_bytes(take(packet, 16).ok_or(MessageError::Length)?);
        Ok(Reply { status, value, payload_length })
    }
}

/// The path in a payload without its leading slash, if it is a canonical one: no way leads out of the tree by it.
pub fn canonical_path(payload: &[u8]) -> Option<&[u8]> {
    let path = payload.strip_prefix(b"/")?;
    let normal =
        |component: &[u8]| !component.is_empty() && component != b"." && component != b".." && !component.contains(&0);
    path.split(|byte| *byte == b'/').all(normal).then_some(path)
}

/// Checks what requests and replies have in common; yields the `u16` at offset 6 and the payload's length.
fn decode_start(packet: &[u8], header: usize, length_at: usize) -> Result<(u16, usize), MessageError> {
    if packet.len() < header {
        return Err(MessageError::Length);
    }
    if take(packet, 0).map(u32::from_le_bytes) != Some(MAGIC) {
        return Err(MessageError::Magic);
    }
    if take(packet, 4).map(u16::from_le_bytes) != Some(VERSION) {
        return Err(MessageError::Version);
    }
    let number = take(packet, 6).map(u16::from_le_bytes).ok_or(MessageError::Length)?;
    let payload_length = take(packet, length_at).map(u32::from_le_bytes).ok_or(MessageError::Length)? as usize;
    if payload_length > PAYLOAD_MAX || packet.len() != header + payload_length {
        return Err(MessageError::Length);
    }
    Ok((number, payload_length))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_and_replies_survive_the_wire() {
        for kind in Kind::ALL {
            let request = Request { kind, payload_length: 3 };
            let mut packet = request.encode().to_vec();
            packet.extend(b"abc");
            assert_eq!(Request::decode(&packet), Ok(request));
            packet.push(0);
            assert_eq!(Request::decode(&packet), Err(MessageError::Length));
        }
        let reply = Reply { status: 5, value: u64::MAX, payload_length: 0 };
        assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
    }

    #[test]
    fn only_canonical_paths_are_accepted() {
        assert_eq!(canonical_path(b"/scratch/ckpt"), Some(&b"scratch/ckpt"[..]));
        for refused in [&b"scratch"[..], b"/", b"/a//b", b"/a/../b", b"/a/.", b"/a/", b"/a\0b", b""] {
            assert_eq!(canonical_path(refused), None, "{}", refused.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn hostile_packets_are_refused_quietly(packet in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Request::decode(&packet);
            let _ = Reply::decode(&packet);
        }
    }
}
