//! What a pool at its quota refuses and what it lets through: the same in the model.

use cinderblock::rbd::{CloneFormat, Errno, Features, ImageOptions};

use super::common::{Lab, wait_until};
use super::operation::{Action, ImageAction, Key, ORDER, Operation, Target};
use super::pools::Pools;
use super::side::Side;

fn operation(action: Action) -> Operation {
    Operation { pool: 0, action }
}

fn on(name: &'static str, action: ImageAction) -> Operation {
    operation(Action::On { target: Target::Opened(Key::Name(name), false), action })
}

fn write(name: &'static str, offset: u64) -> Operation {
    on(name, ImageAction::Write { offset, length: 4096, byte: 1 })
}

fn create(name: &'static str) -> Operation {
    operation(Action::Create { name, size: 8 << ORDER, order: ORDER, features: Features::DEFAULT })
}

fn clone(name: &'static str, format: CloneFormat) -> Operation {
    operation(Action::Clone {
        parent_pool: 0,
        parent: "a",
        snapshot: "s",
        name,
        format,
        features: None,
    })
}

fn remove(name: &'static str) -> Operation {
    operation(Action::Remove { name })
}

fn trash_move(name: &'static str) -> Operation {
    operation(Action::TrashMove { name, delay: 0 })
}

fn restore(image: u64, name: &'static str) -> Operation {
    operation(Action::TrashRestore { image, name })
}

fn before() -> Vec<Operation> {
    vec![
        create("a"),
        write("a", 0),
        on("a", ImageAction::CreateSnapshot { name: "s" }),
        on("a", ImageAction::Protect { name: "s" }),
        clone("b", CloneFormat::V1),
        clone("c", CloneFormat::V2),
    ]
}

fn while_full() -> Vec<Operation> {
    vec![
        create("d"),
        clone("d", CloneFormat::V1),
        clone("d", CloneFormat::V2),
        operation(Action::Rename { from: "c", to: "d" }),
        on("a", ImageAction::CreateSnapshot { name: "t" }),
        on("a", ImageAction::RenameSnapshot { from: "t", to: "u" }),
        on("a", ImageAction::Resize { size: 9 << ORDER, allow_shrink: false }),
        on("a", ImageAction::Resize { size: 8 << ORDER, allow_shrink: true }),
        on("a", ImageAction::MetadataSet { key: "k", value: "1" }),
        on("a", ImageAction::MetadataRemove { key: "k" }),
        write("a", 0),
        write("a", 4096),
        write("a", 1 << ORDER),
        write("b", 0),
        on("b", ImageAction::Flatten),
        on("b", ImageAction::Parent { at: None }),
        on("a", ImageAction::Discard { offset: 0, length: 100 }),
        remove("d"),
        on("a", ImageAction::RemoveSnapshot { name: "u" }),
    ]
}

/// With a trash that was used before.
fn while_full_again() -> Vec<Operation> {
    vec![
        trash_move("b"),
        restore(1, "d"),
        operation(Action::TrashRemove { image: 1, force: true }),
        remove("c"),
        on("a", ImageAction::Unprotect { name: "s" }),
    ]
}

fn after() -> Vec<Operation> {
    vec![
        restore(1, "d"),
        on("d", ImageAction::Flatten),
        remove("d"),
        on("a", ImageAction::Unprotect { name: "s" }),
    ]
}

#[test]
fn a_full_pool_refuses_the_same() {
    let lab = Lab::from_environment();
    let cluster = lab.connect();
    let pools = Pools::new(&*cluster);
    let name = pools.names()[0].to_owned();
    let model = pools.model();
    let mut real = Side::new(&*cluster, &pools);
    let mut modelled = Side::new(&*model.connect().cluster(), &pools);
    let mut both = |operations: Vec<Operation>| {
        for operation in operations {
            let (expected, answered) = (real.run(&operation), modelled.run(&operation));
            assert_eq!(answered, expected, "the model (left) and librbd (right) on {operation:?}");
        }
    };
    let pool = cluster.pool(&name, "").unwrap();
    let set_full = |full: bool| {
        let bytes = u8::from(full);
        pools.command(&format!(
            r#"{{"prefix":"osd pool set-quota","pool":"{name}","field":"max_bytes","val":"{bytes}"}}"#
        ));
        wait_until("the pool has noticed its quota", || {
            let refused = match pool.create_image("probe", 1 << ORDER, &ImageOptions::default()) {
                Ok(()) => {
                    pool.remove_image("probe").unwrap();
                    false
                }
                Err(error) => error.errno == Errno::EDQUOT,
            };
            if refused == full { Ok(()) } else { Err(refused) }
        });
        model.set_full(&name, full.then_some(Errno::EDQUOT));
    };
    both(before());
    set_full(true);
    both(while_full());
    set_full(false);
    both(vec![create("d"), remove("d")]);
    set_full(true);
    both(while_full_again());
    set_full(false);
    both(after());
    assert_eq!(modelled.graph(), real.graph());
}
