//! Reading a snapshot, into a file, a stream or an object.
//!
//! Crash points: see `hold` for the snapshot, `file` and `object` for the target.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::blocks::{self, Input, Nowhere, Source, Target};
use super::checksum::{Checksum, Wanted};
use super::error::failed;
use super::file::{FileSource, FileTarget, Partial};
use super::format::Format;
use super::hold::Hold;
use super::image::ImageSource;
use super::object::{Object, ObjectTarget};
use super::qemu::{self, Tools};
use super::stream::{Stream, StreamTarget};
use super::{Error, Job, Place, Result};
use crate::rbd::{Errno, Image, ImageKey, OpenMode, Pool, Snapshot, SnapshotKind};
use crate::volume::image_spec;

/// An image, by what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// Its name.
    Name(String),
    /// Its id.
    Id(String),
}

impl Which {
    fn key(&self) -> ImageKey<'_> {
        match self {
            Which::Name(name) => ImageKey::Name(name),
            Which::Id(id) => ImageKey::Id(id),
        }
    }
}

/// What to export, and where to.
#[derive(Debug, Clone)]
pub struct Export {
    /// The image.
    pub image: Which,
    /// The name of its snapshot to read. Without one, one is cut for this and removed afterwards.
    pub snapshot: Option<String>,
    /// Where the disk goes.
    pub target: Place,
    /// The format it gets.
    pub format: Format,
    /// The checksum of what is written there.
    pub checksum: Wanted,
    /// What formats other than raw need.
    pub tools: Tools,
}

/// What was exported.
#[derive(Debug, Clone, Serialize)]
pub struct Exported {
    /// The image's spec, with the snapshot if one was named.
    pub image: String,
    /// Where the disk is now.
    pub target: String,
    /// The disk's size in bytes.
    pub size: u64,
    /// Its format.
    pub format: String,
    /// The checksum of what was written, if one was made.
    pub checksum: Option<String>,
}

/// Exports an image or a snapshot of `pool`. [`Error::Refused`] when there is none, or when the
/// target is taken.
pub fn export(pool: &Arc<dyn Pool>, request: &Export, job: &Job) -> Result<Exported> {
    let began = Instant::now();
    job.begin("looking at the image", 0);
    let image = open(&**pool, request)?;
    let spec = image_spec(pool.name(), pool.namespace(), &image.name()?);
    // Before anything is cut that would be of no use.
    let output = Output::open(&request.target, job)?;
    if let Some(name) = &request.snapshot {
        let spec = format!("{spec}@{name}");
        let snapshot = find(&*image, name)?.ok_or_else(|| {
            Error::Refused(format!(
                "there is no snapshot {spec}: rbd snap ls lists those there are"
            ))
        })?;
        return write(&*image, &snapshot, spec, output, request, job);
    }
    let id = image.id()?;
    drop(image);
    let others = Hold::clear_earlier(&**pool, &id)?;
    job.begin(format!("cutting a snapshot of {spec}"), 0);
    let hold = Hold::cut(pool, ImageKey::Id(&id))?;
    let exported = read_held(&**pool, &hold, spec.clone(), output, request, job);
    job.begin("removing the snapshot", 0);
    let released = hold.release();
    let exported = exported?;
    released.map_err(|error| {
        Error::Failed(format!(
            "{} is whole, but the snapshot that it was read from stays, until cinderblock gc --apply \
             or the next export of {spec}: {error}",
            request.target
        ))
    })?;
    if others {
        Hold::clear_lingering(&**pool, &id, began, job)?;
    }
    Ok(exported)
}

fn open(pool: &dyn Pool, request: &Export) -> Result<Box<dyn Image>> {
    pool.open_image(request.image.key(), OpenMode::ReadOnly).map_err(|error| match error.errno {
        Errno::ENOENT => {
            let (kind, name) = match &request.image {
                Which::Name(name) => ("", name),
                Which::Id(id) => (" of id", id),
            };
            let spec = image_spec(pool.name(), pool.namespace(), name);
            Error::Refused(format!("there is no image{kind} {spec}"))
        }
        _ => error.into(),
    })
}

fn find(image: &dyn Image, name: &str) -> Result<Option<Snapshot>> {
    let wanted = |snapshot: &Snapshot| snapshot.kind == SnapshotKind::User && snapshot.name == name;
    Ok(image.snapshots()?.into_iter().find(wanted))
}

