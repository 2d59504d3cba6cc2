//! Filling a new image.
//!
//! Crash points: the image is `<name>.importing`, open for writing, until it is whole; then it is
//! renamed, while it is open. A kill before the rename leaves an image that the next run removes; a
//! kill inside the rename leaves a whole one, whose rename the next run finishes.

use std::fs::File;
use std::io::{Cursor, Read};
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::blocks::{self, Input, Nowhere, Source};
use super::checksum::{Checksum, Wanted};
use super::error::failed;
use super::file::{FileSource, FileTarget};
use super::format::{Format, TELLING};
use super::golden::Origin;
use super::hold::{LINGERING, LOOK};
use super::image::ImageTarget;
use super::object::{Object, ObjectSource};
use super::qemu::{self, Tools};
use super::stream::Stream;
use super::{Error, Job, Place, Result};
use crate::rbd::{Errno, Features, ImageKey, ImageOptions, OpenMode, Pool};
use crate::volume::temporary::{self, Found};
use crate::volume::{image_spec, names};

/// Bytes that an image has at first when it is filled from a stream. It doubles as needed.
const FIRST_SIZE: u64 = 1 << 30;

/// What to import, and where to.
#[derive(Debug, Clone)]
pub struct Import {
    /// Where the disk is.
    pub source: Place,
    /// Its format; told by how it begins when there is none.
    pub format: Option<Format>,
    /// The image's name.
    pub name: String,
    /// The checksum of the source, as it is there.
    pub checksum: Wanted,
    /// What formats other than raw need.
    pub tools: Tools,
}

/// What was imported.
#[derive(Debug, Clone, Serialize)]
pub struct Imported {
    /// The image's spec.
    pub image: String,
    /// Its size in bytes.
    pub size: u64,
    /// The format of the source.
    pub format: String,
    /// The checksum of the source, if one was made.
    pub checksum: Option<String>,
}

/// Imports a disk into `pool`. [`Error::Refused`] when the name cannot be had or the disk is not
/// taken, and nothing was changed.
pub fn import(pool: &Arc<dyn Pool>, request: &Import, job: &Job) -> Result<Imported> {
    let Import { source, name, .. } = request;
    check_name(name)?;
    let spec = image_spec(pool.name(), pool.namespace(), name);
    job.begin(format!("looking at {source}"), 0);
    let temporary = temporary::importing(name);
    clear_earlier(&**pool, &spec, &temporary, job)?;
    if pool.image_id(name)?.is_some() {
        return Err(Error::Refused(format!(
            "the image {spec} exists, and is not replaced: remove it, or choose another name"
        )));
    }
    let (format, mut opened) = Opened::open(source, job)?.format(request.format)?;
    if format == Format::Raw {
        let disk = Disk { input: opened.input(), format, checksum: request.checksum, known: None };
        return fill(pool, request, &spec, disk, job);
    }
    let (raw, known) = convert(opened, request, format, job)?;
    let raw = FileSource::new(raw, &format!("{source}, converted"))?;
    let disk = Disk { input: Input::Extents(&raw), format, checksum: Wanted::Nothing, known };
    fill(pool, request, &spec, disk, job)
}

/// A source as it was opened.
enum Opened<'a> {
    File(FileSource),
    Object(ObjectSource),
    Stream(Box<dyn Read + Send + 'a>, String),
}

