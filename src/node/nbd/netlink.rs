//! The kernel's generic netlink family `nbd`, for one command: a device's new size.
//!
//! Messages are numbers of this machine's byte order, padded to four bytes: a header, the family's
//! header, and attributes, each with its length and type. See netlink(7) and the kernel's
//! uapi/linux/{netlink,genetlink,nbd-netlink}.h.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, socket,
};

/// Room for any answer: an error repeats the request.
const ANSWER: usize = 8192;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

const CONTROLLER: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const NBD_CMD_RECONFIGURE: u8 = 3;
const NBD_ATTR_INDEX: u16 = 1;
const NBD_ATTR_SIZE_BYTES: u16 = 2;
const NBD_ATTR_BACKEND_IDENTIFIER: u16 = 10;

/// Gives the device `/dev/nbd<index>` the size `bytes`. It must carry `cookie`, so it is no other
/// volume's.
pub(super) fn set_size(index: u32, cookie: &str, bytes: u64) -> Result<(), Errno> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkGeneric)?;
    let family = family(&socket, "nbd")?;
    let attributes = [
        attribute(NBD_ATTR_INDEX, &index.to_ne_bytes()),
        attribute(NBD_ATTR_SIZE_BYTES, &bytes.to_ne_bytes()),
        attribute(NBD_ATTR_BACKEND_IDENTIFIER, &text(cookie)),
    ];
    ask(&socket, family, NLM_F_ACK, NBD_CMD_RECONFIGURE, &attributes.concat()).map(drop)
}

/// The number of a family.
fn family(socket: &OwnedFd, name: &str) -> Result<u16, Errno> {
    let answer = ask(
        socket,
        CONTROLLER,
        0,
        CTRL_CMD_GETFAMILY,
        &attribute(CTRL_ATTR_FAMILY_NAME, &text(name)),
    )?;
    let id = find(answer.get(FAMILY_HEADER..).unwrap_or_default(), CTRL_ATTR_FAMILY_ID);
    id.and_then(|id| id.try_into().ok()).map(u16::from_ne_bytes).ok_or(Errno::EPROTO)
}

/// Sends one command and returns what the answer holds behind its header; an acknowledgement holds
/// nothing of interest.
fn ask(
    socket: &OwnedFd,
    family: u16,
    flags: u16,
    command: u8,
    attributes: &[u8],
) -> Result<Vec<u8>, Errno> {
    const VERSION: u8 = 1;
    let request =
        message(family, NLM_F_REQUEST | flags, &[&[command, VERSION, 0, 0], attributes].concat());
    let kernel = NetlinkAddr::new(0, 0);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(&request)], &[], MsgFlags::empty(), Some(&kernel))?;
    let mut answer = vec![0; ANSWER];
    let length = recv(socket.as_fd().as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(length);
    let body = answer.split_off(NLMSG_HEADER.min(length));
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    if kind != Some(NLMSG_ERROR) {
        return Ok(body);
    }
    let error =
        body.get(..4).and_then(|error| error.try_into().ok()).map_or(i32::MIN, i32::from_ne_bytes);
    if error == 0 { Ok(Vec::new()) } else { Err(Errno::from_raw(error.saturating_neg())) }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    // Neither a sequence number nor a port: one question, one answer.
    let length = u32::try_from(NLMSG_HEADER + body.len()).unwrap_or(u32::MAX);
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], body].concat()
}

/// A text as attributes have it, with its end.
fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    const HEADER: usize = 4;
    let length = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of a kind.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some((header, rest)) = attributes.split_first_chunk::<4>() {
        let length =
            usize::from(u16::from_ne_bytes([header[0], header[1]])).checked_sub(header.len())?;
        let value = rest.get(..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) == wanted {
            return Some(value);
        }
        attributes = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_among_others() {
        let attributes =
            [attribute(7, b"abc"), attribute(1, &27_u16.to_ne_bytes()), attribute(2, b"x")]
                .concat();
        assert_eq!(attributes.len(), 8 + 8 + 8);
        assert_eq!(find(&attributes, 1), Some(&27_u16.to_ne_bytes()[..]));
        assert_eq!(find(&attributes, 7), Some(&b"abc"[..]));
        assert_eq!(find(&attributes, 3), None);
        assert_eq!(find(&attributes[..attributes.len() - 4], 2), None);
        assert_eq!(find(&[1, 0, 0, 0], 0), None);
    }

    #[test]
    fn the_kernel_knows_its_own_families_and_no_other() {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )
        .unwrap();
        assert_eq!(family(&socket, "nlctrl"), Ok(CONTROLLER));
        assert_eq!(family(&socket, "no such"), Err(Errno::ENOENT));
    }
}
