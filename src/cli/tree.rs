//! `cinderblock tree`: how the images of a pool hang together.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use cinderblock::volume::image_spec;
use cinderblock::volume::survey::{
    ImageKind, SnapshotUse, Survey, SurveyedImage, SurveyedSnapshot,
};
use clap::{Args, ValueEnum};

use super::pool::PoolArgs;
use super::size;

/// Draw the lineage of a pool: images, snapshots, clones, and what keeps deleted volumes alive
///
/// Nothing is changed; images are opened read-only. Each pool has a tree, an object or a graph of
/// its own.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cinderblock tree --config clusters.yaml
  cinderblock tree --config clusters.yaml --pool rbd --namespace tenant --output json | jq '.images[] | select(.depth > 3)'
  cinderblock tree --config clusters.yaml --pool rbd --output dot | dot -Tsvg > lineage.svg

Exit status: 0 when every pool was read, 1 when one could not be, 2 when arguments or the configuration are wrong.")]
pub(crate) struct TreeArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// How the lineage is written
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A tree for people
    Text,
    /// One JSON object
    Json,
    /// A graph for Graphviz
    Dot,
}

/// Draws the tree.
pub(crate) fn run(args: &TreeArgs) -> ExitCode {
    let (trees, failed) =
        args.pool.each("tree", |_, volumes| Ok(write(&volumes.survey()?, args.output)?));
    for tree in trees {
        super::print_line(tree);
    }
    failed.unwrap_or(ExitCode::SUCCESS)
}

fn write(survey: &Survey, output: Output) -> serde_json::Result<String> {
    Ok(match output {
        Output::Text => text(survey),
        Output::Json => serde_json::to_string_pretty(survey)?,
        Output::Dot => dot(survey),
    })
}

/// The images by the snapshot they are clones of, and the roots: those whose parent is not in the
/// survey.
struct Family<'a> {
    survey: &'a Survey,
    children: BTreeMap<(&'a str, u64), Vec<&'a SurveyedImage>>,
}

impl<'a> Family<'a> {
    fn of(survey: &'a Survey) -> Family<'a> {
        let mut children: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for image in &survey.images {
            if let Some(link) = &image.parent {
                children.entry((link.image_id.as_str(), link.snapshot_id)).or_default().push(image);
            }
        }
        Family { survey, children }
    }

    fn roots(&self) -> impl Iterator<Item = &'a SurveyedImage> {
        self.survey.images.iter().filter(|image| {
            image
                .parent
                .as_ref()
                .is_none_or(|link| self.survey.images.iter().all(|other| other.id != link.image_id))
        })
    }

    fn clones(
        &self,
        image: &'a SurveyedImage,
        snapshot: &SurveyedSnapshot,
    ) -> &[&'a SurveyedImage] {
        self.children.get(&(image.id.as_str(), snapshot.id)).map_or(&[], Vec::as_slice)
    }
}

fn text(survey: &Survey) -> String {
    let family = Family::of(survey);
    let mut lines = String::from(&image_spec(&survey.pool, &survey.namespace, ""));
    let end = lines.trim_end_matches('/').len();
    lines.truncate(end);
    let roots: Vec<_> = family.roots().collect();
    if roots.is_empty() {
        lines.push_str("  (no images)");
    }
    for (index, image) in roots.iter().enumerate() {
        draw_image(&family, image, "", index + 1 == roots.len(), &mut lines);
    }
    lines
}

fn draw_image<'a>(
    family: &Family<'a>,
    image: &'a SurveyedImage,
    indent: &str,
    last: bool,
    lines: &mut String,
) {
    // Writing to a String cannot fail.
    let _ = write!(lines, "\n{indent}{}{}", if last { "└─ " } else { "├─ " }, image.name);
    let _ = write!(lines, "  {}", about_image(family, image));
    let indent = format!("{indent}{}", if last { "   " } else { "│  " });
    for (index, snapshot) in image.snapshots.iter().enumerate() {
        let last = index + 1 == image.snapshots.len();
        let _ = write!(lines, "\n{indent}{}@{}", if last { "└─ " } else { "├─ " }, snapshot.name);
        let _ = write!(lines, "  {}", about_snapshot(snapshot));
        let indent = format!("{indent}{}", if last { "   " } else { "│  " });
        let clones = family.clones(image, snapshot);
        for (index, clone) in clones.iter().enumerate() {
            draw_image(family, clone, &indent, index + 1 == clones.len(), lines);
        }
    }
}

fn about_image(family: &Family<'_>, image: &SurveyedImage) -> String {
    let mut words = Vec::new();
    words.extend(image.size.map(size::show_unsigned));
    words.extend(image.used.map(|used| format!("{} used", size::short(used))));
    words.extend(image.claim.as_ref().map(|claim| format!("claim {claim}")));
    words.push(
        match image.kind {
            ImageKind::Volume => "volume",
            ImageKind::Creating => "volume, creation unfinished",
            ImageKind::Deleting => "volume, deletion unfinished",
            ImageKind::SilentParent => "silent parent",
            ImageKind::Parked => "in the trash",
            ImageKind::Foreign => "foreign",
            ImageKind::Remains => "remains of an interrupted creation or removal",
        }
        .to_string(),
    );
    if image.depth > 0 {
        words.push(format!("depth {}", image.depth));
    }
    if let Some(link) = &image.parent
        && family.survey.images.iter().all(|other| other.id != link.image_id)
    {
        words.push(format!("clone of {}@{}", link.image, link.snapshot));
    }
    match (image.kind, image.kept_by.as_slice()) {
        (ImageKind::SilentParent, []) => words.push("kept by nothing".to_string()),
        (ImageKind::SilentParent, kept_by) => {
            words.push(format!("kept by @{}", kept_by.join(", @")));
        }
        _ => {}
    }
    words.join(", ")
}