impl<'a> Opened<'a> {
    fn open(source: &Place, job: &'a Job) -> Result<Opened<'a>> {
        let name = source.to_string();
        match source {
            Place::Stream => {
                let (stream, name) = (Stream::input(job)?, "standard input");
                if stream.regular().map_err(failed("cannot read standard input"))? {
                    return FileSource::new(stream.into_file(), name).map(Opened::File);
                }
                Ok(Opened::Stream(Box::new(stream), name.to_owned()))
            }
            Place::File(path) => {
                let file = File::open(path).map_err(failed(format_args!("cannot open {name}")))?;
                let kind = file.metadata().map_err(failed(format_args!("cannot read {name}")))?;
                let kind = kind.file_type();
                if kind.is_dir() {
                    return Err(Error::Refused(format!("{name} is a directory")));
                }
                if kind.is_file() || kind.is_block_device() {
                    return FileSource::new(file, &name).map(Opened::File);
                }
                Ok(Opened::Stream(Box::new(file), name))
            }
            Place::Url(url) => ObjectSource::new(Object::open(url)?).map(Opened::Object),
            Place::Store(_, open) => ObjectSource::new(open()?).map(Opened::Object),
        }
    }

    /// The format that is wanted, or the one the source begins like.
    fn format(self, wanted: Option<Format>) -> Result<(Format, Opened<'a>)> {
        if let Some(format) = wanted {
            return Ok((format, self));
        }
        let mut beginning = [0; TELLING];
        let fill = |source: &dyn Source, beginning: &mut [u8]| {
            let length = beginning.len().min(usize::try_from(source.size()).unwrap_or(TELLING));
            source.read(0, &mut beginning[..length])
        };
        Ok(match self {
            Opened::File(source) => {
                fill(&source, &mut beginning)?;
                (Format::detect(&beginning, source.name())?, Opened::File(source))
            }
            Opened::Object(source) => {
                fill(&source, &mut beginning)?;
                (Format::detect(&beginning, source.name())?, Opened::Object(source))
            }
            Opened::Stream(mut stream, name) => {
                let mut beginning = Vec::new();
                let length = TELLING as u64;
                let read = (&mut stream).take(length).read_to_end(&mut beginning);
                read.map_err(failed(format_args!("cannot read {name}")))?;
                let format = Format::detect(&beginning, &name)?;
                (format, Opened::Stream(Box::new(Cursor::new(beginning).chain(stream)), name))
            }
        })
    }

    fn input(&mut self) -> Input<'_> {
        match self {
            Opened::File(source) => Input::Extents(source),
            Opened::Object(source) => Input::Extents(source),
            Opened::Stream(stream, name) => Input::Stream(Box::new(stream), name),
        }
    }
}

/// Converts a disk to raw, in a file without a name. What is no file becomes one for that. Returns
/// also the checksum of the source, which is what was wanted.
fn convert(
    mut opened: Opened<'_>,
    request: &Import,
    format: Format,
    job: &Job,
) -> Result<(File, Option<Checksum>)> {
    let (tools, name) = (&request.tools, request.source.to_string());
    let (file, checksum) = if let Opened::File(source) = &opened {
        job.begin(format!("reading {name}"), source.size());
        let (_, checksum) = match request.checksum {
            Wanted::Nothing => (0, None),
            wanted => blocks::run(Input::Extents(source), &Nowhere, wanted, job)?,
        };
        (source.file().try_clone().map_err(failed(format_args!("cannot read {name}")))?, checksum)
    } else {
        let file = tools.temporary()?;
        let input = opened.input();
        let total = if let Input::Extents(source) = &input { source.size() } else { 0 };
        job.begin(format!("reading {name}"), total);
        let target = FileTarget::new(&file, &name);
        let (size, checksum) = blocks::run(input, &target, request.checksum, job)?;
        target.end(size)?;
        (file, checksum)
    };
    request.checksum.compare(checksum, &name)?;
    Ok((qemu::to_raw(tools, &file, format, &name, job)?, checksum))
}

/// The bytes of the image to be.
struct Disk<'a> {
    input: Input<'a>,
    format: Format,
    /// The checksum to make of them.
    checksum: Wanted,
    /// The checksum of the source, if these are not its bytes.
    known: Option<Checksum>,
}

