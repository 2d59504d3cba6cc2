//! Other formats than raw, through `qemu-img`.
//!
//! It gets files of strangers, so it runs within bounds (`bounded`), with one file as standard
//! input and one as standard output, and is killed when it takes too long. A file is looked at
//! first, by this program (`format`) and with `qemu-img info` and `check`, before it is converted.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::bounded::Limits;
use super::error::failed;
use super::format::{self, Format};
use super::{Error, Job, Result};

/// Where the program is looked for.
const DIRECTORIES: [&str; 2] = ["/usr/bin", "/bin"];

/// Bytes of address space. It reserves several times as much as it uses.
const MEMORY: u64 = 2 << 30;

/// Bytes of the largest disk that is taken. What claims to be larger is an attack or a mistake.
const LARGEST: u64 = 64 << 40;

/// Seconds a look at a file may take, and that anything may take at least.
const LOOK_SECONDS: u64 = 60;

/// Bytes of a disk that are read, converted and written in a second at least.
const SLOWEST: u64 = 10 << 20;

/// Bytes that are kept of what the program says.
const OUTPUT: u64 = 1 << 20;

/// What conversions need.
#[derive(Debug, Clone)]
pub struct Tools {
    /// This program, which becomes `qemu-img` by `cinderblock bounded`.
    pub launcher: PathBuf,
    /// A folder with room for a whole disk. Files in it have no name.
    pub folder: PathBuf,
}

impl Tools {
    /// A new file in the folder, which is gone when it is closed.
    pub(super) fn temporary(&self) -> Result<File> {
        tempfile::tempfile_in(&self.folder).map_err(failed(format_args!(
            "cannot create a file in {}; --tmp-dir names another folder",
            self.folder.display()
        )))
    }
}

/// What `qemu-img info` says of a disk.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    format: String,
    backing_filename: Option<String>,
    full_backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
    format_specific: Option<Specific>,
}

#[derive(Debug, Deserialize)]
struct Specific {
    #[serde(default)]
    data: serde_json::Value,
}

/// Converts the disk in `file` to raw. Returns a file without a name.
pub(super) fn to_raw(
    tools: &Tools,
    file: &File,
    format: Format,
    name: &str,
    job: &Job,
) -> Result<File> {
    job.begin(format!("looking into {name}"), 0);
    let size = file.metadata().map_err(failed(format_args!("cannot read {name}")))?.len();
    format::check_header(file, size, format, name)?;
    let virtual_size = look(tools, file, format, name, job)?;
    let raw = tools.temporary()?;
    raw.set_len(virtual_size).map_err(failed(format_args!(
        "cannot make a file of {virtual_size} bytes in {}",
        tools.folder.display()
    )))?;
    let format = format.to_string();
    let arguments = [
        "convert",
        "-n",
        "--target-is-zero",
        "-S",
        "4k",
        "-f",
        &format,
        "-O",
        "raw",
        "/dev/fd/0",
        "/dev/fd/1",
    ];
    job.begin(format!("converting {name}"), virtual_size);
    let output = raw.try_clone().map_err(failed("cannot convert"))?;
    run(tools, &arguments, file, Some(output), virtual_size, virtual_size + size, job)
        .map_err(|why| why.of(name))?;
    Ok(raw)
}

/// Converts the raw disk in `raw` into `target`, which is replaced.
pub(super) fn from_raw(
    tools: &Tools,
    raw: &File,
    format: Format,
    target: &File,
    name: &str,
    job: &Job,
) -> Result<()> {
    let size = raw.metadata().map_err(failed("cannot convert"))?.len();
    let format = format.to_string();
    let arguments = ["convert", "-S", "4k", "-f", "raw", "-O", &format, "/dev/fd/0", "/dev/fd/1"];
    job.begin(format!("converting to {format}"), size);
    let output = target.try_clone().map_err(failed("cannot convert"))?;
    // What a format adds of its own is much less.
    let most = size + size / 8 + (1 << 30);
    run(tools, &arguments, raw, Some(output), most, size, job).map_err(|why| why.of(name)).map(drop)
}

