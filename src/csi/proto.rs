//! The CSI 1.13 types, clients and servers, generated from `proto/csi/v1/csi.proto` by `build.rs`.
//!
//! Promises beyond what prost gives:
//!
//! - `Debug` of a message never prints the value of a field marked `csi_secret`, only the keys of
//!   the map. Messages that contain such a message delegate to it, so they are safe as well.
//! - Maps are `BTreeMap`s: what is printed or serialised has one stable order.

use std::collections::BTreeMap;
use std::fmt;

/// The encoded `FileDescriptorSet` of `csi.proto` and its imports, with the options the
/// specification defines (`csi_secret`, `alpha_*`).
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/csi_descriptor.bin"));

#[expect(
    missing_docs,
    clippy::pedantic,
    reason = "generated; csi.proto comments what its names do not say"
)]
mod generated {
    use super::KeysOnly;

    include!(concat!(env!("OUT_DIR"), "/csi.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/csi_debug.rs"));
}

pub use generated::*;

/// Prints the keys of a secret map alone. A log's reader needs to know which credentials came, and
/// must not see their values.
struct KeysOnly<'a>(&'a BTreeMap<String, String>);

impl fmt::Debug for KeysOnly<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|key| (key, format_args!("redacted")))).finish()
    }
}
#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashMap};

    use prost_reflect::prost::Message;
    use prost_reflect::{
        DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MapKey, Value,
    };

    use super::*;

    const CANARY: &str = "AQDcanarykeyOfTheCluster==";

    fn pool() -> DescriptorPool {
        DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap()
    }

    fn is_secret(field: &FieldDescriptor) -> bool {
        let csi_secret: ExtensionDescriptor =
            field.parent_pool().get_extension_by_name("csi.v1.csi_secret").unwrap();
        *field.options().get_extension(&csi_secret) == Value::Bool(true)
    }

    /// Decodes bytes as one generated type and prints it in both forms of `Debug`.
    fn printed<T: Message + Default + fmt::Debug>(bytes: &[u8]) -> String {
        let message = T::decode(bytes).unwrap();
        format!("{message:?}\n{message:#?}")
    }

    /// How to print each message that carries secrets. The test below holds the list against the
    /// descriptor.
    fn printers() -> BTreeMap<&'static str, fn(&[u8]) -> String> {
        macro_rules! by_name {
            ($($message:ident),+ $(,)?) => {
                BTreeMap::from([$((stringify!($message), printed::<$message> as fn(&[u8]) -> String)),+])
            };
        }
        by_name![
            ControllerExpandVolumeRequest,
            ControllerGetVolumeHealthRequest,
            ControllerListVolumeHealthRequest,
            ControllerModifyVolumeRequest,
            ControllerPublishVolumeRequest,
            ControllerUnpublishVolumeRequest,
            CreateSnapshotRequest,
            CreateVolumeGroupSnapshotRequest,
            CreateVolumeRequest,
            DeleteSnapshotRequest,
            DeleteVolumeGroupSnapshotRequest,
            DeleteVolumeRequest,
            GetMetadataAllocatedRequest,
            GetMetadataDeltaRequest,
            GetSnapshotRequest,
            GetVolumeGroupSnapshotRequest,
            ListSnapshotsRequest,
            NodeExpandVolumeRequest,
            NodeGetStorageHealthRequest,
            NodePublishVolumeRequest,
            NodeStageVolumeRequest,
            ValidateVolumeCapabilitiesRequest,
        ]
    }

    #[test]
    fn every_message_with_a_secret_is_printed_here() {
        let marked: BTreeSet<String> = pool()
            .all_messages()
            .filter(|message| message.fields().any(|field| is_secret(&field)))
            .map(|message| message.name().to_owned())
            .collect();
        let printed: BTreeSet<String> = printers().into_keys().map(str::to_owned).collect();
        assert_eq!(marked, printed);
    }

    #[test]
    fn every_field_named_for_secrets_is_marked() {
        let unmarked: Vec<String> = pool()
            .all_messages()
            .flat_map(|message| message.fields().collect::<Vec<_>>())
            .filter(|field| field.name().contains("secret") && !is_secret(field))
            .map(|field| field.full_name().to_owned())
            .collect();
        assert_eq!(unmarked, Vec::<String>::new());
    }

    #[test]
    fn debug_prints_everything_but_the_values_of_secrets() {
        let pool = pool();
        for (name, print) in printers() {
            let descriptor = pool.get_message_by_name(&format!("csi.v1.{name}")).unwrap();
            let mut message = DynamicMessage::new(descriptor.clone());
            let mut visible = Vec::new();
            for field in descriptor.fields() {
                visible.push(field.name().to_owned());
                let shown = if is_secret(&field) {
                    CANARY.to_owned()
                } else {
                    format!("shown-{}", field.name())
                };
                if field.is_map() {
                    let entry = (
                        MapKey::String(format!("key-of-{}", field.name())),
                        Value::String(shown.clone()),
                    );
                    message.set_field(&field, Value::Map(HashMap::from([entry])));
                    visible.push(format!("key-of-{}", field.name()));
                } else if field.kind() == Kind::String {
                    let value = Value::String(shown.clone());
                    message.set_field(
                        &field,
                        if field.is_list() { Value::List(vec![value]) } else { value },
                    );
                } else {
                    continue;
                }
                if !is_secret(&field) {
                    visible.push(shown);
                }
            }
            let text = print(&message.encode_to_vec());
            assert!(!text.contains(CANARY), "{name} prints a secret:\n{text}");
            for part in visible {
                assert!(text.contains(&part), "{name} does not print {part}:\n{text}");
            }
        }
    }
}