/// Fills the image and gives it its name.
fn fill(
    pool: &Arc<dyn Pool>,
    request: &Import,
    spec: &str,
    disk: Disk<'_>,
    job: &Job,
) -> Result<Imported> {
    let temporary = temporary::importing(&request.name);
    let size = match &disk.input {
        Input::Extents(source) => source.size(),
        Input::Stream(..) => FIRST_SIZE,
    };
    let options = ImageOptions { features: Some(Features::DEFAULT), ..ImageOptions::default() };
    let filled = create(&**pool, &temporary, size, &options)
        .and_then(|()| fill_temporary(&**pool, request, spec, size, disk, job));
    if filled.is_err() {
        // The first error tells more than one of clearing up, and the next run clears up as well.
        job.begin(format!("removing {temporary}"), 0);
        let _ = temporary::clear(&**pool, &temporary);
    }
    filled
}

fn create(pool: &dyn Pool, name: &str, size: u64, options: &ImageOptions) -> Result<()> {
    pool.create_image(name, size, options).map_err(|error| match error.errno {
        Errno::ENOENT => Error::Refused(format!(
            "{}/{} is no RADOS namespace: rbd namespace create makes one",
            pool.name(),
            pool.namespace()
        )),
        _ => error.into(),
    })
}

fn fill_temporary(
    pool: &dyn Pool,
    request: &Import,
    spec: &str,
    size: u64,
    disk: Disk<'_>,
    job: &Job,
) -> Result<Imported> {
    let Disk { input, format, checksum, known } = disk;
    let temporary = &temporary::importing(&request.name);
    let image = pool.open_image(ImageKey::Name(temporary), OpenMode::ReadWrite)?;
    let total = if matches!(input, Input::Stream(..)) { 0 } else { size };
    job.begin(format!("importing {spec}"), total);
    let target = ImageTarget::new(&*image, size);
    let (size, made) = blocks::run(input, &target, checksum, job)?;
    checksum.compare(made, &request.source.to_string())?;
    if size == 0 {
        return Err(Error::Refused(format!("{} is empty", request.source)));
    }
    target.end(size)?;
    let checksum = known.or(made).as_ref().map(Checksum::to_string);
    let origin = Origin {
        source: Some(request.source.to_string()),
        format: Some(format.to_string()),
        checksum: checksum.clone(),
        since: jiff::Timestamp::now().as_second(),
        ..Origin::default()
    };
    origin.write(&*image)?;
    job.check()?;
    pool.rename_image(temporary, &request.name).map_err(|error| match error.errno {
        Errno::EEXIST => Error::Refused(format!(
            "the image {spec} was made by another client meanwhile, and is not replaced"
        )),
        _ => error.into(),
    })?;
    Ok(Imported { image: spec.to_owned(), size, format: format.to_string(), checksum })
}

/// Removes what a killed run to the same name has left.
fn clear_earlier(pool: &dyn Pool, spec: &str, temporary: &str, job: &Job) -> Result<()> {
    let deadline = Instant::now() + LINGERING;
    loop {
        match temporary::clear(pool, temporary)? {
            Found::Nothing => return Ok(()),
            Found::Finished => {
                return Err(Error::Refused(format!(
                    "the image {spec} exists now: an earlier import was killed when it was whole, and \
                     has been given its name. Remove it to import it anew"
                )));
            }
            Found::Live(client) if Instant::now() >= deadline => {
                return Err(Error::Refused(format!(
                    "another import of {spec} is at work: the client {client} has {temporary} open"
                )));
            }
            Found::Live(client) => {
                job.check()?;
                job.begin(format!("waiting for {client}, which imports {spec} or was killed"), 0);
                std::thread::sleep(LOOK);
            }
        }
    }
}

/// Image names that are plain, short enough, and no kind of the driver's own.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let begins = name.chars().next().is_some_and(|first| first.is_ascii_alphanumeric());
    if !begins || !name.chars().all(plain) || name.len() > temporary::IMPORT_NAME_BYTES {
        return Err(Error::Refused(format!(
            "{name:?} is no name for an image: 1 to {} letters, digits, dots, dashes and underlines, \
             a letter or digit first",
            temporary::IMPORT_NAME_BYTES
        )));
    }
    if name.ends_with(names::SILENT_SUFFIX) || temporary::is_temporary(name) {
        return Err(Error::Refused(format!("{name} ends as names of the driver's own do")));
    }
    Ok(())
}