/// Looks at a file, and returns the bytes of the disk in it.
fn look(tools: &Tools, file: &File, format: Format, name: &str, job: &Job) -> Result<u64> {
    let word = format.to_string();
    let info = ["info", "--output", "json", "-f", &word, "/dev/fd/0"];
    let said = run(tools, &info, file, None, OUTPUT, 0, job).map_err(|why| why.of(name))?;
    let info: Info = serde_json::from_str(&said)
        .map_err(failed(format_args!("qemu-img says of {name} what is not understood")))?;
    let refuse = |why: String| Err(Error::Refused(format!("{name} {why}")));
    let specific = info.format_specific.map(|specific| specific.data).unwrap_or_default();
    if info.format != word {
        return refuse(format!("is {} and not {word}", info.format));
    }
    if let Some(backing) = info.backing_filename.or(info.full_backing_filename) {
        return refuse(format!("has the backing file {backing:?}, which is never read"));
    }
    if let Some(data) = specific.get("data-file").filter(|data| !data.is_null()) {
        return refuse(format!("has its data in the file {data}, which is never read"));
    }
    if info.encrypted {
        return refuse("is encrypted: decrypt it first".to_owned());
    }
    if format == Format::Vmdk {
        let kind = specific.get("create-type").and_then(|kind| kind.as_str()).unwrap_or_default();
        let extents = specific.get("extents").and_then(|extents| extents.as_array());
        if !matches!(kind, "monolithicSparse" | "streamOptimized")
            || extents.is_none_or(|extents| extents.len() != 1)
        {
            return refuse(format!(
                "is a VMDK of the kind {kind:?}, which can refer to other files"
            ));
        }
    }
    if info.virtual_size > LARGEST {
        return refuse(format!(
            "claims to hold {} bytes; no disk of more than {LARGEST} is taken",
            info.virtual_size
        ));
    }
    if info.virtual_size == 0 {
        return refuse("holds no byte".to_owned());
    }
    let check = ["check", "-f", &word, "/dev/fd/0"];
    match run(tools, &check, file, None, OUTPUT, info.virtual_size, job) {
        // It says so of formats that it cannot check, and of clusters that nothing uses: no data is
        // missing.
        Err(Why::Ended { code: Some(63 | 3), .. }) => {}
        other => drop(other.map_err(|why| why.of(name))?),
    }
    Ok(info.virtual_size)
}

/// Why a run of the program did not end well.
enum Why {
    Error(Error),
    Ended { code: Option<i32>, said: String },
}

impl Why {
    /// The error, said of the disk `name`.
    fn of(self, name: &str) -> Error {
        match self {
            Why::Error(error) => error,
            Why::Ended { code: Some(_), said } => {
                Error::Refused(format!("{name} cannot be read: {said}"))
            }
            Why::Ended { code: None, said } => Error::Failed(format!(
                "{name}: qemu-img was ended by a signal, since it used more memory, time or space than \
                 such a disk needs: {said}"
            )),
        }
    }
}

impl From<Error> for Why {
    fn from(error: Error) -> Why {
        Why::Error(error)
    }
}

/// Runs the program on `input`. Returns what it wrote to standard output, unless that is `output`.
/// `file_size` is what it may write, and `work` how many bytes it goes through.
fn run(
    tools: &Tools,
    arguments: &[&str],
    input: &File,
    output: Option<File>,
    file_size: u64,
    work: u64,
    job: &Job,
) -> std::result::Result<String, Why> {
    let cannot = || failed("cannot run qemu-img");
    let program = find().ok_or_else(|| {
        Error::Refused(
            "only raw disks can be moved here, since qemu-img is not installed: install Debian's \
             qemu-utils, or convert elsewhere"
                .to_owned(),
        )
    })?;
    let seconds = LOOK_SECONDS + work / SLOWEST;
    let limits = Limits { memory: MEMORY, cpu: seconds, file_size };
    let progress = output.as_ref().map(File::try_clone).transpose().map_err(cannot())?;
    let mut child = Command::new(&tools.launcher)
        .args(limits.arguments())
        .arg(program)
        .args(arguments.iter().map(OsString::from))
        .env_clear()
        .current_dir("/")
        .stdin(input.try_clone().map_err(cannot())?)
        .stdout(output.map_or_else(Stdio::piped, Stdio::from))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(cannot())?;
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut said = Vec::new();
            if let Some(pipe) = pipe {
                // More than that is never needed; the pipe breaks then.
                let _ = pipe.take(OUTPUT).read_to_end(&mut said);
            }
            String::from_utf8_lossy(&said).trim().to_owned()
        })
    };
    let answer = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let complaint = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let status = wait(&mut child, Duration::from_secs(seconds), progress.as_ref(), job);
    let (answer, complaint) =
        (answer.join().unwrap_or_default(), complaint.join().unwrap_or_default());
    match status? {
        status if status.success() => Ok(answer),
        status => {
            let said = complaint.split_whitespace().collect::<Vec<_>>().join(" ");
            let said = said.replace("/dev/fd/0", "it");
            Err(Why::Ended { code: status.code(), said })
        }
    }
}

fn wait(
    child: &mut Child,
    patience: Duration,
    progress: Option<&File>,
    job: &Job,
) -> Result<std::process::ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().map_err(failed("cannot wait for qemu-img"))? {
            return Ok(status);
        }
        let late = Instant::now() >= deadline;
        if late || job.is_cancelled() {
            // It has ended by itself otherwise.
            let _ = child.kill();
            let _ = child.wait();
            job.check()?;
            return Err(Error::Failed(format!(
                "qemu-img did not end within {} s and was killed",
                patience.as_secs()
            )));
        }
        if let Some(written) = progress.and_then(|file| file.metadata().ok()) {
            job.set_done(written.blocks() * 512);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn find() -> Option<PathBuf> {
    DIRECTORIES.iter().map(|folder| Path::new(folder).join("qemu-img")).find(|path| path.is_file())
}