fn read_held(
    pool: &dyn Pool,
    hold: &Hold,
    spec: String,
    output: Output<'_>,
    request: &Export,
    job: &Job,
) -> Result<Exported> {
    let image = pool.open_image(ImageKey::Id(hold.image_id()), OpenMode::ReadOnly)?;
    let snapshot = find(&*image, hold.snapshot())?.ok_or_else(|| {
        Error::Failed(format!("the snapshot {spec}@{} has been removed", hold.snapshot()))
    })?;
    write(&*image, &snapshot, spec, output, request, job)
}

/// Where the bytes go.
enum Output<'a> {
    Stream(StreamTarget<'a>),
    File(Partial),
    Object(Object),
}

impl<'a> Output<'a> {
    fn open(target: &Place, job: &'a Job) -> Result<Output<'a>> {
        Ok(match target {
            Place::Stream => Output::Stream(StreamTarget::new(Stream::output(job)?)),
            Place::File(path) => Output::File(Partial::create(path)?),
            Place::Url(url) => Output::Object(Object::open(url)?),
            Place::Store(_, open) => Output::Object(open()?),
        })
    }
}

/// Reads the snapshot and writes the disk in its format.
fn write(
    image: &dyn Image,
    snapshot: &Snapshot,
    spec: String,
    output: Output<'_>,
    request: &Export,
    job: &Job,
) -> Result<Exported> {
    let source = ImageSource::new(image, snapshot.id, snapshot.size)?;
    if snapshot.size == 0 {
        return Err(Error::Refused(format!("{spec} is empty")));
    }
    let name = request.target.to_string();
    let reading = format!("exporting {spec}");
    let checksum = if request.format == Format::Raw {
        deliver(&source, output, request, &reading, job)?
    } else {
        let raw = request.tools.temporary()?;
        let target = FileTarget::new(&raw, "the disk to convert");
        job.begin(&reading, source.size());
        let (size, _) = blocks::run(Input::Extents(&source), &target, Wanted::Nothing, job)?;
        target.end(size)?;
        let convert =
            |to: &File| qemu::from_raw(&request.tools, &raw, request.format, to, &name, job);
        if let Output::File(partial) = output {
            convert(partial.file())?;
            // Another handle of the file, since reading moves a position.
            let file =
                partial.file().try_clone().map_err(failed(format_args!("cannot read {name}")))?;
            let written = FileSource::new(file, &name)?;
            job.begin(format!("reading {name}"), written.size());
            let wanted = request.checksum;
            let (_, checksum) = blocks::run(Input::Extents(&written), &Nowhere, wanted, job)?;
            wanted.compare(checksum, &name)?;
            partial.finish()?;
            checksum
        } else {
            let converted = request.tools.temporary()?;
            convert(&converted)?;
            drop(raw);
            let converted = FileSource::new(converted, "the converted disk")?;
            deliver(&converted, output, request, &format!("writing {name}"), job)?
        }
    };
    let checksum = checksum.as_ref().map(Checksum::to_string);
    let format = request.format.to_string();
    Ok(Exported { image: spec, target: name, size: snapshot.size, format, checksum })
}

/// Writes all of `source`. What was written under the target's name is whole, or nothing is there.
fn deliver(
    source: &dyn Source,
    output: Output<'_>,
    request: &Export,
    step: &str,
    job: &Job,
) -> Result<Option<Checksum>> {
    let (name, wanted) = (request.target.to_string(), request.checksum);
    job.begin(step, source.size());
    let input = Input::Extents(source);
    let to = |target: &dyn Target| {
        let (size, checksum) = blocks::run(input, target, wanted, job)?;
        wanted.compare(checksum, &name)?;
        job.check()?;
        Ok((size, checksum))
    };
    match output {
        Output::Stream(stream) => to(&stream).map(|(_, checksum)| checksum),
        Output::File(partial) => {
            let target = FileTarget::new(partial.file(), &name);
            let (size, checksum) = to(&target)?;
            target.end(size)?;
            partial.finish()?;
            Ok(checksum)
        }
        Output::Object(object) => {
            let target = ObjectTarget::create(object, source.size())?;
            let written = to(&target).and_then(|(_, checksum)| target.finish().map(|()| checksum));
            if written.is_err() {
                target.abandon();
            }
            written
        }
    }
}
