//! A conformance suite for CSI drivers, where csi-sanity stops: what a strict reviewer or a hostile
//! client would try.
//!
//! It knows a driver by its socket alone. `CONFORMANCE_TARGET=FILE` points it at any
//! ([`target::Description`] tells what the file holds); without that it starts this repository's
//! driver on the lab, and sees at the end that nothing is left. What the driver does not advertise
//! is not asked of it: such a check is listed as ignored, with the capability it needs.
//!
//! ```console
//! $ cargo test --test conformance              everything
//! $ cargo test --test conformance names::      what matches
//! $ cargo test --test conformance -- --list
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(clippy::wildcard_imports, reason = "most messages of CSI")]
#![allow(clippy::print_stdout, reason = "a report")]
#![allow(unreachable_pub, reason = "a test has no outside")]

#[path = "../common/mod.rs"]
mod common;

mod capabilities;
mod concurrency;
mod ids;
mod limits;
mod lists;
mod modify;
mod names;
mod node;
mod own;
mod repeats;
mod secrets;
mod session;
mod sizes;
mod snapshots;
mod target;
mod wire;

use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use session::Session;
use target::{Need, Target};

/// One thing asked of the driver.
struct Check {
    /// `module::what_must_hold`.
    name: &'static str,
    /// What the driver must advertise, or the description hold, for it to apply.
    needs: &'static [Need],
    run: for<'a> fn(&'a Session) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
}

/// A [`Check`] of the function of that name, and what it needs.
#[macro_export]
macro_rules! check {
    ($name:ident $(, $need:expr)*) => {
        $crate::Check {
            name: concat!(module_path!(), "::", stringify!($name)),
            needs: &[$($need),*],
            run: |session| Box::pin($name(session)),
        }
    };
}

fn checks() -> Vec<Check> {
    [
        wire::checks(),
        limits::checks(),
        names::checks(),
        sizes::checks(),
        capabilities::checks(),
        repeats::checks(),
        ids::checks(),
        secrets::checks(),
        snapshots::checks(),
        modify::checks(),
        lists::checks(),
        node::checks(),
        concurrency::checks(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A check as a test. One that does not apply is ignored and says why; one that a description lists
/// under `differences` must fail, so that the list stays true.
fn trial(check: &Check, target: &Arc<Target>, runtime: &Arc<tokio::runtime::Runtime>) -> Trial {
    let name = check.name.trim_start_matches("conformance::").to_string();
    if let Some(missing) = check.needs.iter().find(|need| !target.has(**need)) {
        return Trial::test(name, || Ok(()))
            .with_kind(format!("needs {missing}"))
            .with_ignored_flag(true);
    }
    let differs = target.description.differences.get(&name).cloned();
    let kind = differs.as_ref().map_or("", |_| "known to differ");
    let (target, runtime, (name_of_check, check)) =
        (target.clone(), runtime.clone(), (check.name, check.run));
    let run = move || {
        let run = || runtime.block_on(session::run(&target, name_of_check, check));
        let Some(reason) = differs else { return run() };
        match run() {
            Ok(()) => Err(Failed::from(format!("passes, but is listed as a difference: {reason}"))),
            Err(_) => Ok(()),
        }
    };
    Trial::test(name, run).with_kind(kind)
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let runtime =
        Arc::new(tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap());
    if arguments.list {
        let names = checks().into_iter().map(|check| Trial::test(check.name, || Ok(()))).collect();
        return libtest_mimic::run(&arguments, names).exit_code();
    }
    let own = std::env::var_os("CONFORMANCE_TARGET").is_none().then(own::OwnDriver::start);
    let description = match &own {
        Some(own) => own.description(),
        None => target::Description::from_environment(),
    };
    let target = Arc::new(runtime.block_on(Target::connect(description)));
    let unknown = target.description.differences.keys().find(|name| {
        !checks()
            .iter()
            .any(|check| check.name.trim_start_matches("conformance::") == name.as_str())
    });
    assert!(unknown.is_none(), "differences lists {unknown:?}, which is no check");
    let trials = checks().iter().map(|check| trial(check, &target, &runtime)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(target);
    if let Some(own) = own {
        assert_eq!(conclusion.num_ignored, 0, "everything applies to our own driver");
        own.leave_nothing();
    }
    conclusion.exit_code()
}
