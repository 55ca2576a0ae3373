//! Generic netlink: as much of it as one family's commands and notices need.
//!
//! In: a command with attributes, or a group of notices to listen to. Out: the attributes of the
//! answer, or the kernel's error; notices. A socket has one request under way at a time and no state
//! beyond its sequence number; one that listens is asked nothing any more. Written here because the
//! codec is smaller than the use of a crate for it would be.
//!
//! Source: `Documentation/userspace-api/netlink/intro.rst` of the kernel; numbers from its
//! `include/uapi/linux/netlink.h` and `genetlink.h`. All numbers are in the machine's byte order.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Longest answer that is read; those of the families used here have a few dozen bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// Answers to other requests that are skipped before this gives up.
const STRAY_MAX: usize = 64;
/// The kernel answers within the call that asks, so this only ends what should never hang.
const ANSWER_SECONDS_MAX: i64 = 30;

const HEADER_BYTES: usize = 16;
const GENERIC_HEADER_BYTES: usize = 4;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const TYPE_ERROR: u16 = 2;
const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;
/// Upper bits of an attribute's type: nested, network byte order.
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;
const ATTRIBUTE_NESTED: u16 = 1 << 15;

const CONTROL_FAMILY: u16 = 16;
const CONTROL_VERSION: u8 = 2;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;
const CONTROL_GROUPS: u16 = 7;
const CONTROL_GROUP_NAME: u16 = 1;
const CONTROL_GROUP_ID: u16 = 2;

/// Attributes to send.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    pub(super) fn u32(self, kind: u16, value: u32) -> Self {
        self.push(kind, &value.to_ne_bytes())
    }

    pub(super) fn u64(self, kind: u16, value: u64) -> Self {
        self.push(kind, &value.to_ne_bytes())
    }

    /// A text, which the kernel wants with a NUL behind it.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.push(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(super) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.push(kind | ATTRIBUTE_NESTED, &inner.bytes)
    }

    fn push(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len())
            .expect("attributes are short texts, numbers and lists of at most 64 sockets");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }
}

/// Attributes that were received.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    bytes: Vec<u8>,
}

impl Answer {
    pub(super) fn u16(&self, kind: u16) -> Option<u16> {
        self.find(kind)?.first_chunk().copied().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&self, kind: u16) -> Option<u32> {
        self.find(kind)?.first_chunk().copied().map(u32::from_ne_bytes)
    }

