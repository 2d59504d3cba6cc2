//! The node's side of [the notes](crate::notes) by which a lost node is fenced.
//!
//! - Every client that may write to a volume is noted before its first write: before a filesystem
//!   is checked, made or mounted, before a raw device is handed out, before a storage daemon takes
//!   up a second opening of the image. A note that is refused fails the operation, and what was
//!   attached is detached.
//! - Clients of this node that are noted and not there any more (it was rebooted, a daemon was
//!   killed) are put on Ceph's blocklist before the next client is attached.
//! - A note goes after its client. Unstaging brings no key, so a volume's [`Notes`] are kept in
//!   memory while it is staged. After a restart of the driver they are not there: then, and when
//!   the cluster does not answer, the removal is owed, in a file `owed/VOLUME.json` of the state
//!   directory, and made by the next request that brings a key of the same user. A controller that
//!   meets the note before that fences a client that is gone.
//!
//! A volume that was published by a version before notes, or that comes without a publish context,
//! has no token, and its clients are not noted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use procfs::process::{MMPermissions, Process};
use serde::{Deserialize, Serialize};

use super::attach::Image;
use super::error::{Error, Result};
use super::kill::step;
use super::mark::Marks;
use crate::notes::{Client, FENCED_SECONDS, Notes as Entry, Place};
use crate::rbd::{self, Errno, Guard, OmapUpdate, Pool, Watcher};

/// How often an entry is tried to be written while it changes.
const ATTEMPTS: usize = 20;

/// How long the removal of a note may hold up unstaging.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);

/// How long reading and changing notes, fencing included, may take otherwise.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a volume's record says of its notes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Noted {
    /// Where they are.
    pub(super) place: Place,
    /// The clients that are noted, or about to be.
    pub(super) addresses: BTreeSet<String>,
}

/// The notes of one volume, read and written as the user who attaches it.
#[derive(Clone)]
pub(super) struct Notes {
    marks: Marks,
    pub(super) place: Place,
}

impl Notes {
    pub(super) fn new(marks: Marks, place: Place) -> Self {
        Self { marks, place }
    }

    /// Fences what is noted, before a client is attached: nothing is attached here, so none of them
    /// is alive. `FailedPrecondition` when the volume was unpublished meanwhile.
    pub(super) fn fence_earlier(&self) -> Result<()> {
        self.replace(&BTreeSet::new())
    }

    /// Notes exactly these clients, those that may write from here on, and fences any other that is
    /// noted. `FailedPrecondition` when the volume was unpublished meanwhile: the clients must not
    /// write.
    pub(super) fn replace(&self, addresses: &BTreeSet<String>) -> Result<()> {
        let (addresses, image) = (addresses.clone(), self.marks.image().name.clone());
        self.change("note the clients of", PATIENCE, move |pool, entry| {
            let others = entry.clients.iter().filter(|client| !addresses.contains(&client.address));
            for other in others {
                tracing::info!(
                    address = other.address,
                    boot = other.boot,
                    "an earlier client of this node is fenced"
                );
                pool.cluster().blocklist(&other.address, FENCED_SECONDS)?;
                step("earlier client fenced");
            }
            entry.clients.retain(|client| addresses.contains(&client.address));
            add(pool, &image, entry, &addresses)
        })
        .and_then(|published| self.require_publication(published))
    }

    /// Notes a further client. Errors as [`Notes::replace`].
    pub(super) fn add(&self, address: &str) -> Result<()> {
        let (addresses, image) =
            (BTreeSet::from([address.to_owned()]), self.marks.image().name.clone());
        self.change("note a client of", PATIENCE, move |pool, entry| {
            add(pool, &image, entry, &addresses)
        })
        .and_then(|published| self.require_publication(published))
    }

    /// Removes the notes of clients that are gone. Fine when the volume is unpublished.
    pub(super) fn remove(&self, addresses: &BTreeSet<String>) -> Result<()> {
        let addresses = addresses.clone();
        self.change("remove the notes of", REMOVAL_PATIENCE, move |_, entry| {
            entry.clients.retain(|client| !addresses.contains(&client.address));
            Ok(())
        })
        .map(drop)
    }

    /// The clients that watch the image.
    pub(super) fn watchers(&self) -> Result<Vec<Watcher>> {
        self.marks.watchers()
    }

    fn require_publication(&self, published: bool) -> Result<()> {
        if published {
            return Ok(());
        }
        Err(Error::FailedPrecondition(format!(
            "the volume was unpublished from this node since this request was made, so no client of this node may write to it ({} in \
             {} does not have the request's token): publish it to this node again",
            self.place.key, self.place.object
        )))
    }

