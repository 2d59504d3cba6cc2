//! The objects of a backup target: a folder, or a prefix of a bucket.
//!
//! An object is there whole or not at all: a folder's is renamed to its place after its bytes are
//! on the disk, and a bucket's is there when its upload has ended.

use std::future::Future;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use futures_util::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::runtime::Runtime;

use crate::transfer::{Error, Place, Result, failed, s3};

/// A backup target.
pub struct Store {
    runtime: Runtime,
    inner: Arc<dyn ObjectStore>,
    root: Path,
    name: String,
    /// Where a folder's files are. An object in the making has a `#` in its file's name.
    folder: Option<PathBuf>,
}

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// Its key, from the target on.
    pub(super) key: String,
    /// Its bytes.
    pub(super) size: u64,
    /// Seconds since 1970 when it was written, by the store's clock.
    pub(super) written: i64,
}

impl Store {
    /// The target at `place`: a folder, or `s3://BUCKET[/PREFIX]`. A folder that is missing is made
    /// if `make`, and else [`Error::Refused`].
    pub fn open(place: &Place, make: bool) -> Result<Store> {
        let name = place.to_string();
        match place {
            Place::File(path) => {
                if make {
                    std::fs::create_dir_all(path)
                        .map_err(failed(format_args!("cannot make the folder {name}")))?;
                } else if !path.is_dir() {
                    return Err(Error::Refused(format!("there is no folder {name}")));
                }
                let inner = LocalFileSystem::new_with_prefix(path)
                    .map_err(failed(format_args!("cannot use the folder {name}")))?
                    .with_automatic_cleanup(true)
                    .with_fsync(true);
                let mut store = Store::new(Arc::new(inner), Path::default(), name)?;
                store.folder = Some(path.clone());
                Ok(store)
            }
            Place::Url(url) if url.scheme() == "s3" => {
                let root = Path::from_url_path(url.path())
                    .map_err(failed(format_args!("cannot use {url}")))?;
                Store::new(s3(url)?, root, name)
            }
            _ => Err(Error::Refused(format!(
                "{name} cannot hold backups: give a folder or s3://BUCKET/PREFIX"
            ))),
        }
    }

    /// What is below `root` in a store that the caller has; `name` is for messages.
    pub fn new(inner: Arc<dyn ObjectStore>, root: Path, name: String) -> Result<Store> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(failed("no runtime for the object store"))?;
        Ok(Store { runtime, inner, root, name, folder: None })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The object `key`, for messages.
    pub(super) fn shown(&self, key: &str) -> String {
        format!("{}/{key}", self.name.trim_end_matches('/'))
    }

    /// The bytes of an object; `None` when it is not there.
    pub(super) fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let read = self.wait(async {
            let found = self.inner.get(&self.path(key)).await?;
            found.bytes().await
        });
        match read {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error("read", key, &error)),
        }
    }

    /// Writes an object, over another one if there is one.
    pub(super) fn put(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        let payload = PutPayload::from(bytes);
        self.wait(self.inner.put(&self.path(key), payload))
            .map(drop)
            .map_err(|error| self.error("write", key, &error))
    }

    /// Writes an object unless there is one. Whether it did.
    pub(super) fn put_new(&self, key: &str, bytes: Vec<u8>) -> Result<bool> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload = PutPayload::from(bytes);
        match self.wait(self.inner.put_opts(&self.path(key), payload, options)) {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(self.error("write", key, &error)),
        }
    }

    /// Removes an object; fine when it is not there.
    pub(super) fn remove(&self, key: &str) -> Result<()> {
        match self.wait(self.inner.delete(&self.path(key))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error("remove", key, &error)),
        }
    }

    /// All objects below `folder`, in the order of their keys.
    pub(super) fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        let found: Vec<_> = self
            .wait(self.inner.list(Some(&self.path(folder))).try_collect())
            .map_err(|error| self.error("list", folder, &error))?;
        let mut listed = Vec::new();
        for object in found {
            let object: object_store::ObjectMeta = object;
            let Some(parts) = object.location.prefix_match(&self.root) else { continue };
            let key = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
            let written = object.last_modified.timestamp();
            listed.push(Listed { key, size: object.size, written });
        }
        listed.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(listed)
    }

    /// The names of the folders in the target.
    pub(super) fn folders(&self) -> Result<Vec<String>> {
        let found = self
            .wait(self.inner.list_with_delimiter(Some(&self.root)))
            .map_err(|error| self.error("list", "", &error))?;
        let mut names: Vec<_> = found
            .common_prefixes
            .iter()
            .filter_map(|prefix| prefix.filename().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Removes what killed writers have left in a folder that no writer uses now.
    pub(super) fn tidy(&self, folder: &str) {
        let Some(root) = &self.folder else { return };
        let place = root.join(folder);
        for file in std::fs::read_dir(&place).into_iter().flatten().flatten() {
            if file.file_name().to_string_lossy().contains('#') {
                // The next run tries again.
                let _ = std::fs::remove_file(file.path());
            }
        }
        remove_empty(&place, root);
    }

    fn path(&self, key: &str) -> Path {
        self.root.parts().chain(Path::from(key).parts()).collect()
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    fn error(&self, what: &str, key: &str, error: &object_store::Error) -> Error {
        Error::Failed(format!(
            "cannot {what} {}: {}",
            self.shown(key),
            crate::transfer::chain(error)
        ))
    }
}

/// Removes an empty folder and those above it, up to the target's own.
fn remove_empty(place: &FilePath, root: &FilePath) {
    let mut place = place;
    while place != root && place.starts_with(root) && std::fs::remove_dir(place).is_ok() {
        let Some(parent) = place.parent() else { return };
        place = parent;
    }
}
