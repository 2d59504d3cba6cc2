//! One call, or a few that belong together, drawn at random. Names come from few, so that calls
//! meet.

use cinderblock::rbd::model::{PoolGraph, SnapshotGraph};
use cinderblock::rbd::{CloneFormat, Features, SnapshotKind};

use super::common::random::Random;

/// The names of images.
pub(crate) const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const SNAPSHOTS: [&str; 3] = ["s", "t", "u"];

/// Bytes in a data object of most images: small, so that objects are crossed often.
pub(crate) const ORDER: u8 = 16;

/// How many images may be held open.
pub(crate) const SLOTS: u64 = 3;

/// An operation in one of the two pools.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) pool: usize,
    pub(crate) action: Action,
}

#[derive(Debug, Clone)]
pub(crate) enum Action {
    Create {
        name: &'static str,
        size: u64,
        order: u8,
        features: Features,
    },
    Clone {
        parent_pool: usize,
        parent: &'static str,
        snapshot: &'static str,
        name: &'static str,
        format: CloneFormat,
        features: Option<Features>,
    },
    Remove {
        name: &'static str,
    },
    Rename {
        from: &'static str,
        to: &'static str,
    },
    ImageId {
        name: &'static str,
    },
    ListImages,
    TrashMove {
        name: &'static str,
        delay: u64,
    },
    TrashRestore {
        image: u64,
        name: &'static str,
    },
    TrashRemove {
        image: u64,
        force: bool,
    },
    TrashGet {
        image: u64,
    },
    TrashList,
    Open {
        slot: u64,
        key: Key,
        read_only: bool,
    },
    Close {
        slot: u64,
    },
    /// On an image that is open, or opened for it.
    On {
        target: Target,
        action: ImageAction,
    },
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Key {
    Name(&'static str),
    /// The image created as the so-manieth, modulo their number.
    Id(u64),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    Slot(u64),
    Opened(Key, bool),
}

#[derive(Debug, Clone)]
pub(crate) enum ImageAction {
    Name,
    Info,
    Resize { size: u64, allow_shrink: bool },
    Snapshots,
    CreateSnapshot { name: &'static str },
    RemoveSnapshot { name: &'static str },
    RemoveSnapshotById { at: At },
    Protect { name: &'static str },
    Unprotect { name: &'static str },
    RenameSnapshot { from: &'static str, to: &'static str },
    Parent { at: At },
    Children { of: At },
    Flatten,
    Metadata { key: &'static str },
    MetadataSet { key: &'static str, value: &'static str },
    MetadataRemove { key: &'static str },
    Watchers,
    Read { at: At },
    Write { offset: u64, length: u64, byte: u8 },
    Discard { offset: u64, length: u64 },
    Diff { at: At, since: At, include_parent: bool, whole_object: bool },
}

/// The head, or the snapshot of the image at this place in its list, modulo their number.
pub(crate) type At = Option<u64>;

/// What there is in one pool now, from the model: most operations are about that.
#[derive(Debug, Default)]
pub(crate) struct Present {
    images: Vec<(&'static str, Vec<&'static str>)>,
}

impl Present {
    /// The images in the directory of `pool` with their user snapshots.
    pub(crate) fn of(pool: &PoolGraph) -> Present {
        let user = |snapshot: &SnapshotGraph| snapshot.kind == SnapshotKind::User;
        let snapshots = |id: &str| {
            let found = pool.images.get(id).into_iter().flat_map(|image| image.snapshots.values());
            let names: Vec<_> =
                found.filter(|snapshot| user(snapshot)).map(|snapshot| &snapshot.name).collect();
            SNAPSHOTS.into_iter().filter(|name| names.iter().any(|known| known == name)).collect()
        };
        let images = NAMES
            .into_iter()
            .filter_map(|name| Some((name, snapshots(pool.names.get(name)?))))
            .collect();
        Present { images }
    }

    /// The name of an image that is there, mostly.
    fn image(&self, random: &mut Random) -> &'static str {
        if self.images.is_empty() || random.once_in(12) {
            return random.pick(&NAMES);
        }
        let place = random.below(self.images.len() as u64);
        self.images[usize::try_from(place).unwrap()].0
    }

    /// The name of a snapshot of `image` that is there, mostly.
    fn snapshot(&self, random: &mut Random, image: &str) -> &'static str {
        let known =
            self.images.iter().find(|(name, _)| *name == image).map_or(&[][..], |(_, known)| known);
        if known.is_empty() || random.once_in(8) {
            random.pick(&SNAPSHOTS)
        } else {
            random.pick(known)
        }
    }

    /// An image that has a snapshot, mostly.
    fn parent(&self, random: &mut Random) -> &'static str {
        let parents: Vec<_> = self
            .images
            .iter()
            .filter(|(_, known)| !known.is_empty())
            .map(|(name, _)| *name)
            .collect();
        if parents.is_empty() { self.image(random) } else { random.pick(&parents) }
    }
}

impl Operation {
    /// Draws one, knowing what is in each pool.
    pub(crate) fn random(random: &mut Random, present: &[Present; 2]) -> Operation {
        let pool = usize::from(random.once_in(5));
        let action = if present[pool].images.is_empty() && random.once_in(2) {
            create(random)
        } else {
            action(random, pool, present)
        };
        Operation { pool, action }
    }
}

/// Sizes around object boundaries.
fn size(random: &mut Random) -> u64 {
    random.below(6) * (1 << ORDER) + random.pick(&[0, 0, 1, 4096, 5000])
}

fn features(random: &mut Random) -> Features {
    let layering = Features::LAYERING;
    let locked = layering.union(Features::EXCLUSIVE_LOCK);
    random.pick(&[
        Features::DEFAULT,
        Features::DEFAULT,
        layering,
        layering.union(Features::DEEP_FLATTEN),
        locked.union(Features::OBJECT_MAP).union(Features::FAST_DIFF),
        locked,
        Features::EXCLUSIVE_LOCK,
        Features::OBJECT_MAP,
    ])
}

fn at(random: &mut Random) -> At {
    if random.once_in(2) { None } else { Some(random.below(4)) }
}

fn create(random: &mut Random) -> Action {
    let order = random.pick(&[ORDER, ORDER, ORDER, ORDER, 12, 22, 26]);
    Action::Create {
        name: random.pick(&NAMES),
        size: size(random),
        order,
        features: features(random),
    }
}

fn action(random: &mut Random, pool: usize, all: &[Present; 2]) -> Action {
    let present = &all[pool];
    match random.below(100) {
        0..6 => create(random),
        6..16 => {
            let parent_pool = if random.once_in(5) { 1 - pool } else { pool };
            let parent = all[parent_pool].parent(random);
            Action::Clone {
                parent_pool,
                parent,
                snapshot: all[parent_pool].snapshot(random, parent),
                name: random.pick(&NAMES),
                format: random.pick(&[CloneFormat::V1, CloneFormat::V2, CloneFormat::V2]),
                features: if random.once_in(3) { Some(features(random)) } else { None },
            }
        }
        16..20 => Action::Remove { name: present.image(random) },
        20..22 => Action::Rename { from: present.image(random), to: random.pick(&NAMES) },
        22 => Action::ImageId { name: random.pick(&NAMES) },
        23 => Action::ListImages,
        24..27 => {
            Action::TrashMove { name: present.image(random), delay: random.pick(&[0, 0, 3600]) }
        }
        27..29 => Action::TrashRestore { image: random.below(16), name: random.pick(&NAMES) },
        29..31 => Action::TrashRemove { image: random.below(16), force: random.once_in(2) },
        31 => Action::TrashGet { image: random.below(16) },
        32 => Action::TrashList,
        33..36 => Action::Open {
            slot: random.below(SLOTS),
            key: Key::Name(present.image(random)),
            read_only: random.once_in(3),
        },
        36..39 => Action::Close { slot: random.below(SLOTS) },
        39..45 => Action::On {
            target: Target::Slot(random.below(SLOTS)),
            action: image_action(random, present, ""),
        },
        45..50 => {
            let target = Target::Opened(Key::Id(random.below(16)), random.once_in(12));
            Action::On { target, action: image_action(random, present, "") }
        }
        _ => {
            let image = present.image(random);
            let target = Target::Opened(Key::Name(image), random.once_in(16));
            Action::On { target, action: image_action(random, present, image) }
        }
    }
}

fn image_action(random: &mut Random, present: &Present, image: &str) -> ImageAction {
    let known = |random: &mut Random| present.snapshot(random, image);
    match random.below(78) {
        0 => ImageAction::Name,
        1 => ImageAction::Info,
        2..5 => ImageAction::Resize { size: size(random), allow_shrink: !random.once_in(4) },
        5 => ImageAction::Snapshots,
        6..18 => ImageAction::CreateSnapshot { name: random.pick(&SNAPSHOTS) },
        18..23 => ImageAction::RemoveSnapshot { name: known(random) },
        23..26 => ImageAction::RemoveSnapshotById { at: at(random) },
        26..32 => ImageAction::Protect { name: known(random) },
        32..36 => ImageAction::Unprotect { name: known(random) },
        36 => ImageAction::RenameSnapshot { from: known(random), to: random.pick(&SNAPSHOTS) },
        37..40 => ImageAction::Parent { at: at(random) },
        40..43 => ImageAction::Children { of: at(random) },
        43..50 => ImageAction::Flatten,
        50 => ImageAction::Metadata { key: "k" },
        51 => ImageAction::MetadataSet {
            key: random.pick(&["k", "l"]),
            value: random.pick(&["1", "", "zwölf"]),
        },
        52 => ImageAction::MetadataRemove { key: random.pick(&["k", "l"]) },
        53 => ImageAction::Watchers,
        54..57 => ImageAction::Read { at: at(random) },
        57..68 => ImageAction::Write {
            offset: size(random),
            length: random.pick(&[1, 512, 4096, 10_000, 1 << ORDER]),
            byte: random.pick(&[0, 1, 2]),
        },
        68..72 => {
            let length = random.pick(&[1, 4096, 1 << ORDER, 3 << ORDER]);
            ImageAction::Discard { offset: size(random), length }
        }
        _ => ImageAction::Diff {
            at: at(random),
            since: at(random),
            include_parent: random.once_in(2),
            whole_object: random.once_in(2),
        },
    }
}