    /// Changes the entry as it is, unless it is another publication's: then this is `false`.
    fn change(
        &self,
        what: &str,
        patience: Duration,
        change: impl Fn(&dyn Pool, &mut Entry) -> rbd::Result<()> + Send + 'static,
    ) -> Result<bool> {
        let place = self.place.clone();
        self.marks.with_pool(&format!("cannot {what} the image"), patience, move |pool| {
            let mut attempts = 0;
            loop {
                attempts += 1;
                match change_once(pool, &place, &change) {
                    Err(error) if error.errno == Errno::ECANCELED && attempts < ATTEMPTS => {}
                    other => return other,
                }
            }
        })
    }
}

fn change_once(
    pool: &dyn Pool,
    place: &Place,
    change: impl Fn(&dyn Pool, &mut Entry) -> rbd::Result<()>,
) -> rbd::Result<bool> {
    let Place { object, key, token } = place;
    let Some(bytes) = pool.omap_get(object, &[key])?.remove(key) else { return Ok(false) };
    let old = Entry::parse(&bytes).map_err(|why| {
        rbd::Error::new(Errno::EBADMSG, "reading notes", format!("{object}, whose {key} {why}"))
    })?;
    if old.token != *token {
        return Ok(false);
    }
    let mut new = old.clone();
    change(pool, &mut new)?;
    if new != old {
        let update = OmapUpdate {
            guards: vec![Guard::Equals(key.clone(), bytes)],
            set: vec![(key.clone(), new.bytes())],
            remove: vec![],
        };
        pool.omap_update(object, &update)?;
        step("notes written");
    }
    Ok(true)
}

/// Adds clients of `image` that are not noted yet.
fn add(
    pool: &dyn Pool,
    image: &str,
    entry: &mut Entry,
    addresses: &BTreeSet<String>,
) -> rbd::Result<()> {
    for address in addresses {
        if !entry.clients.iter().any(|client| client.address == *address) {
            let image_id = pool.image_id(image)?.unwrap_or_default();
            entry.clients.push(Client { address: address.clone(), boot: boot_id(), image_id });
        }
    }
    Ok(())
}

/// What tells this run of the kernel from any other. It is for people; "" where the kernel does not
/// say.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The addresses of the watchers that librbd in one of these processes registered. The cookie of a
/// watch is the address of an object in the memory of the process.
pub(super) fn clients_of(
    processes: impl IntoIterator<Item = i32>,
    watchers: &[Watcher],
) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for id in processes {
        let maps = Process::new(id).and_then(|process| process.maps()).map_err(|error| {
            Error::Internal(format!("cannot read the memory map of process {id}: {error}"))
        })?;
        let writable = |cookie: u64| {
            maps.iter().any(|map| {
                map.perms.contains(MMPermissions::WRITE)
                    && (map.address.0..map.address.1).contains(&cookie)
            })
        };
        let own = watchers.iter().filter(|watcher| writable(watcher.cookie));
        found.extend(own.map(|watcher| watcher.address.clone()));
    }
    Ok(found)
}

/// A removal that is owed.
#[derive(Debug, Serialize, Deserialize)]
struct Owed {
    image: Image,
    noted: Noted,
}

/// The notes of the volumes that are staged, and the removals that are owed.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Of which volumes the notes can be removed, by volume id.
    staged: Mutex<BTreeMap<String, Arc<Notes>>>,
    /// The folder of what is owed.
    folder: PathBuf,
}

