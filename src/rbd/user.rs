//! A Ceph user that its cluster or a client does not take as it is: what to say, with the commands
//! that mend it.

use super::KeyType;

/// A user, and where it is to work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User<'a> {
    /// Its name, without `client.`.
    pub(crate) name: &'a str,
    /// The type of its key, if it is known.
    pub(crate) key: Option<KeyType>,
    /// The pool.
    pub(crate) pool: &'a str,
    /// The RADOS namespace, "" for the default one.
    pub(crate) namespace: &'a str,
}

impl User<'_> {
    /// What to do when it lacks capabilities. It ends in a command.
    pub(crate) fn lacks_capabilities(&self) -> String {
        format!(
            "the Ceph user lacks capabilities, run: ceph auth caps client.{} {}",
            self.name,
            self.capabilities()
        )
    }

    /// Why the cluster may have refused it (`EACCES`): it tells the client no more than that.
    pub(crate) fn refused(&self) -> String {
        let name = self.name;
        let aes = if self.key == Some(KeyType::Aes) {
            "; or the cluster has stopped taking keys of the type aes, as this one is: then `ceph mon dump` shows auth_allowed_ciphers \
             without aes, and the user gets in again after: ceph mon set auth_allowed_ciphers aes,aes256k"
        } else {
            ""
        };
        format!(
            "the cluster refuses client.{name}: check userID and userKey in the secret, and see `ceph auth get client.{name}`: it needs \
             at least mon 'profile rbd'{aes}"
        )
    }

    /// Why `client`, a librados, may have found the key or the monitors' addresses to be malformed
    /// (`EINVAL`).
    pub(crate) fn is_malformed_to(&self, client: &str) -> String {
        let name = self.name;
        match self.key {
            Some(KeyType::Aes256k) => {
                format!(
                    "{}: Ceph's libraries do from 20.2.4 on. {}",
                    self.has_newer_key(client),
                    self.aes_twin()
                )
            }
            Some(KeyType::Aes) => "an address in monitors is wrong".to_owned(),
            Some(KeyType::Other(_)) | None => format!(
                "{client} does not know the type of the key of client.{name}, or an address in monitors is wrong"
            ),
        }
    }

    /// That `client` does not know a key of the type aes256k, as this user has one.
    pub(crate) fn has_newer_key(&self, client: &str) -> String {
        format!("{client} does not know keys of the type aes256k, as client.{} has one", self.name)
    }

    /// How to get a user like this one whose key every client knows. It ends in commands.
    pub(crate) fn aes_twin(&self) -> String {
        format!(
            "Or put another user into the secret, with a key of the type aes, run: ceph mon set auth_allowed_ciphers aes,aes256k && \
             ceph auth get-or-create client.{}-aes {} --key_type aes",
            self.name,
            self.capabilities()
        )
    }

    /// What to do when it may not clone what is in another pool, or in a RADOS namespace of one. It
    /// ends in a command.
    pub(crate) fn may_not_clone(&self, pool: &str, namespace: &str) -> String {
        let (own, other) = (limits(self.pool, self.namespace), limits(pool, namespace));
        format!(
            "the Ceph user needs the right to read it, and each image that it is itself a clone of, run: ceph auth caps client.{} mon 'profile \
             rbd' osd 'profile rbd {own}, profile rbd-read-only {other}' mgr 'profile rbd {own}'",
            self.name
        )
    }

    fn capabilities(&self) -> String {
        let limits = limits(self.pool, self.namespace);
        format!("mon 'profile rbd' osd 'profile rbd {limits}' mgr 'profile rbd {limits}'")
    }
}

/// What limits capabilities to a pool, or to a RADOS namespace of it.
fn limits(pool: &str, namespace: &str) -> String {
    match namespace {
        "" => format!("pool={pool}"),
        namespace => format!("pool={pool} namespace={namespace}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_depends_on_the_type_of_the_key() {
        let user = |key| User { name: "csi", key, pool: "fast", namespace: "team" };
        let refused = |key| user(key).refused();
        assert!(
            refused(Some(KeyType::Aes)).ends_with("ceph mon set auth_allowed_ciphers aes,aes256k")
        );
        assert!(!refused(Some(KeyType::Aes256k)).contains("aes"));
        assert!(!refused(None).contains("aes"));
        let malformed = |key| user(key).is_malformed_to("it");
        assert!(malformed(Some(KeyType::Aes256k)).ends_with(
            "ceph auth get-or-create client.csi-aes mon 'profile rbd' osd 'profile rbd pool=fast namespace=team' mgr 'profile \
             rbd pool=fast namespace=team' --key_type aes"
        ));
        assert!(!malformed(Some(KeyType::Aes)).contains("key"));
        assert!(
            malformed(Some(KeyType::Other(7)))
                .contains("does not know the type of the key of client.csi")
        );
    }
}