    /// Those within an attribute, as far as they can be read.
    fn nested(&self, kind: u16) -> impl Iterator<Item = Self> + '_ {
        let inner = self.find(kind).unwrap_or_default();
        Self::each(inner).map(|(_, value)| Self { bytes: value.to_vec() })
    }

    fn find(&self, kind: u16) -> Option<&[u8]> {
        Self::each(&self.bytes).find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// Kinds and values; ends where the bytes are no attributes any more.
    fn each(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
        let mut rest = bytes;
        std::iter::from_fn(move || {
            let len = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
            let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & ATTRIBUTE_TYPE_MASK;
            let value = rest.get(ATTRIBUTE_HEADER_BYTES..len)?;
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    /// The number of a family's group of notices.
    fn group(&self, name: &str) -> Option<u32> {
        let mut groups = self.nested(CONTROL_GROUPS);
        let is_named = |group: &Self| {
            group
                .find(CONTROL_GROUP_NAME)
                .is_some_and(|it| it.strip_suffix(&[0]) == Some(name.as_bytes()))
        };
        groups.find(is_named)?.u32(CONTROL_GROUP_ID)
    }
}

/// What a socket that listens has heard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Nothing for as long as was waited.
    Silence,
    /// A notice of the command, with these attributes.
    Here(Answer),
    /// There was no room for a notice.
    Lost,
}

/// A socket to one family.
#[derive(Debug)]
pub(super) struct Family {
    socket: OwnedFd,
    id: u16,
    version: u8,
    sequence: u32,
    /// What the kernel said of it.
    about: Answer,
}

impl Family {
    /// Looks the family up; `None` when the kernel has none of that name.
    pub(super) fn open(name: &str, version: u8) -> io::Result<Option<Self>> {
        let socket = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        socket::setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS_MAX, 0))?;
        let mut family = Self {
            socket,
            id: CONTROL_FAMILY,
            version: CONTROL_VERSION,
            sequence: 0,
            about: Answer::default(),
        };
        let wanted = Attributes::default().text(CONTROL_FAMILY_NAME, name);
        let answer = match family.request(CONTROL_GET_FAMILY, &wanted) {
            Ok(answer) => answer,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        family.id = answer.u16(CONTROL_FAMILY_ID).ok_or_else(|| malformed("family without id"))?;
        family.version = version;
        family.about = answer;
        Ok(Some(family))
    }

    /// Listens to a group of notices; false when the family has none of that name.
    pub(super) fn join(&mut self, group: &str) -> io::Result<bool> {
        let Some(group) = self.about.group(group) else { return Ok(false) };
        let bytes = libc::socklen_t::try_from(size_of_val(&group)).expect("four bytes");
        // SAFETY: the kernel reads a number of that many bytes, which is there.
        let joined = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                std::ptr::from_ref(&group).cast(),
                bytes,
            )
        };
        if joined == 0 { Ok(true) } else { Err(io::Error::last_os_error()) }
    }

    /// The next notice of `command`; others are passed over, and count as silence.
    pub(super) fn next_notice(&mut self, command: u8, patience: Duration) -> io::Result<Notice> {
        let patience = i64::try_from(patience.as_millis().max(1)).unwrap_or(i64::MAX);
        let patience = TimeVal::milliseconds(patience);
        socket::setsockopt(&self.socket, sockopt::ReceiveTimeout, &patience)?;
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        match socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(len) => Ok(notice(&buffer[..len], self.id, command)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Notice::Silence),
            Err(Errno::ENOBUFS) => Ok(Notice::Lost),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends a command and waits until the kernel has carried it out. An answer that carries
    /// nothing has no attributes.
    pub(super) fn request(&mut self, command: u8, attributes: &Attributes) -> io::Result<Answer> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = encode(self.id, self.version, self.sequence, command, attributes);
        socket::send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = Answer::default();
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        for _ in 0..STRAY_MAX {
            let len = match socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(len) => len,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            match decode(&buffer[..len], self.sequence, &mut answer)? {
                Progress::Done => return Ok(answer),
                Progress::More => {}
            }
        }
        Err(malformed("no acknowledgement among the answers"))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    More,
    Done,
}

fn encode(
    family: u16,
    version: u8,
    sequence: u32,
    command: u8,
    attributes: &Attributes,
) -> Vec<u8> {
    let len = HEADER_BYTES + GENERIC_HEADER_BYTES + attributes.bytes.len();
    let mut message = Vec::with_capacity(len);
    let len = u32::try_from(len).expect("each attribute is shorter than 64 KiB, and there are few");
    message.extend_from_slice(&len.to_ne_bytes());
    message.extend_from_slice(&family.to_ne_bytes());
    message.extend_from_slice(&(FLAG_REQUEST | FLAG_ACK).to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    // The port: the kernel fills in the socket's.
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&[command, version, 0, 0]);
    message.extend_from_slice(&attributes.bytes);
    message
}

/// Reads the messages of one datagram: keeps the attributes of the answer, and ends with the
/// acknowledgement, which is an error message with the number 0.
fn decode(datagram: &[u8], sequence: u32, answer: &mut Answer) -> io::Result<Progress> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let header = rest.first_chunk::<HEADER_BYTES>().ok_or_else(|| malformed("cut header"))?;
        let [l0, l1, l2, l3, t0, t1, _, _, s0, s1, s2, s3, ..] = *header;
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3]))
            .map_err(|_| malformed("length"))?;
        let body = rest.get(HEADER_BYTES..len).ok_or_else(|| malformed("length"))?;
        if u32::from_ne_bytes([s0, s1, s2, s3]) == sequence {
            if u16::from_ne_bytes([t0, t1]) == TYPE_ERROR {
                let code = body.first_chunk().ok_or_else(|| malformed("cut error"))?;
                return match i32::from_ne_bytes(*code) {
                    0 => Ok(Progress::Done),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                };
            }
            let attributes = body.get(GENERIC_HEADER_BYTES..);
            answer.bytes = attributes.ok_or_else(|| malformed("cut answer"))?.to_vec();
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Progress::More)
}

