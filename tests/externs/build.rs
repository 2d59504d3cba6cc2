//! Generates the checks of `src/rbd/ceph/sys.rs` against the installed librados and librbd headers,
//! or against those in the folder that the environment variable `CEPH_HEADERS` names, which are of
//! a release that may be newer.
//!
//! - Functions: each is declared a second time in C, with the types its Rust declaration says,
//!   after the headers. A difference is an error of the C compiler ("conflicting types"). This
//!   covers the functions taken from the `ceph` crate too. (ctest only looks whether the symbol is
//!   the same.)
//! - Functions of `newer.rs`, which are looked up by name: the same, where the headers have them.
//!   Headers of Ceph 18 and later must have them all.
//! - Structs, constants and type aliases: ctest generates C and Rust code whose answers
//!   `compare.rs` compares.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use quote::ToTokens;
use syn::{ForeignItem, GenericArgument, Item, PathArguments, ReturnType, Type, UseTree};

const SYS: &str = "../../src/rbd/ceph/sys.rs";
const NEWER: &str = "../../src/rbd/ceph/newer.rs";
const HEADERS: [&str; 2] = ["rados/librados.h", "rbd/librbd.h"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SYS}");
    println!("cargo::rerun-if-changed={NEWER}");
    println!("cargo::rerun-if-env-changed=CEPH_HEADERS");
    for header in HEADERS {
        println!("cargo::rerun-if-changed=/usr/include/{header}");
    }
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    let sys = parse(Path::new(SYS));
    let borrowed = borrowed(&sys);
    declare_again(&out, &sys, &borrowed);
    compare(&out, sys, &borrowed);
}

/// The folder to look for headers in before the installed ones.
fn newer_headers() -> Option<PathBuf> {
    env::var_os("CEPH_HEADERS").map(PathBuf::from)
}

