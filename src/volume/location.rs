//! Where a golden image is: the `rbd://` locations that Cinder and Glance have, and RADOS
//! namespaces.
//!
//! `rbd://FSID/POOL/IMAGE/SNAPSHOT`, or `rbd://FSID/POOL/NAMESPACE/IMAGE/SNAPSHOT`, as the specs of
//! `rbd` and the ids of volumes have a namespace between pool and image. Each part is
//! percent-encoded, so that it may hold any character.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::fmt;

const SCHEME: &str = "rbd://";
/// What is encoded: all but what RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// What a location looks like.
const FORM: &str =
    "a location is rbd://FSID/POOL/IMAGE/SNAPSHOT or rbd://FSID/POOL/NAMESPACE/IMAGE/SNAPSHOT";

/// The location of a snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLocation {
    /// The id of its cluster, as it is written.
    pub fsid: String,
    /// Its pool.
    pub pool: String,
    /// Its RADOS namespace, "" for the default one.
    pub namespace: String,
    /// The image's name.
    pub image: String,
    /// The snapshot's name.
    pub snapshot: String,
    text: String,
}

impl ImageLocation {
    /// Reads a location. The error says what is wrong with it, and what it should look like.
    pub fn parse(text: &str) -> Result<ImageLocation, String> {
        let wrong = |why: String| format!("{text:?} {why}: {FORM}");
        let Some(path) = text.strip_prefix(SCHEME) else {
            return Err(wrong(format!("does not begin with {SCHEME}")));
        };
        let parts: Vec<_> = path.split('/').collect();
        if let Some(blank) = parts.iter().position(|part| part.is_empty()) {
            let (number, count) = (blank + 1, parts.len());
            return Err(wrong(format!("has nothing in part {number} of {count}")));
        }
        let parts = parts
            .iter()
            .map(|part| decode(part).map_err(&wrong))
            .collect::<Result<Vec<_>, String>>()?;
        let (fsid, pool, namespace, image, snapshot) = match &parts[..] {
            [fsid, pool, image, snapshot] => (fsid, pool, "", image, snapshot),
            [fsid, pool, namespace, image, snapshot] => {
                (fsid, pool, namespace.as_str(), image, snapshot)
            }
            _ => {
                let (count, s) = (parts.len(), if parts.len() == 1 { "" } else { "s" });
                return Err(wrong(format!(
                    "is not a snapshot of an image, it has {count} part{s}"
                )));
            }
        };
        Ok(ImageLocation {
            fsid: fsid.clone(),
            pool: pool.clone(),
            namespace: namespace.to_string(),
            image: image.clone(),
            snapshot: snapshot.clone(),
            text: text.to_string(),
        })
    }

    /// Writes the location of a snapshot: what [`ImageLocation::parse`] reads.
    pub fn write(fsid: &str, pool: &str, namespace: &str, image: &str, snapshot: &str) -> String {
        let parts = [fsid, pool, namespace, image, snapshot].into_iter();
        let parts = parts.filter(|part| !part.is_empty());
        let encoded: Vec<_> =
            parts.map(|part| utf8_percent_encode(part, RESERVED).to_string()).collect();
        format!("{SCHEME}{}", encoded.join("/"))
    }

    /// The snapshot's spec, as `rbd` writes it.
    pub fn spec(&self) -> String {
        format!("{}@{}", super::image_spec(&self.pool, &self.namespace, &self.image), self.snapshot)
    }
}

/// As it was written.
impl fmt::Display for ImageLocation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

fn decode(part: &str) -> Result<String, String> {
    for (at, _) in part.match_indices('%') {
        let digits = part.as_bytes().get(at + 1..at + 3);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(format!(
                "has a % in {part:?} without two hexadecimal digits behind it (a % itself is written %25)"
            ));
        }
    }
    let Ok(decoded) = percent_decode_str(part).decode_utf8() else {
        return Err(format!("has in {part:?} what is not UTF-8 once it is decoded"));
    };
    if decoded.chars().any(char::is_control) {
        return Err(format!("has a control character in {part:?}"));
    }
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn parts(text: &str) -> [String; 5] {
        let ImageLocation { fsid, pool, namespace, image, snapshot, .. } =
            ImageLocation::parse(text).unwrap();
        [fsid, pool, namespace, image, snapshot]
    }

    #[test]
    fn what_is_written_is_read() {
        for wanted in [["f-1", "p", "", "i", "s"], ["f", "p/q", "n s", "debian~13.2_é%", "a+b@c"]]
        {
            let [fsid, pool, namespace, image, snapshot] = wanted;
            let text = ImageLocation::write(fsid, pool, namespace, image, snapshot);
            assert_eq!(parts(&text), wanted, "{text}");
        }
        let text = ImageLocation::write("f", "p q", "", "é", "s-1");
        assert_eq!(text, "rbd://f/p%20q/%C3%A9/s-1");
    }

    #[test]
    fn good_locations_are_read() {
        for (text, wanted) in [
            ("rbd://fsid/pool/image/snap", ["fsid", "pool", "", "image", "snap"]),
            ("rbd://%2F/%2F/%2F/%2F", ["/", "/", "", "/", "/"]),
            ("rbd://fsid/pool/space/image/snap", ["fsid", "pool", "space", "image", "snap"]),
            ("rbd://f/p/de%62ian%2012/%C3%A9%25", ["f", "p", "", "debian 12", "é%"]),
            ("rbd://f/p/é/a+b@c", ["f", "p", "", "é", "a+b@c"]),
        ] {
            assert_eq!(parts(text), wanted, "{text}");
            assert_eq!(ImageLocation::parse(text).unwrap().to_string(), text);
        }
        let location = ImageLocation::parse("rbd://f/p/n/i/s").unwrap();
        assert_eq!(location.spec(), "p/n/i@s");
    }

    /// The seed's own, and more.
    #[test]
    fn each_bad_location_has_a_message_of_its_own() {
        let mut messages = BTreeSet::new();
        let bad = [
            ("rbd://image", "has 1 part:"),
            ("http://path/to/somewhere/else", "does not begin with rbd://"),
            ("rbd://image/extra", "has 2 parts"),
            ("rbd://image/", "nothing in part 2 of 2"),
            ("rbd://fsid/pool/image/", "nothing in part 4 of 4"),
            ("rbd://fsid/pool/image/snap/", "nothing in part 5 of 5"),
            ("rbd://///", "nothing in part 1 of 4"),
            ("rbd://", "nothing in part 1 of 1"),
            ("", "does not begin with rbd://"),
            ("RBD://f/p/i/s", "does not begin with rbd://"),
            ("rbd:/f/p/i/s", "does not begin with rbd://"),
            ("rbd://f/p/i", "has 3 parts"),
            ("rbd://f/p/n/i/s/x", "has 6 parts"),
            ("rbd://f//i/s", "nothing in part 2 of 4"),
            ("rbd://f/p/i/100%", "without two hexadecimal digits"),
            ("rbd://f/p/%zz/s", "without two hexadecimal digits"),
            ("rbd://f/p/i/%FF", "not UTF-8"),
            ("rbd://f/p/i/a%00b", "control character"),
        ];
        for (text, words) in bad {
            let message = ImageLocation::parse(text).unwrap_err();
            assert!(message.contains(words), "{text}: {message}");
            assert!(message.contains("rbd://FSID/POOL/IMAGE/SNAPSHOT"), "{message}");
            messages.insert(message);
        }
        assert_eq!(messages.len(), bad.len());
    }
}
