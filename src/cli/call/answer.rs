//! What a driver answered, as JSON for programs and as text for people.
//!
//! Both are made from the descriptor of the message, so they are complete for every RPC and stay so
//! when CSI grows.

use std::borrow::Cow;

use prost::{Message, Name};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage,
    SerializeOptions, Value,
};
use tonic::Response;

use cinderblock::csi::proto::FILE_DESCRIPTOR_SET;

use crate::cli::{size, table};

/// Fields that only wrap what matters: their names say nothing the fields in them do not say.
const WRAPPERS: [&str; 5] = ["volume", "snapshot", "status", "group_snapshot", "volume_health"];

/// Fields that are sizes although their names do not end in `_bytes`.
const SIZES: [&str; 3] = ["available_capacity", "maximum_volume_size", "minimum_volume_size"];

/// The answer to an RPC.
#[derive(Debug)]
pub(super) struct Answer(DynamicMessage);

/// A piece of an answer: the path of a field, with dots, and what it holds, on one or more lines.
type Entry = (String, String);

impl Answer {
    #[expect(
        clippy::expect_used,
        reason = "the descriptor and the types are generated from one file"
    )]
    pub(super) fn of<M: Message + Name>(response: Response<M>) -> Answer {
        let pool =
            DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("build.rs wrote a valid descriptor");
        let descriptor =
            pool.get_message_by_name(&M::full_name()).expect("the type is in its own descriptor");
        let mut message = DynamicMessage::new(descriptor);
        message
            .transcode_from(&response.into_inner())
            .expect("the type matches its own descriptor");
        Answer(message)
    }

    /// One JSON object with CSI's field names, sorted; 64-bit numbers are numbers, times RFC 3339.
    /// Fields that can be absent are left out when they are; all others are there.
    pub(super) fn json(&self) -> serde_json::Result<serde_json::Value> {
        let options = SerializeOptions::new()
            .stringify_64_bit_integers(false)
            .use_proto_field_name(true)
            .skip_default_fields(false);
        self.0.serialize_with_options(serde_json::value::Serializer, &options)
    }

    /// Aligned names and values, and a table for each list of things. Empty fields are left out.
    pub(super) fn text(&self) -> String {
        let (lists, fields): (Vec<_>, Vec<_>) =
            self.0.descriptor().fields().partition(|field| field.is_list() && is_message(field));
        if lists.is_empty() && fields.is_empty() {
            return "ok".to_owned();
        }
        let mut blocks = Vec::new();
        for list in lists {
            let items = self.0.get_field(&list);
            match items.as_list().unwrap_or_default() {
                [] => blocks.push(format!("no {}", list.name())),
                items => blocks.push(table_of(items)),
            }
        }
        let mut entries = Vec::new();
        for field in fields {
            if field.supports_presence() && !self.0.has_field(&field) {
                entries.push((field.name().to_owned(), "not set".to_owned()));
            } else {
                add_field(&self.0, &field, "", &mut entries);
            }
        }
        if !entries.is_empty() {
            ids_first(&mut entries);
            blocks.push(table::of_pairs(entries));
        }
        blocks.join("\n")
    }
}

fn is_message(field: &FieldDescriptor) -> bool {
    matches!(field.kind(), Kind::Message(_))
}

/// Whether a message is written as one value: the well-known types that CSI uses.
fn is_value(message: &DynamicMessage) -> bool {
    message.descriptor().package_name() == "google.protobuf"
}