impl std::fmt::Debug for Notes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notes").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Ledger {
    pub(super) fn new(state_directory: &Path) -> Self {
        Self { staged: Mutex::default(), folder: state_directory.join("owed") }
    }

    /// Keeps the notes of a volume that is staged, or about to be.
    pub(super) fn keep(&self, volume_id: &str, notes: Notes) {
        self.lock().insert(volume_id.to_owned(), Arc::new(notes));
    }

    /// The notes of a volume, if a request has brought its key.
    pub(super) fn notes(&self, volume_id: &str) -> Option<Arc<Notes>> {
        self.lock().get(volume_id).cloned()
    }

    /// Forgets the notes of a volume that is not staged any more, and leaves them in place.
    pub(super) fn forget_key(&self, volume_id: &str) {
        self.lock().remove(volume_id);
    }

    /// Removes the notes of a volume that was detached, or writes down that it is owed. `name` is
    /// that of the volume's directory.
    pub(super) fn release(&self, volume_id: &str, name: &str, image: &Image, noted: &Noted) {
        let kept = self.lock().remove(volume_id).filter(|notes| notes.place == noted.place);
        if noted.addresses.is_empty() {
            return;
        }
        match kept.map(|notes| notes.remove(&noted.addresses)) {
            Some(Ok(())) => return self.forget(name),
            Some(Err(error)) => tracing::warn!(volume_id, %error, "a note is not removed yet"),
            None => {
                tracing::info!(
                    volume_id,
                    "a note is removed later: this driver was restarted and has no key"
                );
            }
        }
        let owed = Owed { image: image.clone(), noted: noted.clone() };
        let draft = self.folder.join(format!("{name}.new"));
        let written = serde_json::to_vec(&owed).map_err(std::io::Error::from).and_then(|text| {
            fs::create_dir_all(&self.folder)?;
            fs::write(&draft, text)?;
            fs::rename(&draft, self.file(name))
        });
        if let Err(error) = written {
            // The controller fences a client that is gone.
            tracing::warn!(volume_id, %error, "a note stays: that its removal is owed cannot be written");
        }
    }

    /// Forgets what is owed for a volume.
    fn forget(&self, name: &str) {
        let path = self.file(name);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "what was owed cannot be removed");
        }
    }

    /// Removes the notes that are owed in the cluster of `image`, as its user; `marks` are those of
    /// an image. What fails stays owed, and what comes after a cluster that does not answer.
    pub(super) fn settle(&self, image: &Image, marks: impl Fn(&Image) -> Marks) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read = fs::read(&path).map_err(|error| error.to_string());
            let owed = read
                .and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
            let Owed { image: other, noted } = match owed {
                Ok(owed) => owed,
                Err(error) => {
                    tracing::warn!(path = %path.display(), error, "the removal of a note cannot be read");
                    continue;
                }
            };
            if other.monitors != image.monitors || other.user != image.user {
                continue;
            }
            let removed = Notes::new(marks(&other), noted.place).remove(&noted.addresses);
            match removed
                .and_then(|()| fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e)))
            {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(image = %other, %error, "a note is still not removed");
                    if matches!(error, Error::Unavailable(_)) {
                        return;
                    }
                }
            }
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Notes>>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbd::model::{Fault, Model, Session};
    use crate::rbd::{ImageKey, ImageOptions, OpenMode};

    struct Lab {
        model: Model,
        image: Image,
    }

    impl Lab {
        fn new() -> Lab {
            let model = Model::new();
            model.create_pool("rbd");
            let image = Image {
                pool: "rbd".into(),
                namespace: String::new(),
                name: "i".into(),
                monitors: "m".into(),
                user: None,
            };
            let lab = Lab { model, image };
            lab.pool().create_image("i", 1 << 20, &ImageOptions::default()).unwrap();
            lab
        }

        fn pool(&self) -> Arc<dyn Pool> {
            self.model.connect().cluster().pool("rbd", "").unwrap()
        }

        fn marks(&self, session: &Session) -> Marks {
            let cluster = session.cluster();
            Marks::new(self.image.clone(), None, Arc::new(move || Ok(cluster.clone())))
        }

        fn notes(&self, token: &str) -> Notes {
            Notes::new(self.marks(&self.model.connect()), place(token))
        }

        /// What the controller does.
        fn publish(&self, token: &str) {
            let set = vec![(place(token).key, Entry::new("n", token).bytes())];
            self.pool().omap_update("o", &OmapUpdate { set, ..OmapUpdate::default() }).unwrap();
        }

        fn unpublish(&self) {
            let remove = vec![place("").key];
            self.pool().omap_update("o", &OmapUpdate { remove, ..OmapUpdate::default() }).unwrap();
        }

        fn noted(&self) -> BTreeSet<String> {
            let key = place("").key;
            let bytes = self.pool().omap_get("o", &[&key]).unwrap().remove(&key);
            let entry = bytes.map(|bytes| Entry::parse(&bytes).unwrap());
            entry.into_iter().flat_map(|entry| entry.clients).map(|client| client.address).collect()
        }

        /// A client that has the image open, and whether it may still write.
        fn client(&self) -> (String, impl Fn() -> bool + use<>) {
            let cluster = self.model.connect().cluster();
            let image = cluster
                .pool("rbd", "")
                .unwrap()
                .open_image(ImageKey::Name("i"), OpenMode::ReadWrite);
            let image = image.unwrap();
            (cluster.address().unwrap(), move || image.write_at(0, b"x").is_ok())
        }
    }

    fn place(token: &str) -> Place {
        Place { object: "o".into(), key: "notes/i/n".into(), token: token.into() }
    }

    fn set(addresses: &[&String]) -> BTreeSet<String> {
        addresses.iter().map(|address| (*address).clone()).collect()
    }

    #[test]
    fn clients_are_noted_and_earlier_ones_fenced() {
        let lab = Lab::new();
        lab.publish("t");
        let notes = lab.notes("t");
        let (first, first_writes) = lab.client();
        notes.replace(&set(&[&first])).unwrap();
        notes.replace(&set(&[&first])).unwrap();
        assert!(first_writes());
        let (second, second_writes) = lab.client();
        notes.add(&second).unwrap();
        assert_eq!(lab.noted(), set(&[&first, &second]));
        notes.remove(&set(&[&second])).unwrap();
        assert!(second_writes(), "removing a note fences nobody");
        // As after a reboot.
        notes.fence_earlier().unwrap();
        assert!(!first_writes() && lab.noted().is_empty());
        notes.replace(&set(&[&second])).unwrap();
        assert!(second_writes());
        assert_eq!(lab.noted(), set(&[&second]));
    }

    #[test]
    fn a_node_that_was_unpublished_notes_nothing() {
        let lab = Lab::new();
        let (client, writes) = lab.client();
        for token in ["t", "other"] {
            for outcome in [
                lab.notes("t").replace(&set(&[&client])),
                lab.notes("t").add(&client),
                lab.notes("t").fence_earlier(),
            ] {
                let text = outcome.unwrap_err().to_string();
                assert!(text.contains("unpublished from this node"), "{text}");
            }
            lab.notes("t").remove(&set(&[&client])).unwrap();
            assert!(lab.noted().is_empty() && writes());
            // Published again meanwhile, with another token.
            lab.publish(if token == "t" { "other" } else { token });
        }
        lab.unpublish();
        assert!(lab.notes("other").add(&client).is_err());
    }

    #[test]
    fn killed_anywhere_a_node_never_forgets_a_client_that_writes() {
        for call in 1.. {
            let lab = Lab::new();
            lab.publish("t");
            let (first, first_writes) = lab.client();
            lab.notes("t").replace(&set(&[&first])).unwrap();
            let (second, _) = lab.client();
            let session = lab.model.connect();
            session.inject(call, Fault::CrashBefore);
            let outcome = Notes::new(lab.marks(&session), place("t")).replace(&set(&[&second]));
            assert!(lab.noted().contains(&first) || !first_writes(), "killed before call {call}");
            if outcome.is_ok() {
                assert_eq!(lab.noted(), set(&[&second]));
                assert!(call > 3, "{call}");
                return;
            }
        }
    }

    #[test]
    fn what_is_owed_is_settled_by_who_brings_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let lab = Lab::new();
        lab.publish("t");
        let (client, _) = lab.client();
        let noted = Noted { place: place("t"), addresses: set(&[&client]) };
        let marks = |_: &Image| lab.marks(&lab.model.connect());
        lab.notes("t").replace(&noted.addresses).unwrap();

        // The driver was restarted.
        let ledger = Ledger::new(folder.path());
        ledger.release("v", "d", &lab.image, &noted);
        assert_eq!(lab.noted(), noted.addresses);
        ledger.settle(&Image { user: Some("else".into()), ..lab.image.clone() }, marks);
        assert_eq!(lab.noted(), noted.addresses);
        ledger.settle(&lab.image, marks);
        assert!(lab.noted().is_empty());

        // It was not.
        lab.notes("t").replace(&noted.addresses).unwrap();
        ledger.keep("v", lab.notes("t"));
        ledger.release("v", "d", &lab.image, &noted);
        assert!(lab.noted().is_empty() && ledger.notes("v").is_none());
        assert_eq!(fs::read_dir(folder.path().join("owed")).unwrap().count(), 0);
    }

    #[test]
    fn a_client_is_known_by_the_cookie_in_its_memory() {
        let own = Box::new(7_u64);
        let at = |address: &str, cookie| Watcher { address: address.into(), client: 1, cookie };
        let watchers = [at("own", (&raw const *own) as u64), at("krbd", 1), at("foreign", 0x10)];
        let id = i32::try_from(std::process::id()).unwrap();
        assert_eq!(clients_of([id], &watchers).unwrap(), set(&[&"own".to_owned()]));
        assert!(clients_of([id], &watchers[1..]).unwrap().is_empty());
        assert!(clients_of([i32::MAX], &watchers).is_err());
    }
}
