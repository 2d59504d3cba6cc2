//! Generates the CSI types and services from `proto/`, without protoc.
//!
//! Three files go to `OUT_DIR`, and `src/csi/proto.rs` includes them: the types (`csi.v1.rs`), the
//! encoded descriptor with its options (`csi_descriptor.bin`), and a `Debug` for each message with
//! a `csi_secret` field (`csi_debug.rs`). Which messages those are is read from the descriptor, so
//! a field that gains the mark can never be printed by a derived `Debug`.

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use protox::prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor, Value};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_file("csi/v1/csi.proto")?;
    fs::write(out_dir.join("csi_descriptor.bin"), compiler.encode_file_descriptor_set())?;

    let mut secret_messages = Vec::new();
    let mut debug_impls = String::new();
    for message in compiler.descriptor_pool().all_messages() {
        if secret_fields(&message)?.is_empty() {
            continue;
        }
        debug_impls.push_str(&redacting_debug(&message)?);
        secret_messages.push(format!(".{}", message.full_name()));
    }
    fs::write(out_dir.join("csi_debug.rs"), debug_impls)?;

    // Each type knows its name in the descriptor, so that any message can be printed by its fields.
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .btree_map(".")
        .skip_debug(secret_messages)
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}

/// The fields of `message` that carry the option `csi_secret`.
fn secret_fields(message: &MessageDescriptor) -> Result<Vec<FieldDescriptor>, Box<dyn Error>> {
    let pool: &DescriptorPool = message.parent_pool();
    let csi_secret = pool
        .get_extension_by_name("csi.v1.csi_secret")
        .ok_or("csi.proto does not define csi_secret")?;
    Ok(message
        .fields()
        .filter(|field| *field.options().get_extension(&csi_secret) == Value::Bool(true))
        .collect())
}

/// The source of a `Debug` that prints every field of `message`, and of a secret map only the keys.
fn redacting_debug(message: &MessageDescriptor) -> Result<String, Box<dyn Error>> {
    if message.parent_message().is_some() {
        return Err(format!(
            "{} is nested: its Rust path is not just its name",
            message.full_name()
        )
        .into());
    }
    let name = message.name();
    let secrets = secret_fields(message)?;
    let mut source = format!(
        "impl ::core::fmt::Debug for {name} {{\n    \
         fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{\n        \
         f.debug_struct(\"{name}\")\n"
    );
    for field in message.fields() {
        let field_name = field.name();
        if secrets.contains(&field) {
            writeln!(
                source,
                "            .field(\"{field_name}\", &KeysOnly(&self.{field_name}))"
            )?;
        } else {
            writeln!(source, "            .field(\"{field_name}\", &self.{field_name})")?;
        }
    }
    source.push_str("            .finish()\n    }\n}\n");
    Ok(source)
}
