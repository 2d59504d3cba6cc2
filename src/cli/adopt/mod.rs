//! `cinderblock adopt` and `cinderblock release`: volumes that change their driver in place.

mod manifests;
pub(super) mod release;

use std::collections::BTreeMap;
use std::process::ExitCode;

use cinderblock::csi::config::Config;
use cinderblock::csi::ids::{Location, SnapshotId, VolumeId};
use cinderblock::csi::parameters::VolumeParameters;
use cinderblock::kube::handover;
use cinderblock::volume::Volumes;
use cinderblock::volume::adopt::{Item, Kind, Verdict};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use super::pool::{NoPool, PoolArgs};
use super::table;
use manifests::ManifestArgs;

/// Something is left to its owner, or for want of --apply.
const EXIT_LEFT: u8 = 3;

type Failure = Box<dyn std::error::Error>;

/// Take over in place the volumes and snapshots of ceph-csi or Cinder, or any image
///
/// No data is copied, and images keep their names. Without --apply nothing is changed: a table says
/// what will become of each volume and snapshot. With it, each gets a record in the catalogue, and
/// what ceph-csi's journal says of it moves into that record. The command can be killed and run
/// again at any time. `cinderblock release` is the way back.
#[derive(Debug, Args)]
#[command(
    after_help = "What is left to its owner, with the reason in the table: encrypted volumes; images that are open; members of groups; volumes whose
PersistentVolume has another reclaim policy than Retain, or a VolumeAttachment; snapshots whose content has another deletion policy.

Examples:
  kubectl get pv,volumesnapshotcontent,volumeattachment -o json > old.json
  cinderblock adopt --config clusters.yaml --pool rbd --from ceph-csi --manifests old.json
  cinderblock adopt --config clusters.yaml --pool rbd --from ceph-csi --manifests old.json --write new.json --apply
  cinderblock adopt --config clusters.yaml --pool volumes --from cinder --write new.json --secret ceph/rbd-key
  cinderblock adopt --config clusters.yaml --pool rbd disk-7 --name disk-7 --apply

Exit status: 0 when all is adopted, 1 when something failed, 2 when arguments are wrong, 3 when something was left, for want of --apply
or to its owner."
)]
pub(crate) struct AdoptArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// Whose volumes they are
    #[arg(long, value_enum, value_name = "DRIVER", required_unless_present = "name")]
    from: Option<From>,

    /// Only these: names of images, CSI names, or the uuids that handles end in
    #[arg(value_name = "IMAGE")]
    only: Vec<String>,

    /// The CSI name for one image that no driver had
    #[arg(long, conflicts_with = "from", requires = "only", value_name = "NAME")]
    name: Option<String>,

    /// ceph-csi's --instanceid
    #[arg(long, default_value = "default", value_name = "ID")]
    csi_instance: String,

    #[command(flatten)]
    manifests: ManifestArgs,

    /// Adopt
    #[arg(long)]
    apply: bool,

    /// How the findings are written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum From {
    /// ceph-csi, by its journal in the pool
    CephCsi,
    /// `OpenStack` Cinder, by the names of images
    Cinder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table
    Text,
    /// One JSON object
    Json,
}

/// What a run found and did.
#[derive(Debug, Serialize)]
struct Report {
    items: Vec<Item>,
    failed: Vec<Failed>,
}

#[derive(Debug, Serialize)]
struct Failed {
    image: String,
    why: String,
}

/// Plans, and adopts when told to.
pub(crate) fn run(args: &AdoptArgs) -> ExitCode {
    match work(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cinderblock adopt: {error}");
            error.downcast_ref::<NoPool>().map_or(ExitCode::FAILURE, NoPool::exit_code)
        }
    }
}

fn work(args: &AdoptArgs) -> Result<ExitCode, Failure> {
    let objects = args.manifests.read()?;
    if args.apply
        && objects.is_none()
        && args.from == Some(From::CephCsi)
        && !args.manifests.checked
    {
        return Err("Kubernetes may hold these volumes: give --manifests, so that PersistentVolumes which would be deleted or are \
                    attached are left alone, or --objects-checked if there are none"
            .into());
    }
    let config = args.pool.cluster().read()?;
    let (location, volumes) = args.pool.open_one()?;
    let ids = |image: &str| volume_id(&location, image);
    let mut items = match (args.from, &args.name) {
        (Some(From::CephCsi), _) => volumes.plan_from_ceph_csi(&args.csi_instance, &ids)?,
        (Some(From::Cinder), _) => volumes.plan_from_cinder(&ids)?,
        (None, Some(name)) => {
            let [image] = &args.only[..] else { return Err("--name is for one image".into()) };
            vec![volumes.plan_image(image, name, &ids)?]
        }
        (None, None) => return Err("give --from or --name".into()),
    };
    if args.from.is_some() {
        choose(&mut items, &args.only)?;
    }
    for item in &mut items {
        let old = objects.as_ref().and_then(|objects| manifests::old(objects, item));
        if let (Some(objects), Some(old)) = (&objects, &old) {
            let why = match item.kind {
                Kind::Volume => objects.why_volume_stays(old),
                Kind::Snapshot => handover::Objects::why_content_stays(old),
                Kind::Parent => None,
            };
            if let Some(why) = why {
                item.refuse(why);
            }
        }
        if item.kind == Kind::Volume && item.verdict == Verdict::Adopt {
            match context(&config, &location, &item.image, old.as_ref()) {
                Ok(context) => item.set_context(context),
                Err(why) => item.refuse(why),
            }
        }
    }
    args.manifests.write(&volumes, &location, objects.as_ref(), &items)?;
    let mut report = Report { items, failed: Vec::new() };
    if args.apply {
        adopt(&volumes, &mut report);
    }
    match args.output {
        Output::Text => args.manifests.say(&text(&report, args.apply)),
        Output::Json => args.manifests.say(&serde_json::to_string_pretty(&report)?),
    }
    let is_left = |item: &Item| item.verdict != Verdict::Adopted;
    Ok(if !report.failed.is_empty() {
        ExitCode::FAILURE
    } else if report.items.iter().any(is_left) {
        ExitCode::from(EXIT_LEFT)
    } else {
        ExitCode::SUCCESS
    })
}

