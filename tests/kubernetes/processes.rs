//! Containers of a rendered pod as processes of this machine: the same program with the same
//! arguments, started again whenever it ends, as kubelet would.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::api::{list, text};

/// A container that runs, and is started again when it ends, until [`Container::stop`] or the end
/// of these tests.
pub(crate) struct Container {
    pub(crate) name: String,
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
}

struct Shared {
    /// The process, or none between two.
    child: Mutex<Option<Child>>,
    over: AtomicBool,
    starts: AtomicUsize,
}

/// What a pod has of this machine.
pub(crate) struct Place<'a> {
    /// The folder in which each volume of the pod is a folder of its name.
    pub(crate) volumes: &'a Path,
    /// Where logs are written.
    pub(crate) logs: &'a Path,
    /// What fields of the pod hold, such as `spec.nodeName`.
    pub(crate) fields: BTreeMap<&'static str, String>,
}

impl Container {
    /// Starts a container of a pod's `containers`. One that talks to Kubernetes does so with
    /// `kubeconfig`.
    pub(crate) fn start(
        container: &Value,
        place: &Place<'_>,
        kubeconfig: Option<&Path>,
    ) -> Container {
        let name = text(container, "/name").to_owned();
        let log = place.logs.join(format!("{name}.log"));
        let program = program(text(container, "/image"));
        let (arguments, environment) = words(container, place);
        let kubeconfig = kubeconfig.map(Path::to_path_buf);
        let shared = Arc::new(Shared {
            child: Mutex::default(),
            over: AtomicBool::new(false),
            starts: AtomicUsize::new(0),
        });
        let seen = shared.clone();
        let watcher = std::thread::spawn(move || {
            while !seen.over.load(Ordering::SeqCst) {
                let log = File::options().create(true).append(true).open(&log).unwrap();
                // It goes when this thread does, so with these tests however they end.
                let mut command = Command::new("setpriv");
                command
                    .args(["--pdeathsig", "KILL", "--"])
                    .arg(&program)
                    .args(&arguments)
                    .envs(&environment);
                command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
                if let Some(kubeconfig) = &kubeconfig {
                    command.env("KUBECONFIG", kubeconfig);
                    if !program.ends_with("cinderblock") {
                        command.arg(format!("--kubeconfig={}", kubeconfig.display()));
                    }
                }
                *seen.child.lock().unwrap() = Some(command.spawn().unwrap());
                seen.starts.fetch_add(1, Ordering::SeqCst);
                while seen.ended().is_none() {
                    std::thread::sleep(Duration::from_millis(50));
                }
                *seen.child.lock().unwrap() = None;
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Container { name, shared, watcher: Some(watcher) }
    }

    /// Kills it as the kernel does when memory runs out. It is started again.
    pub(crate) fn kill(&self) {
        if let Some(child) = &mut *self.shared.child.lock().unwrap() {
            child.kill().unwrap();
        }
    }

    /// How often it has been started.
    pub(crate) fn starts(&self) -> usize {
        self.shared.starts.load(Ordering::SeqCst)
    }

    /// Ends it in order, and for good.
    pub(crate) fn stop(mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        if let Some(child) = &*self.shared.child.lock().unwrap() {
            kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let watcher = self.watcher.take().unwrap();
        while !watcher.is_finished() {
            assert!(Instant::now() < deadline, "{} does not end on SIGTERM", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
        watcher.join().unwrap();
    }
}

impl Shared {
    fn ended(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().unwrap();
        let Some(child) = &mut *child else { return Some(ExitStatus::from_raw(0)) };
        child.try_wait().unwrap()
    }
}

/// The program of an image: this repository's driver, or the tool of the image's name.
pub(crate) fn program(image: &str) -> PathBuf {
    let repository = image.rsplit('/').next().unwrap().split([':', '@']).next().unwrap();
    if repository == "cinderblock" {
        return env!("CARGO_BIN_EXE_cinderblock").into();
    }
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin").join(repository);
    assert!(program.is_file(), "{} is not built; run tests/kubernetes.sh", program.display());
    program
}

/// Arguments and environment as kubelet would make them of the container, with folders of this
/// machine for what it mounts.
pub(crate) fn words(
    container: &Value,
    place: &Place<'_>,
) -> (Vec<String>, BTreeMap<String, String>) {
    let here = |word: &str| {
        for mount in list(container, "/volumeMounts") {
            let inside = text(mount, "/mountPath");
            let outside = place.volumes.join(text(mount, "/name")).display().to_string();
            if let Some(at) = word.find(&format!("{inside}/")) {
                return format!("{}{outside}{}", &word[..at], &word[at + inside.len()..]);
            }
            if let Some(before) = word.strip_suffix(inside) {
                return format!("{before}{outside}");
            }
        }
        word.to_owned()
    };
    let mut environment = BTreeMap::new();
    for variable in list(container, "/env") {
        let of_the_pod = || {
            let field = text(variable, "/valueFrom/fieldRef/fieldPath");
            place.fields.get(field).unwrap_or_else(|| panic!("nobody says what {field} is")).clone()
        };
        let value = variable.get("value").and_then(Value::as_str).map_or_else(of_the_pod, here);
        environment.insert(text(variable, "/name").to_owned(), value);
    }
    let arguments = list(container, "/args").iter().map(|argument| {
        let mut argument = argument.as_str().unwrap().to_owned();
        for (name, value) in &environment {
            argument = argument.replace(&format!("$({name})"), value);
        }
        if argument.contains(&place.volumes.display().to_string()) {
            argument
        } else {
            here(&argument)
        }
    });
    (arguments.collect(), environment)
}
