use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// A cephx secret key (the base64 text of a keyring's `key =` line).
///
/// It is wiped from memory when dropped and has no `Display`; `Debug` hides it. Only the code that hands it to
/// librados or to the kernel may call [`Key::expose`].
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
    use super::Key;

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