/// One row per item and one column per field that any item has.
fn table_of(items: &[Value]) -> String {
    let rows: Vec<Vec<Entry>> =
        items.iter().filter_map(Value::as_message).map(entries_of).collect();
    let mut columns: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flatten() {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    // Items of one field, such as capabilities, differ in which field that is: each is a line of
    // its own.
    if rows.iter().all(|row| row.len() == 1) {
        let lines =
            rows.iter().flatten().map(|(name, value)| [name.trim_end_matches(".type"), value]);
        return table::of_rows(&[], lines);
    }
    let cells = rows.iter().map(|row| {
        let value =
            |column| row.iter().find(|(name, _)| name == column).map_or("", |(_, value)| value);
        columns.iter().map(|column| value(*column)).collect::<Vec<_>>()
    });
    table::of_rows(&columns, cells)
}

fn entries_of(message: &DynamicMessage) -> Vec<Entry> {
    let mut entries = Vec::new();
    add_fields(message, "", &mut entries);
    ids_first(&mut entries);
    entries
}

/// What a thing is called comes before what it is like; CSI's own order is kept otherwise.
fn ids_first(entries: &mut [Entry]) {
    entries.sort_by_key(|(name, _)| name.contains('.') || !name.ends_with("_id"));
}

fn add_fields(message: &DynamicMessage, prefix: &str, entries: &mut Vec<Entry>) {
    for field in message.descriptor().fields() {
        if !field.supports_presence() || message.has_field(&field) {
            add_field(message, &field, prefix, entries);
        }
    }
}

fn add_field(
    message: &DynamicMessage,
    field: &FieldDescriptor,
    prefix: &str,
    entries: &mut Vec<Entry>,
) {
    let value = message.get_field(field);
    let path = format!("{prefix}{}", field.name());
    if let Value::Message(inner) = &*value
        && !is_value(inner)
    {
        let prefix =
            if WRAPPERS.contains(&field.name()) { prefix.to_owned() } else { format!("{path}.") };
        let before = entries.len();
        add_fields(inner, &prefix, entries);
        // An empty message says something by being there, as the block of a capability does.
        if entries.len() == before && !WRAPPERS.contains(&field.name()) {
            entries.push((path, "yes".to_owned()));
        }
        return;
    }
    let text = match unwrapped(&value).as_ref() {
        Value::I64(bytes) if is_size(message, field) => size::show(*bytes),
        value => text_of(value, field),
    };
    if !text.is_empty() {
        entries.push((path, text));
    }
}

/// The value in one of the messages that only make a value optional, such as `BoolValue`; any other
/// value itself.
fn unwrapped(value: &Value) -> Cow<'_, Value> {
    match value {
        Value::Message(message) if is_value(message) => {
            message.get_field_by_name("value").unwrap_or(Cow::Borrowed(value))
        }
        _ => Cow::Borrowed(value),
    }
}

/// Whether a number counts bytes for people to read.
fn is_size(message: &DynamicMessage, field: &FieldDescriptor) -> bool {
    if field.parent_message().name() == "VolumeUsage" {
        let unit = message.get_field_by_name("unit");
        return unit.is_some_and(|unit| *unit == Value::EnumNumber(1));
    }
    field.name().ends_with("_bytes") || SIZES.contains(&field.name())
}

fn text_of(value: &Value, field: &FieldDescriptor) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::EnumNumber(number) => match field.kind() {
            Kind::Enum(names) => names
                .get_value(*number)
                .map_or_else(|| number.to_string(), |name| name.name().to_owned()),
            _ => number.to_string(),
        },
        // A time; its JSON is the usual text.
        Value::Message(message) if is_value(message) => {
            let json = serde_json::to_value(message).unwrap_or_default();
            json.as_str().unwrap_or_default().to_owned()
        }
        Value::Message(message) => entries_of(message)
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join(", "),
        Value::List(items) => {
            items.iter().map(|item| text_of(item, field)).collect::<Vec<_>>().join("\n")
        }
        Value::Map(map) => {
            let mut lines: Vec<String> = map
                .iter()
                .map(|(key, value)| match key {
                    MapKey::String(key) => format!("{key}={}", text_of(value, field)),
                    key => format!("{key:?}={}", text_of(value, field)),
                })
                .collect();
            lines.sort();
            lines.join("\n")
        }
        other => other.to_string(),
    }
}
