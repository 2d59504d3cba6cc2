//! The notes of which clients may write to a volume, in the omap of the volume's pool. Fencing goes
//! by them.
//!
//! A volume has one entry for each node it is published to. The controller writes the entry
//! together with the publication, with a fresh token, and removes both in one write. The node adds
//! a client before that client's first write. Every write of either side is guarded by the entry as
//! it was read, so
//!
//! - a node that was unpublished, or published anew, meanwhile adds no client;
//! - the controller never releases a volume while a client is noted that it did not see.
//!
//! The entry is not in the image's metadata: librbd copies those to clones.

use serde::{Deserialize, Serialize};

/// The version of entries this build writes; it reads no newer ones.
const VERSION: u32 = 1;

/// How long a fenced client stays on Ceph's blocklist, in seconds: five years. Ceph has no "for
/// ever".
pub const FENCED_SECONDS: u32 = 5 * 365 * 24 * 3600;

/// What all keys of entries begin with.
pub(crate) const KIND: &str = "notes/";

/// The clients of one node that may write to one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    version: u32,
    /// The node's id.
    pub node: String,
    /// The token of the publication.
    pub token: String,
    /// The clients.
    pub clients: Vec<Client>,
}

/// A client that may write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its address as Ceph's blocklist names it, `IP:PORT/NONCE`.
    pub address: String,
    /// The boot id of the node when it was noted.
    pub boot: String,
    /// The id of the image it has open.
    pub image_id: String,
}

/// Where a node writes its notes. The controller hands it out in the publish context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The RADOS object, in the volume's pool and namespace.
    pub object: String,
    /// The key in its omap.
    pub key: String,
    /// The token of the publication.
    pub token: String,
}

impl Notes {
    /// The entry of a node that was just given the volume.
    pub(crate) fn new(node: &str, token: &str) -> Notes {
        Notes {
            version: VERSION,
            node: node.to_owned(),
            token: token.to_owned(),
            clients: Vec::new(),
        }
    }

    /// The entry in the form it is written in.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "plain structs of strings always serialise")]
        serde_json::to_vec(self).expect("an entry serialises")
    }

    /// Reads an entry. The error says what is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Notes, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let unreadable = |error: serde_json::Error| format!("cannot be read ({error})");
        let Version { version } = serde_json::from_slice(bytes).map_err(unreadable)?;
        if version > VERSION {
            return Err(format!(
                "has version {version}, newer than this driver's {VERSION}: run the newer driver"
            ));
        }
        serde_json::from_slice(bytes).map_err(unreadable)
    }
}

/// The beginning of the keys of a volume's entries. The names of images hold no slash.
pub(crate) fn prefix(image: &str) -> String {
    format!("{KIND}{image}/")
}

/// The key of a node's entry.
pub(crate) fn key(image: &str, node: &str) -> String {
    format!("{}{node}", prefix(image))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let mut notes = Notes::new("a/b", "t");
        notes.clients.push(Client {
            address: "10.0.0.1:0/7".into(),
            boot: "b".into(),
            image_id: "i".into(),
        });
        assert_eq!(Notes::parse(&notes.bytes()), Ok(notes));
        assert_eq!(key("csi-x", "a/b"), "notes/csi-x/a/b");
    }

    #[test]
    fn an_entry_that_cannot_be_read_is_not_an_empty_one() {
        for (text, why) in [
            ("", "cannot be read"),
            ("{\"version\": 1}", "cannot be read"),
            ("{\"version\": 2, \"node\": \"n\", \"token\": \"t\", \"clients\": []}", "newer"),
        ] {
            assert!(Notes::parse(text.as_bytes()).unwrap_err().contains(why), "{text}");
        }
    }
}