fn about_snapshot(snapshot: &SurveyedSnapshot) -> String {
    let mut words = vec![
        match snapshot.kind {
            SnapshotUse::Listed => "snapshot",
            SnapshotUse::Clone => "for a clone",
            SnapshotUse::Backup => "for a backup",
            SnapshotUse::Parked => "deleted, kept by its clones",
            SnapshotUse::Librbd => "of a group or mirror",
            SnapshotUse::Foreign => "another tool's",
        }
        .to_string(),
    ];
    if let Some(group) = &snapshot.group {
        words.push(format!("member of the group snapshot {group}"));
    }
    if snapshot.protected {
        words.push("protected".to_string());
    }
    if snapshot.kind == SnapshotUse::Clone && snapshot.children.is_empty() {
        words.push("its clone is gone".to_string());
    }
    words.join(", ")
}

fn dot(survey: &Survey) -> String {
    let family = Family::of(survey);
    let mut graph = String::from(
        "digraph lineage {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n",
    );
    for image in &survey.images {
        let style = match image.kind {
            ImageKind::Volume => "solid",
            ImageKind::SilentParent => "dashed",
            _ => "dotted",
        };
        let _ = writeln!(
            graph,
            "  {} [label={}, style={style}];",
            quoted(&image.id),
            quoted(&format!("{}\n{}", image.name, about_image(&family, image)))
        );
        if let Some(link) = &image.parent {
            let _ = writeln!(
                graph,
                "  {} -> {} [label={}];",
                quoted(&link.image_id),
                quoted(&image.id),
                quoted(&format!("@{}", link.snapshot))
            );
        }
    }
    graph.push('}');
    graph
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinderblock::volume::survey::SurveyedLink;

    fn image(name: &str, id: &str, kind: ImageKind) -> SurveyedImage {
        SurveyedImage {
            name: name.to_string(),
            id: id.to_string(),
            kind,
            claim: (kind == ImageKind::Volume).then(|| "shop/data".to_owned()),
            size: Some(1 << 30),
            used: Some(8 << 20),
            depth: 0,
            parent: None,
            snapshots: Vec::new(),
            kept_by: Vec::new(),
        }
    }

    fn survey() -> Survey {
        let snapshot = |id, name: &str, kind, children: &[&str]| SurveyedSnapshot {
            id,
            name: name.to_string(),
            kind,
            size: 1 << 30,
            group: None,
            protected: false,
            parent: None,
            children: children.iter().map(|child| (*child).to_string()).collect(),
        };
        let mut parent = image("csi-a.deleted", "1a", ImageKind::SilentParent);
        parent.snapshots = vec![
            snapshot(4, "csi-b.clone_snap", SnapshotUse::Clone, &["rbd/csi-b"]),
            snapshot(5, "csi-snap-s", SnapshotUse::Listed, &[]),
        ];
        parent.kept_by = vec!["csi-b.clone_snap".to_string(), "csi-snap-s".to_string()];
        let mut child = image("csi-b", "2b", ImageKind::Volume);
        child.depth = 1;
        child.parent = Some(SurveyedLink {
            image: "rbd/csi-a.deleted".to_string(),
            image_id: "1a".to_string(),
            snapshot_id: 4,
            snapshot: "csi-b.clone_snap".to_string(),
        });
        let images = vec![parent, child, image("other", "3c", ImageKind::Foreign)];
        Survey { pool: "rbd".to_string(), namespace: "tenant".to_string(), images }
    }

    #[test]
    fn the_tree_shows_what_hangs_on_what() {
        assert_eq!(
            text(&survey()),
            "rbd/tenant
├─ csi-a.deleted  1GiB, 8MiB used, silent parent, kept by @csi-b.clone_snap, @csi-snap-s
│  ├─ @csi-b.clone_snap  for a clone
│  │  └─ csi-b  1GiB, 8MiB used, claim shop/data, volume, depth 1
│  └─ @csi-snap-s  snapshot
└─ other  1GiB, 8MiB used, foreign"
        );
    }

    #[test]
    fn an_empty_pool_is_said_to_be_empty() {
        let empty = Survey { images: Vec::new(), ..survey() };
        assert_eq!(text(&empty), "rbd/tenant  (no images)");
    }

    #[test]
    fn the_graph_names_images_and_links() {
        let graph = dot(&survey());
        assert!(graph.contains("\"1a\" -> \"2b\" [label=\"@csi-b.clone_snap\"];"), "{graph}");
        assert!(
            graph.contains("label=\"csi-a.deleted\\n1GiB, 8MiB used, silent parent"),
            "{graph}"
        );
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\n""#);
    }
}