fn parse(path: &Path) -> syn::File {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names that `mod rados` takes from the `ceph` crate.
fn borrowed(sys: &syn::File) -> BTreeSet<String> {
    fn names(tree: &UseTree, into: &mut BTreeSet<String>) {
        match tree {
            UseTree::Path(path) => names(&path.tree, into),
            UseTree::Group(group) => group.items.iter().for_each(|tree| names(tree, into)),
            UseTree::Name(name) => drop(into.insert(name.ident.to_string())),
            other => panic!("{}: name each item", other.to_token_stream()),
        }
    }
    let module = sys.items.iter().find_map(|item| match item {
        Item::Mod(module) if module.ident == "rados" => module.content.as_ref(),
        _ => None,
    });
    let mut borrowed = BTreeSet::new();
    for item in &module.expect("sys.rs has a module `rados`").1 {
        match item {
            Item::Use(item) => names(&item.tree, &mut borrowed),
            other => panic!("{}: `rados` only takes from the ceph crate", other.to_token_stream()),
        }
    }
    borrowed
}

/// Compiles a second declaration of every function, after those of the headers.
fn declare_again(out: &Path, sys: &syn::File, borrowed: &BTreeSet<String>) {
    let mut code: String = HEADERS.iter().map(|header| format!("#include <{header}>\n")).collect();
    let mut left = borrowed.clone();
    for item in &sys.items {
        match item {
            Item::Type(alias) => {
                // Callbacks: C11 allows to repeat a typedef that says the same.
                if let Some(callback) = callback(&alias.ty, &alias.ident.to_string()) {
                    code += &format!("typedef {callback};\n");
                }
            }
            Item::ForeignMod(block) => {
                functions(&block.items).for_each(|f| code += &declaration(f))
            }
            _ => {}
        }
    }
    for item in parse(&ceph_crate().join("src/rados.rs")).items {
        match item {
            Item::ForeignMod(block) => functions(&block.items)
                .filter(|function| left.remove(&function.sig.ident.to_string()))
                .for_each(|function| code += &declaration(function)),
            Item::Type(alias) => drop(left.remove(&alias.ident.to_string())),
            _ => {}
        }
    }
    assert!(left.is_empty(), "the ceph crate does not declare {left:?}");
    code += "#if LIBRBD_VERSION_CODE >= LIBRBD_VERSION(1, 18, 0)\n";
    for item in parse(Path::new(NEWER)).items {
        match item {
            Item::Type(alias) => {
                let Type::BareFn(function) = &*alias.ty else {
                    panic!("{}: not a function", alias.ident)
                };
                let parameters =
                    list(function.inputs.iter().map(|parameter| c_type(&parameter.ty)));
                let name = &alias.ident;
                // A name that the headers do not declare is an error here.
                code += &format!("_Static_assert(sizeof(&{name}) > 0, \"\");\n");
                code += &format!("{} {name}({parameters});\n", returned(&function.output));
            }
            Item::Const(constant) => {
                let value = constant.expr.to_token_stream();
                code += &format!("_Static_assert({} == {value}, \"\");\n", constant.ident);
            }
            _ => {}
        }
    }
    code += "#endif\n";
    let file = out.join("declarations.c");
    fs::write(&file, code).unwrap();
    let mut compiler = cc::Build::new();
    compiler.includes(newer_headers()).file(file).std("gnu11").warnings_into_errors(true);
    compiler.compile("declarations");
}

fn functions(items: &[ForeignItem]) -> impl Iterator<Item = &syn::ForeignItemFn> {
    items.iter().filter_map(|item| match item {
        ForeignItem::Fn(function) => Some(function),
        _ => None,
    })
}

fn declaration(function: &syn::ForeignItemFn) -> String {
    let parameters = function.sig.inputs.iter().map(|parameter| match parameter {
        syn::FnArg::Typed(parameter) => c_type(&parameter.ty),
        syn::FnArg::Receiver(_) => unreachable!("a foreign function has no receiver"),
    });
    let result = returned(&function.sig.output);
    format!("{result} {}({});\n", function.sig.ident, list(parameters))
}

/// The C declarator of the callback type `Option<unsafe extern "C" fn(…)>`, if `ty` is one.
fn callback(ty: &Type, name: &str) -> Option<String> {
    let Type::Path(path) = ty else { return None };
    let PathArguments::AngleBracketed(arguments) = &path.path.segments.last()?.arguments else {
        return None;
    };
    let GenericArgument::Type(Type::BareFn(function)) = arguments.args.first()? else {
        return None;
    };
    let parameters = list(function.inputs.iter().map(|parameter| c_type(&parameter.ty)));
    Some(format!("{} (*{name})({parameters})", returned(&function.output)))
}

fn returned(output: &ReturnType) -> String {
    match output {
        ReturnType::Default => "void".to_owned(),
        ReturnType::Type(_, ty) => c_type(ty),
    }
}

fn list(parameters: impl Iterator<Item = String>) -> String {
    let parameters: Vec<String> = parameters.collect();
    if parameters.is_empty() { "void".to_owned() } else { parameters.join(", ") }
}

fn c_type(ty: &Type) -> String {
    match ty {
        Type::Ptr(pointer) => {
            let constness = if pointer.const_token.is_some() { " const" } else { "" };
            format!("{}{constness} *", c_type(&pointer.elem))
        }
        Type::Tuple(tuple) if tuple.elems.is_empty() => "void".to_owned(),
        Type::Path(path) => {
            let name =
                path.path.segments.last().expect("a path has a last segment").ident.to_string();
            match name.as_str() {
                "c_char" => "char",
                "c_uchar" => "unsigned char",
                "c_int" => "int",
                "c_uint" => "unsigned int",
                "c_void" => "void",
                "u8" => "uint8_t",
                "u32" => "uint32_t",
                "u64" => "uint64_t",
                "i64" => "int64_t",
                "timespec" => "struct timespec",
                // C's own name.
                name => name,
            }
            .to_owned()
        }
        other => panic!("{}: no C type is known for this", other.to_token_stream()),
    }
}

/// The folder of the `ceph` crate, as Cargo resolved it.
///
/// Only the crates of the platform that is built for have to be there. Cargo fetches those that a
/// build of this package alone has not fetched.
fn ceph_crate() -> PathBuf {
    let output = Command::new(env::var("CARGO").unwrap())
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform"])
        .arg(env::var("TARGET").unwrap())
        .output()
        .expect("cargo runs: it runs this");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().expect("cargo metadata lists packages");
    let ceph =
        packages.iter().find(|package| package["name"] == "ceph").expect("ceph is a dependency");
    Path::new(ceph["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}

/// Has ctest compare structs, constants and aliases. It expands the file on its own, without the
/// `ceph` crate, so it gets a copy in which the handle types taken from there are spelt out.
fn compare(out: &Path, mut sys: syn::File, borrowed: &BTreeSet<String>) {
    sys.items.retain(|item| match item {
        Item::Mod(_) => false,
        Item::Use(item) => !item.tree.to_token_stream().to_string().starts_with("rados"),
        _ => true,
    });
    for handle in borrowed.iter().filter(|name| name.ends_with("_t")) {
        let alias = format!("pub type {handle} = *mut c_void;");
        sys.items.push(syn::parse_str(&alias).expect("an alias"));
    }
    let copy = out.join("sys.rs");
    fs::write(&copy, sys.into_token_stream().to_string()).unwrap();

    let mut generator = ctest::TestGenerator::new();
    generator.edition(2024);
    if let Some(folder) = newer_headers() {
        generator.include(folder);
    }
    for header in HEADERS {
        generator.header(header);
    }
    // C has most structs as typedefs only, `timespec` as a struct only.
    generator.rename_struct_ty(|name| (name != "timespec").then(|| name.to_owned()));
    generator.skip_alias(|alias| alias.ident() == "diff_callback");
    ctest::generate_test(&mut generator, copy, "ctest.rs").unwrap();
}
