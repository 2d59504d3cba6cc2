//! Everything a side shows of its pools, asked through the traits.

use std::collections::BTreeMap;

use cinderblock::rbd::{Image, ImageKey, OpenMode, Pool};

use super::operation::NAMES;
use super::side::{Side, content, info};

/// What there is of each image and name, in words.
pub(crate) type Graph = BTreeMap<String, Vec<String>>;

impl Side {
    /// Every name, and every image in the directory and the trash, with links, snapshots, children,
    /// metadata and bytes.
    pub(crate) fn graph(&self) -> Graph {
        let mut graph = Graph::new();
        for pool in &self.pools {
            for name in NAMES {
                let Some(id) = pool.image_id(name).unwrap() else { continue };
                let opens = match pool.open_image(ImageKey::Name(name), OpenMode::ReadOnly) {
                    Ok(image) => format!("opens as {}", self.names.image(&image.id().unwrap())),
                    Err(error) => format!("open: {:?}", error.errno),
                };
                graph.insert(
                    format!("name {}/{name}", pool.name()),
                    vec![self.names.image(&id), opens],
                );
            }
            for entry in pool.list_images().unwrap() {
                let place =
                    format!("{}/{} ({})", pool.name(), entry.name, self.names.image(&entry.id));
                graph.entry(place).or_default().extend(self.describe(&**pool, &entry.id));
            }
            for entry in pool.trash_list().unwrap() {
                let place = format!(
                    "trash of {}: {} ({})",
                    pool.name(),
                    entry.name,
                    self.names.image(&entry.id)
                );
                graph.entry(place).or_default().extend(self.describe(&**pool, &entry.id));
            }
        }
        graph
    }

    fn describe(&self, pool: &dyn Pool, id: &str) -> Vec<String> {
        match pool.open_image(ImageKey::Id(id), OpenMode::ReadOnly) {
            Ok(image) => self.describe_image(pool.name(), &*image),
            Err(error) => vec![format!("open: {:?}", error.errno)],
        }
    }

    fn describe_image(&self, pool: &str, image: &dyn Image) -> Vec<String> {
        let mut lines = vec![
            format!("{:?}", info(image).unwrap()),
            format!("metadata {:?}", image.metadata_list().unwrap()),
            format!("{} watchers", image.watchers().unwrap().len()),
        ];
        let snapshots = image.snapshots().unwrap();
        let versions = snapshots.iter().map(|snapshot| Some(snapshot.id));
        for (at, words) in versions
            .zip(self.names.snapshots(pool, snapshots.clone()))
            .chain([(None, "head".to_owned())])
        {
            lines.push(words);
            lines.push(match image.parent(at) {
                Ok(Some(parent)) => format!("  clone of {}", self.names.parent(&parent)),
                Ok(None) => "  no clone".to_owned(),
                Err(error) => format!("  parent: {:?}", error.errno),
            });
            if at.is_some() {
                lines.push(match image.children(at) {
                    Ok(children) => format!("  children {:?}", self.names.children(&children)),
                    Err(error) => format!("  children: {:?}", error.errno),
                });
            }
            lines.push(match content(image, at) {
                Ok(runs) => format!("  bytes {runs:?}"),
                Err(error) => format!("  bytes: {:?}", error.errno),
            });
        }
        lines
    }
}
