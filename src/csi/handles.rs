//! The handles of ceph-csi: `0001-LLLL-<clusterID>-PPPPPPPPPPPPPPPP-<uuid>`.
//!
//! LLLL is the length of the clusterID and P the pool's number, both in hexadecimal digits. A
//! clusterID may hold `-`, so a handle is cut by lengths.

use std::fmt;

/// What a handle of a volume or of a snapshot says: the two look alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// ceph-csi's clusterID.
    pub cluster: String,
    /// The number of the image's pool.
    pub pool: i64,
    /// What the journal object's name ends in.
    pub uuid: String,
}

/// Bytes of a uuid.
const UUID: usize = 36;
/// The version of handles, and what separates it.
const VERSION: &str = "0001-";

impl Handle {
    /// Reads a handle; `None` when it is none.
    pub fn parse(text: &str) -> Option<Handle> {
        let rest = text.strip_prefix(VERSION)?;
        let (length, rest) = cut(rest, 4)?;
        let length = usize::from_str_radix(length, 16).ok()?;
        let (cluster, rest) = cut(rest, length)?;
        let (pool, uuid) = cut(rest, 16)?;
        // Sixteen digits of a signed number of 64 bits.
        let pool = i64::from_ne_bytes(u64::from_str_radix(pool, 16).ok()?.to_ne_bytes());
        let is_uuid = uuid.len() == UUID && uuid::Uuid::try_parse(uuid).is_ok();
        (is_uuid && !cluster.is_empty()).then(|| Handle {
            cluster: cluster.to_owned(),
            pool,
            uuid: uuid.to_owned(),
        })
    }
}

/// The first `length` bytes, which are digits or anything else but end at a `-`, and the rest.
fn cut(text: &str, length: usize) -> Option<(&str, &str)> {
    let (first, rest) = text.split_at_checked(length)?;
    rest.strip_prefix('-').map(|rest| (first, rest))
}

impl fmt::Display for Handle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Handle { cluster, pool, uuid } = self;
        write!(formatter, "{VERSION}{:04x}-{cluster}-{pool:016x}-{uuid}", cluster.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UUID: &str = "11111111-1111-4111-8111-111111111111";

    #[test]
    fn handles_are_cut_by_lengths() {
        let handle = Handle::parse(&format!("0001-0003-lab-0000000000000001-{UUID}")).unwrap();
        assert_eq!((handle.cluster.as_str(), handle.pool, handle.uuid.as_str()), ("lab", 1, UUID));
        let dashes =
            Handle::parse(&format!("0001-0009-rook-ceph-00000000000000FF-{UUID}")).unwrap();
        assert_eq!((dashes.cluster.as_str(), dashes.pool), ("rook-ceph", 255));
        let long = format!("0001-0040-{}-ffffffffffffffff-{UUID}", "c".repeat(64));
        assert_eq!(Handle::parse(&long).unwrap().pool, -1);
        assert_eq!(Handle::parse(&long).unwrap().to_string(), long);
    }

    #[test]
    fn what_is_no_handle_does_not_parse() {
        let pool = "0000000000000001";
        for text in [
            String::new(),
            "lab/rbd/csi-pvc-1".to_owned(),
            format!("0002-0003-lab-{pool}-{UUID}"),
            format!("0001-0004-lab-{pool}-{UUID}"),
            format!("0001-0002-lab-{pool}-{UUID}"),
            format!("0001-00zz-lab-{pool}-{UUID}"),
            format!("0001-0000--{pool}-{UUID}"),
            format!("0001-0003-lab-1-{UUID}"),
            format!("0001-0003-lab-{pool}-{UUID}0"),
            format!("0001-0003-lab-{pool}-{}", "x".repeat(36)),
            format!("0001-0003-lab-{pool}-{}", UUID.replace('-', "")),
            format!("0001-0001-é-{pool}-{UUID}"),
            "mig_mons-x_image-y_z".to_owned(),
        ] {
            assert_eq!(Handle::parse(&text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn printing_gives_the_text_back(cluster in "[a-z0-9-]{1,64}", pool: i64) {
            let handle = Handle { cluster, pool, uuid: UUID.to_owned() };
            prop_assert_eq!(Handle::parse(&handle.to_string()), Some(handle));
        }

        #[test]
        fn parsing_never_panics(text in "0001-[0-9a-fé-]{0,90}") {
            let _ = Handle::parse(&text);
        }
    }
}
