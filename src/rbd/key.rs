use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// The type of a cephx key, as `ceph auth … --key_type` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// AES with 128 bits, which every client knows. A cluster can be told to refuse it, and a new
    /// Ceph 20 does.
    Aes,
    /// AES with 256 bits, which a new Ceph 20 gives out. Older clients do not know it.
    Aes256k,
    /// Another one, by its number.
    Other(u16),
}

impl fmt::Display for KeyType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyType::Aes => formatter.write_str("aes"),
            KeyType::Aes256k => formatter.write_str("aes256k"),
            KeyType::Other(number) => write!(formatter, "number {number}"),
        }
    }
}

/// The bytes of a key in front of the secret.
const HEADER: usize = 12;

/// A cephx secret key (the base64 text of a keyring's `key =` line).
///
/// It is wiped from memory when dropped and has no `Display`; `Debug` hides it. Only the code that
/// hands it to librados or to the kernel may call [`Key::expose`].
#[derive(Clone)]
pub struct Key(Zeroizing<String>);

impl Key {
    /// The key in `text`, without the white space around it (files end in a newline).
    pub fn new(text: &str) -> Key {
        Key(Zeroizing::new(text.trim().to_owned()))
    }

    /// The key itself. Never log it, print it, or put it into an argument list or a file.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The key in its binary form: its type and time of creation, the secret's length, and the
    /// secret. `None` when the text is no such thing.
    pub(crate) fn decode(&self) -> Option<Zeroizing<Vec<u8>>> {
        let bytes = STANDARD.decode(self.0.as_bytes()).map(Zeroizing::new).ok()?;
        (bytes.len() > HEADER).then_some(bytes)
    }

    /// Its type; `None` when the text is no key.
    pub fn key_type(&self) -> Option<KeyType> {
        let bytes = self.decode()?;
        Some(match u16::from_le_bytes([bytes[0], bytes[1]]) {
            1 => KeyType::Aes,
            2 => KeyType::Aes256k,
            number => KeyType::Other(number),
        })
    }

    /// A SHA-256 digest, to tell keys apart without keeping them.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Key(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::{Key, KeyType};

    #[test]
    fn types_are_told_apart() {
        for (text, key_type) in [
            ("AQAxzcBl2vH4KBAAmbGbIL2gcBuzHWBtXExEqw==", Some(KeyType::Aes)),
            ("AgAxzcBl2vH4KBAAmbGbIL2gcBuzHWBtXExEqw==", Some(KeyType::Aes256k)),
            ("BwAxzcBl2vH4KBAAmbGbIL2gcBuzHWBtXExEqw==", Some(KeyType::Other(7))),
            // The header alone, no base64, nothing.
            ("AQAxzcBl2vH4KBAA", None),
            ("AQBcanary==", None),
            ("", None),
        ] {
            assert_eq!(Key::new(text).key_type(), key_type, "{text:?}");
        }
    }

    #[test]
    fn a_key_is_trimmed_and_never_shown() {
        let key = Key::new(" AQCanary==\n");
        assert_eq!(key.expose(), "AQCanary==");
        assert_eq!(format!("{key:?} {:?}", Some(key.clone())), "Key(hidden) Some(Key(hidden))");
    }

    #[test]
    fn digests_tell_keys_apart() {
        assert_eq!(Key::new("a").digest(), Key::new("a\n").digest());
        assert_ne!(Key::new("a").digest(), Key::new("b").digest());
    }
}
