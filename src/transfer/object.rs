//! Objects of an object store, as a source and as a target. The one place here that is async.
//!
//! An object that is read is one version of it: when it changes meanwhile, that is an error. One
//! that is written is there when its last part is. Until then an object `NAME.partial` says which
//! upload it is, so that the next run to the same name can end one that was killed.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::http::HttpBuilder;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
};
use prost::bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use url::Url;

use super::blocks::{Content, Source, Target, ZEROS};
use super::error::failed;
use super::{Error, Result};

/// How long a request may take that moves a block or a part.
const REQUEST: Duration = Duration::from_mins(2);
/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(10);
/// How long nothing may come on a connection.
const SILENCE: Duration = Duration::from_secs(30);
/// How long, and how often, a request that failed is made again.
const RETRIES: (Duration, usize) = (Duration::from_secs(90), 8);

/// Bytes of a part, unless there would be too many.
const PART: u64 = 8 << 20;
/// The most parts that S3 takes.
const MOST_PARTS: u64 = 10_000;
/// Parts on their way, while another one is filled.
const UPLOADS: usize = 2;

/// An object, and the way to it.
pub struct Object {
    runtime: Runtime,
    store: Arc<dyn ObjectStore>,
    /// `None` for stores that only give.
    uploads: Option<Arc<dyn MultipartStore>>,
    path: Path,
    name: String,
}

impl Object {
    /// The object of that URL: `s3://BUCKET/KEY`, with what else is needed in the environment
    /// (`AWS_…`), or `http://` and `https://` to read one.
    pub(super) fn open(url: &Url) -> Result<Object> {
        let unusable = format!("cannot use {url}");
        let path = Path::from_url_path(url.path()).map_err(failed(&unusable))?;
        if path.as_ref().is_empty() {
            return Err(Error::Refused(format!("{url} names no object")));
        }
        if url.scheme() == "s3" {
            let store = s3(url)?;
            return Object::new(store.clone(), Some(store), path, url.to_string());
        }
        let base = Url::parse(&url[..url::Position::BeforePath]).map_err(failed(&unusable))?;
        let (options, retry) = client();
        let store = HttpBuilder::new()
            .with_url(base)
            .with_client_options(options.with_allow_http(true))
            .with_retry(retry)
            .build()
            .map_err(failed(&unusable))?;
        Object::new(Arc::new(store), None, path, url.to_string())
    }

    /// The object at `path` of a store.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        uploads: Option<Arc<dyn MultipartStore>>,
        path: Path,
        name: String,
    ) -> Result<Object> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(failed("no runtime for the object store"))?;
        Ok(Object { runtime, store, uploads, path, name })
    }

    fn wait<T>(
        &self,
        what: &str,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T> {
        self.runtime.block_on(work).map_err(|error| self.error(what, &error))
    }

    fn error(&self, what: &str, error: &object_store::Error) -> Error {
        match error {
            object_store::Error::NotFound { .. } => Error::Refused(format!(
                "cannot {what} {}: it, or its bucket, is not there",
                self.name
            )),
            object_store::Error::Precondition { .. } => {
                Error::Failed(format!("{} was replaced while it was read", self.name))
            }
            other => Error::Failed(format!("cannot {what} {}: {}", self.name, chain(other))),
        }
    }
}

/// How requests are made.
fn client() -> (ClientOptions, RetryConfig) {
    // Which provider TLS uses is one decision of a process. It may have been made.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = ClientOptions::new()
        .with_timeout(REQUEST)
        .with_connect_timeout(CONNECT)
        .with_read_timeout(SILENCE);
    let retry =
        RetryConfig { retry_timeout: RETRIES.0, max_retries: RETRIES.1, ..RetryConfig::default() };
    (options, retry)
}

/// The bucket of an `s3://` URL, with what else is needed in the environment (`AWS_…`).
pub(crate) fn s3(url: &Url) -> Result<Arc<AmazonS3>> {
    let (options, retry) = client();
    let store = AmazonS3Builder::from_env()
        .with_url(format!("s3://{}", url.host_str().unwrap_or_default()))
        .with_client_options(options.with_allow_http(std::env::var_os("AWS_ALLOW_HTTP").is_some()))
        .with_retry(retry)
        .build()
        .map_err(failed(format!("cannot use {url}")))?;
    Ok(Arc::new(store))
}

/// An error with what caused it: the client's own messages leave that out.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// An object that is read.
pub(super) struct ObjectSource {
    object: Object,
    size: u64,
    tag: Option<String>,
}

impl ObjectSource {
    pub(super) fn new(object: Object) -> Result<ObjectSource> {
        let found = object.wait("read", object.store.head(&object.path))?;
        Ok(ObjectSource { object, size: found.size, tag: found.e_tag })
    }

    /// What it is called.
    pub(super) fn name(&self) -> &str {
        &self.object.name
    }
}

impl Source for ObjectSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn window(&self) -> u64 {
        u64::MAX / 4
    }

    fn extents(&self, window: Range<u64>) -> Result<Vec<Range<u64>>> {
        Ok(vec![window])
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(offset..offset + buffer.len() as u64)),
            if_match: self.tag.clone(),
            ..GetOptions::default()
        };
        let Object { store, path, .. } = &self.object;
        let filled = self.object.wait("read", async {
            let mut stream = store.get_opts(path, options).await?.into_stream();
            let mut filled = 0;
            while let Some(bytes) = stream.next().await.transpose()? {
                let room = bytes.len().min(buffer.len() - filled);
                buffer[filled..filled + room].copy_from_slice(&bytes[..room]);
                filled += bytes.len();
            }
            Ok(filled)
        })?;
        if filled == buffer.len() {
            return Ok(());
        }
        let (wanted, name) = (buffer.len(), &self.object.name);
        Err(Error::Failed(format!(
            "{name} gave {filled} bytes at byte {offset} instead of {wanted}"
        )))
    }
}

