//! The Kubernetes objects of adopted volumes: the old ones are read, the new ones written.

use std::io::Read;

use cinderblock::csi::handles::Handle;
use cinderblock::csi::ids::Location;
use cinderblock::kube::handover::{self, NewVolume, Objects};
use cinderblock::volume::Volumes;
use cinderblock::volume::adopt::{Item, Kind};
use clap::Args;
use serde_json::Value;

use super::{Failure, snapshot_id};

/// The Kubernetes objects.
#[derive(Debug, Args)]
#[command(next_help_heading = "Kubernetes")]
pub(super) struct ManifestArgs {
    /// The old objects: what `kubectl get pv,volumesnapshotcontent,volumeattachment -o json`
    /// writes; - is standard input
    #[arg(long, value_name = "FILE")]
    manifests: Option<String>,

    /// No PersistentVolume or VolumeSnapshotContent would delete these volumes, and none is
    /// attached: adopt without --manifests
    #[arg(long = "objects-checked", conflicts_with = "manifests")]
    pub(super) checked: bool,

    /// Write the new objects there, for `kubectl apply -f`; - is standard output, and the table
    /// goes to standard error then
    #[arg(long, value_name = "FILE")]
    write: Option<String>,

    /// This driver's name, as in CSIDriver and StorageClass objects
    #[arg(long, default_value = "rbd.csi.cinderblock.dev", value_name = "NAME")]
    driver_name: String,

    /// The Secret with userID and userKey, for objects where no old one names a Secret
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = secret)]
    secret: Option<(String, String)>,
}

fn secret(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name))
            if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
        {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("a Secret is written NAMESPACE/NAME".to_owned()),
    }
}

/// The old object of an item.
pub(super) fn old(objects: &Objects, item: &Item) -> Option<Value> {
    let uuid = item.uuid.as_deref()?;
    let is_it = |handle: &str| Handle::parse(handle).is_some_and(|handle| handle.uuid == uuid);
    let found = match item.kind {
        Kind::Volume => objects.volume(is_it),
        Kind::Snapshot => objects.content(is_it),
        Kind::Parent => None,
    };
    found.cloned()
}

impl ManifestArgs {
    /// The old objects, if they were given.
    pub(super) fn read(&self) -> Result<Option<Objects>, Failure> {
        let Some(file) = &self.manifests else { return Ok(None) };
        let text = if file == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(file)
        };
        let text = text.map_err(|error| format!("cannot read {file}: {error}"))?;
        Ok(Some(Objects::parse(&text).map_err(|why| format!("{file}: {why}"))?))
    }

    /// Writes the new objects. Volumes that had a PersistentVolume get one of the same name.
    pub(super) fn write(
        &self,
        volumes: &Volumes,
        location: &Location,
        objects: Option<&Objects>,
        items: &[Item],
    ) -> Result<(), Failure> {
        let Some(file) = &self.write else { return Ok(()) };
        let mut new = Vec::new();
        for item in items.iter().filter(|item| item.is_adoptable()) {
            let old = objects.and_then(|objects| old(objects, item));
            match item.kind {
                Kind::Volume => new.extend(self.volume(volumes, item, old.as_ref())?),
                Kind::Snapshot => new.extend(self.snapshot(location, item, old.as_ref())),
                Kind::Parent => {}
            }
        }
        let text = serde_json::to_string_pretty(&handover::list(&new))?;
        if file == "-" {
            crate::cli::print_line(text);
            return Ok(());
        }
        Ok(std::fs::write(file, text + "\n")
            .map_err(|why| format!("cannot write {file}: {why}"))?)
    }

    fn volume(
        &self,
        volumes: &Volumes,
        item: &Item,
        old: Option<&Value>,
    ) -> Result<Option<Value>, Failure> {
        let (Some(handle), Some(attributes)) = (item.volume_id(), item.context()) else {
            return Ok(None);
        };
        let secret = self.secret();
        let new = NewVolume { driver: &self.driver_name, handle, attributes, secret };
        if let Some(old) = old {
            return Ok(Some(handover::volume_in_place_of(old, &new)));
        }
        let filesystem = volumes.filesystem(&item.image)?;
        Ok(Some(handover::new_volume(&item.name, item.size, filesystem, &new)))
    }

    fn snapshot(&self, location: &Location, item: &Item, old: Option<&Value>) -> Vec<Value> {
        let handle = snapshot_id(location, item);
        if let Some(old) = old {
            return handover::content_in_place_of(old, &self.driver_name, &handle);
        }
        vec![handover::new_content(&item.name, &self.driver_name, &handle, self.secret())]
    }

    fn secret(&self) -> Option<(&str, &str)> {
        self.secret.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()))
    }

    /// Says what was found, where it does not stand between the objects.
    pub(super) fn say(&self, text: &str) {
        if self.write.as_deref() == Some("-") {
            eprintln!("{text}");
        } else {
            crate::cli::print_line(text);
        }
    }
}
