//! `cinderblock release`: gives adopted volumes and snapshots back.

use std::process::ExitCode;

use cinderblock::volume::adopt::Kind;
use cinderblock::volume::adopt::release::Release;
use clap::Args;

use super::{EXIT_LEFT, Failure, NoPool, PoolArgs, table};

/// Give adopted volumes and snapshots back to the driver that had them
///
/// The same images are usable by that driver again: ceph-csi finds each in its journal as it was.
/// Without --apply nothing is changed. Published volumes, open ones, and those with snapshots made
/// since are left. The command can be killed and run again at any time.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock release --config clusters.yaml --pool rbd
  cinderblock release --config clusters.yaml --pool rbd --apply
  cinderblock release --config clusters.yaml --pool rbd pvc-0b9e7a52-5c1e-4b6f-9d0a-2f1c7d3e8a46 --apply

Exit status: 0 when all is given back, 1 when something failed, 2 when arguments are wrong, 3 when something was left.")]
pub(crate) struct ReleaseArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// Only these: names of images and snapshots, or CSI names
    #[arg(value_name = "IMAGE")]
    only: Vec<String>,

    /// Give them back
    #[arg(long)]
    apply: bool,
}

/// Plans, and gives back when told to.
pub(crate) fn run(args: &ReleaseArgs) -> ExitCode {
    match work(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cinderblock release: {error}");
            error.downcast_ref::<NoPool>().map_or(ExitCode::FAILURE, NoPool::exit_code)
        }
    }
}

fn work(args: &ReleaseArgs) -> Result<ExitCode, Failure> {
    let (_, volumes) = args.pool.open_one()?;
    let mut found = volumes.plan_release()?;
    let is_named = |item: &Release, name: &String| item.image == *name || item.name == *name;
    for name in &args.only {
        if !found.iter().any(|item| is_named(item, name)) {
            return Err(format!("there is no {name} that was adopted").into());
        }
    }
    found.retain(|item| args.only.is_empty() || args.only.iter().any(|name| is_named(item, name)));
    let (mut rows, mut failed, mut left) = (Vec::new(), false, false);
    for item in &found {
        let verdict = match &item.refused {
            Some(why) => {
                left = true;
                format!("stays: {why}")
            }
            None if !args.apply => {
                left = true;
                "will be given back".to_owned()
            }
            None => match volumes.release(item) {
                Ok(()) => "is given back".to_owned(),
                Err(error) => {
                    failed = true;
                    format!("failed: {error}")
                }
            },
        };
        let kind = if item.kind == Kind::Snapshot { "snapshot" } else { "volume" };
        rows.push([item.image.clone(), kind.to_owned(), item.name.clone(), verdict]);
    }
    if args.apply {
        for image in volumes.release_parents()? {
            rows.push([image, "parent".to_owned(), "-".to_owned(), "is given back".to_owned()]);
        }
    }
    if rows.is_empty() {
        crate::cli::print_line("nothing was adopted here");
        return Ok(ExitCode::SUCCESS);
    }
    crate::cli::print_line(table::of_rows(&["IMAGE", "KIND", "NAME", "VERDICT"], rows));
    Ok(match (failed, left) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(EXIT_LEFT),
        (false, false) => ExitCode::SUCCESS,
    })
}