fn adopt(volumes: &Volumes, report: &mut Report) {
    for item in report.items.iter_mut().filter(|item| item.is_adoptable()) {
        match volumes.adopt(item) {
            Ok(()) => item.verdict = Verdict::Adopted,
            Err(error) => {
                report.failed.push(Failed { image: item.image.clone(), why: error.to_string() });
            }
        }
    }
    volumes.settle_own();
}

/// Keeps the items that were named. A volume's own parents go with it.
fn choose(items: &mut Vec<Item>, only: &[String]) -> Result<(), Failure> {
    if only.is_empty() {
        return Ok(());
    }
    let is_named = |item: &Item, name: &str| {
        item.image == name
            || !item.name.is_empty() && item.name == name
            || item.uuid.as_deref() == Some(name)
            || item.snapshot.as_deref() == Some(name)
    };
    for name in only {
        if !items.iter().any(|item| is_named(item, name)) {
            return Err(format!("there is no {name} to adopt").into());
        }
    }
    let kept: Vec<_> = items
        .iter()
        .filter(|item| only.iter().any(|name| is_named(item, name)))
        .map(|item| item.image.clone())
        .collect();
    items.retain(|item| {
        only.iter().any(|name| is_named(item, name))
            || item.kind == Kind::Parent
                && item.image.strip_suffix("-temp").is_some_and(|of| kept.iter().any(|it| it == of))
    });
    Ok(())
}

/// What nodes get with a volume: of the old PersistentVolume's attributes those that this driver
/// has, too.
fn context(
    config: &Config,
    location: &Location,
    image: &str,
    old: Option<&Value>,
) -> Result<BTreeMap<String, String>, String> {
    let mut parameters = BTreeMap::from([
        ("clusterID".to_owned(), location.cluster.clone()),
        ("pool".to_owned(), location.pool.clone()),
    ]);
    let attributes = old.map(handover::attributes).unwrap_or_default();
    for key in ["mounter", "mapOptions", "unmapOptions", "mkfsOptions"] {
        if let Some(value) = attributes.get(key).filter(|value| !value.is_empty()) {
            parameters.insert(key.to_owned(), value.clone());
        }
    }
    let parsed = VolumeParameters::parse(&parameters, config).map_err(|status| {
        format!(
            "its PersistentVolume has attributes for nodes that this driver refuses: {}",
            status.message()
        )
    })?;
    let mut context = parsed.context;
    context.remove("radosNamespace");
    if !location.namespace.is_empty() {
        context.insert("radosNamespace".to_owned(), location.namespace.clone());
    }
    context.insert("imageName".to_owned(), image.to_owned());
    // Never formatted: it was not created empty by this driver.
    context.insert("contentSource".to_owned(), "adopted".to_owned());
    Ok(context)
}

fn volume_id(location: &Location, image: &str) -> Option<String> {
    let id = VolumeId { location: location.clone(), image: image.to_owned() }.to_string();
    VolumeId::parse(&id).map(|_| id)
}

/// The snapshot id of a snapshot that is or will be adopted.
fn snapshot_id(location: &Location, item: &Item) -> String {
    SnapshotId {
        location: location.clone(),
        image_id: item.image_id.clone(),
        snapshot: item.snapshot.clone().unwrap_or_default(),
    }
    .to_string()
}

fn text(report: &Report, apply: bool) -> String {
    if report.items.is_empty() {
        return "there is nothing to adopt".to_owned();
    }
    let rows = report.items.iter().map(|item| {
        let kind = match item.kind {
            Kind::Volume => "volume",
            Kind::Snapshot => "snapshot",
            Kind::Parent => "parent",
        };
        let failed = report.failed.iter().find(|failed| failed.image == item.image);
        let verdict = match (&item.verdict, failed) {
            (_, Some(failed)) => format!("failed: {}", failed.why),
            (Verdict::Adopt, None) => "will be adopted".to_owned(),
            (Verdict::Finish, None) => "is half adopted, and will be adopted".to_owned(),
            (Verdict::Adopted, None) => "is adopted".to_owned(),
            (Verdict::Refuse(why), None) => format!("is left alone: {why}"),
            (Verdict::Lost(why), None) => format!("is not there: {why}"),
        };
        let image = match &item.snapshot {
            Some(snapshot) if *snapshot != item.image => format!("{}@{snapshot}", item.image),
            _ => item.image.clone(),
        };
        let name = if item.name.is_empty() { "-" } else { &item.name };
        [image, kind.to_owned(), name.to_owned(), verdict]
    });
    let mut text = table::of_rows(&["IMAGE", "KIND", "NAME", "VERDICT"], rows);
    if !apply {
        text.push_str("\nnothing was changed; --apply adopts");
    }
    text
}