/// The notice in a datagram; the kernel sends each in one of its own.
fn notice(datagram: &[u8], family: u16, command: u8) -> Notice {
    let attributes = datagram.get(HEADER_BYTES + GENERIC_HEADER_BYTES..);
    let is_ours = datagram.get(4..6) == Some(&family.to_ne_bytes())
        && datagram.get(HEADER_BYTES) == Some(&command);
    match attributes {
        Some(attributes) if is_ours => Notice::Here(Answer { bytes: attributes.to_vec() }),
        _ => Notice::Silence,
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("generic netlink: {what}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer_of(attributes: Attributes) -> Answer {
        Answer { bytes: attributes.bytes }
    }

    #[test]
    fn attributes_read_as_they_are_written() {
        let inner = Attributes::default().u32(1, 17);
        let all = Attributes::default().text(10, "odd").nested(7, &inner).u64(2, 1 << 40).u32(1, 5);
        let answer = answer_of(all);
        assert_eq!(answer.u32(1), Some(5));
        assert_eq!(answer.find(10), Some(&b"odd\0"[..]));
        assert_eq!(answer.find(7), Some(inner.bytes.as_slice()));
        assert_eq!(answer.u32(3), None);
    }

    #[test]
    fn an_acknowledgement_ends_an_answer_and_an_error_is_the_kernels() {
        let mut message = encode(30, 1, 9, 1, &Attributes::default().u32(1, 4));
        let mut answer = Answer::default();
        assert_eq!(decode(&message, 8, &mut answer).unwrap(), Progress::More);
        assert_eq!(answer, Answer::default(), "an answer to something else");
        assert_eq!(decode(&message, 9, &mut answer).unwrap(), Progress::More);
        assert_eq!(answer.u32(1), Some(4));
        message[4..6].copy_from_slice(&TYPE_ERROR.to_ne_bytes());
        message[HEADER_BYTES..][..4].copy_from_slice(&(-libc::EBUSY).to_ne_bytes());
        let error = decode(&message, 9, &mut answer).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        message[HEADER_BYTES..][..4].copy_from_slice(&[0; 4]);
        assert_eq!(decode(&message, 9, &mut answer).unwrap(), Progress::Done);
    }

    #[test]
    fn a_family_that_every_kernel_has_is_found_and_another_is_not() {
        let mut family = Family::open("nlctrl", 2).unwrap().unwrap();
        assert!(family.join("notify").unwrap());
        assert!(!family.join("tidemark-none").unwrap());
        let heard = family.next_notice(200, Duration::from_millis(1)).unwrap();
        assert_eq!(heard, Notice::Silence);
        assert!(Family::open("tidemark-none", 1).unwrap().is_none());
    }

    #[test]
    fn groups_are_found_by_their_names() {
        let group = |id, name| Attributes::default().text(1, name).u32(2, id);
        let list = Attributes::default().nested(1, &group(17, "odd")).nested(2, &group(40, "even"));
        let about = answer_of(Attributes::default().u32(3, 9).nested(CONTROL_GROUPS, &list));
        assert_eq!(about.group("even"), Some(40));
        assert_eq!(about.group("odd"), Some(17));
        assert_eq!(about.group("od"), None);
        assert_eq!(answer_of(Attributes::default()).group("odd"), None);
    }

    #[test]
    fn a_notice_is_of_its_family_and_its_command() {
        let message = encode(30, 1, 0, 4, &Attributes::default().u32(1, 7));
        let Notice::Here(attributes) = notice(&message, 30, 4) else { panic!("not heard") };
        assert_eq!(attributes.u32(1), Some(7));
        assert_eq!(notice(&message, 31, 4), Notice::Silence);
        assert_eq!(notice(&message, 30, 5), Notice::Silence);
        assert_eq!(notice(&message[..HEADER_BYTES], 30, 4), Notice::Silence);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut answer = Answer::default();
            let _any = decode(&bytes, 0, &mut answer);
            let _any = notice(&bytes, 0, 0);
            let answer = Answer { bytes };
            let _any = answer.u32(1);
            let _any = answer.group("any");
        }
    }
}
