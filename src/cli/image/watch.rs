//! What happens beside a transfer: a bar on a terminal, and signals that stop it.

use std::io::{IsTerminal, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use cinderblock::rbd::ceph::{end_process, share_one_heap};
use cinderblock::transfer::Job;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

/// Of SIGINT, the signal of a terminal.
const INTERRUPTED: u8 = 130;
/// Of SIGTERM.
const TERMINATED: u8 = 143;

/// The exit code that says which signal came.
static CODE: AtomicU8 = AtomicU8::new(INTERRUPTED);

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);

/// The exit code of a transfer that a signal has stopped.
pub(in crate::cli) fn exit_code() -> u8 {
    CODE.load(Ordering::Relaxed)
}

/// Runs `work` with a job that SIGINT and SIGTERM cancel. A second signal ends the process at once.
pub(in crate::cli) fn watched<T>(work: impl FnOnce(&Job) -> T) -> Result<T, String> {
    share_one_heap();
    let job = Arc::new(Job::default());
    listen(Arc::clone(&job))?;
    let (done, is_done) = channel::<()>();
    Ok(thread::scope(|scope| {
        if stderr().is_terminal() {
            let job = &job;
            scope.spawn(move || {
                let bar = ProgressBar::new(0);
                while is_done.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                    show(&bar, job);
                }
                bar.finish_and_clear();
            });
        }
        let outcome = work(&job);
        drop(done);
        outcome
    }))
}

fn show(bar: &ProgressBar, job: &Job) {
    let (done, total) = job.progress();
    let template = match (total, done) {
        (0, 0) => "{spinner} {msg}",
        (0, _) => "{spinner} {msg}: {bytes}, {bytes_per_sec}",
        _ => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let step = job.step();
    if bar.message() != step {
        bar.reset();
        bar.set_message(step);
    }
    bar.set_length(total);
    bar.set_position(done);
}

/// Cancels the job at the first signal.
fn listen(job: Arc<Job>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime for signals: {error}"))?;
    let guard = runtime.enter();
    let to = |kind| signal(kind).map_err(|error| format!("cannot listen to signals: {error}"));
    let (mut interrupt, mut terminate) =
        (to(SignalKind::interrupt())?, to(SignalKind::terminate())?);
    drop(guard);
    thread::spawn(move || {
        runtime.block_on(async {
            let mut next = async || {
                tokio::select! {
                    _ = interrupt.recv() => INTERRUPTED,
                    _ = terminate.recv() => TERMINATED,
                }
            };
            CODE.store(next().await, Ordering::Relaxed);
            job.cancel();
            eprintln!("cinderblock: stopping, and tidying up; once more stops at once");
            end_process(next().await.into());
        });
    });
    Ok(())
}