/// An object in the making.
pub(super) struct ObjectTarget {
    object: Object,
    uploads: Arc<dyn MultipartStore>,
    upload: String,
    note: Path,
    part_size: u64,
    state: Mutex<Parts>,
}

/// The parts of an upload.
#[derive(Default)]
struct Parts {
    filling: Vec<Bytes>,
    filled: u64,
    begun: usize,
    under_way: VecDeque<JoinHandle<object_store::Result<PartId>>>,
    done: Vec<PartId>,
}

impl ObjectTarget {
    /// Begins an object of about `size` bytes. [`Error::Refused`] when it is there already.
    pub(super) fn create(object: Object, size: u64) -> Result<ObjectTarget> {
        let name = &object.name;
        let Some(uploads) = object.uploads.clone() else {
            return Err(Error::Refused(format!(
                "{name} can only be read: an s3:// URL can be written"
            )));
        };
        let path = &object.path;
        match object.runtime.block_on(object.store.head(path)) {
            Ok(_) => {
                return Err(Error::Refused(format!(
                    "{name} exists, and is not replaced: remove it, or choose another name"
                )));
            }
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(object.error("look at", &error)),
        }
        let note = Path::from(format!("{path}.partial"));
        object.wait(
            "end an earlier upload of",
            end_earlier(&*object.store, &*uploads, path, &note),
        )?;
        let upload = object.wait("write", uploads.create_multipart(path))?;
        let text = PutPayload::from(upload.clone().into_bytes());
        let part_size = PART.max(size.div_ceil(MOST_PARTS - 1));
        let target =
            ObjectTarget { uploads, upload, note, part_size, state: Mutex::default(), object };
        let noted = target.object.wait("write", target.object.store.put(&target.note, text));
        match noted {
            Ok(_) => Ok(target),
            Err(error) => {
                target.abandon();
                Err(error)
            }
        }
    }

    /// Uploads what is left, and makes the object.
    pub(super) fn finish(&self) -> Result<()> {
        let mut parts = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.send(&mut parts);
        while !parts.under_way.is_empty() {
            self.collect(&mut parts)?;
        }
        let done = std::mem::take(&mut parts.done);
        let path = &self.object.path;
        self.object.wait("write", self.uploads.complete_multipart(path, &self.upload, done))?;
        self.object.wait("remove the note of", self.object.store.delete(&self.note))
    }

    /// Ends the upload without an object.
    pub(super) fn abandon(&self) {
        let mut parts = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for upload in parts.under_way.drain(..) {
            upload.abort();
        }
        // What stays is ended by the next run.
        let Object { path, store, .. } = &self.object;
        if self.object.wait("end", self.uploads.abort_multipart(path, &self.upload)).is_ok() {
            let _ = self.object.wait("end", store.delete(&self.note));
        }
    }

    /// Sends the part that was filled.
    fn send(&self, parts: &mut Parts) {
        if parts.filled == 0 {
            return;
        }
        let payload = parts.filling.drain(..).collect::<PutPayload>();
        parts.filled = 0;
        let (uploads, path, upload) =
            (Arc::clone(&self.uploads), self.object.path.clone(), self.upload.clone());
        let number = parts.begun;
        parts.begun += 1;
        parts.under_way.push_back(
            self.object
                .runtime
                .spawn(async move { uploads.put_part(&path, &upload, number, payload).await }),
        );
    }

    /// Waits for the oldest part.
    fn collect(&self, parts: &mut Parts) -> Result<()> {
        let Some(oldest) = parts.under_way.pop_front() else { return Ok(()) };
        let part = self.object.runtime.block_on(oldest).map_err(failed("an upload was lost"))?;
        parts.done.push(part.map_err(|error| self.object.error("write", &error))?);
        Ok(())
    }
}

impl Target for ObjectTarget {
    fn is_ordered(&self) -> bool {
        true
    }

    fn pass(&self, content: Content<'_>) -> Result<()> {
        let mut parts = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut add = |bytes: Bytes| {
            parts.filled += bytes.len() as u64;
            parts.filling.push(bytes);
            if parts.filled >= self.part_size {
                self.send(&mut parts);
                while parts.under_way.len() >= UPLOADS {
                    self.collect(&mut parts)?;
                }
            }
            Ok(())
        };
        match content {
            Content::Data(data) => add(Bytes::copy_from_slice(data)),
            // All zeros are the same memory.
            Content::Zeros(length) => Content::Zeros(length)
                .slices()
                .try_for_each(|slice| add(Bytes::from_static(&ZEROS).slice(..slice.len()))),
        }
    }
}

/// Ends the upload that a run which was killed has noted.
async fn end_earlier(
    store: &dyn ObjectStore,
    uploads: &dyn MultipartStore,
    path: &Path,
    note: &Path,
) -> object_store::Result<()> {
    let absent =
        |error: &object_store::Error| matches!(error, object_store::Error::NotFound { .. });
    let upload = match store.get(note).await {
        Ok(found) => found.bytes().await?,
        Err(error) if absent(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let upload = String::from_utf8_lossy(&upload).into_owned();
    match uploads.abort_multipart(path, &upload).await {
        Err(error) if !absent(&error) => return Err(error),
        _ => {}
    }
    store.delete(note).await
}
