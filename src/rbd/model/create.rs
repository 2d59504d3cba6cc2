//! Making a new, empty image: the beginning of every create, clone and copy.

use std::collections::BTreeMap;

use super::data::Content;
use super::session::Call;
use super::state::{Header, ImageRef, Outcome, Place, State};
use crate::rbd::{Errno, Features, ImageOptions};

/// log2 of the object size of images that say nothing else.
pub(super) const DEFAULT_ORDER: u8 = 22;

/// Every feature bit librbd 16 knows.
const KNOWN: u64 = 0x7ff;

/// How a new image is laid out, checked.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) features: Features,
    order: u8,
    stripe_unit: u64,
    stripe_count: u64,
    data_pool: Option<String>,
}

/// What a clone inherits of its parent's features: all but those that follow from other options.
pub(super) fn inherited(features: Features) -> Features {
    let implicit = Features::STRIPING.0 | Features::FAST_DIFF.0 | Features::DATA_POOL.0;
    Features(features.0 & !implicit)
}

impl Layout {
    /// `options`, with `features` and `order` where it says nothing. `EDOM` for an order out of
    /// range, `ENOSYS` for unknown features, `EINVAL` for features without what they need and for a
    /// stripe that does not divide the object.
    pub(super) fn new(options: &ImageOptions, features: Features, order: u8) -> Outcome<Layout> {
        let order = options.order.unwrap_or(order);
        if !(12..=25).contains(&order) {
            return Err(Errno::EDOM);
        }
        let mut features = options.features.unwrap_or(features);
        if features.0 & !KNOWN != 0 {
            return Err(Errno::ENOSYS);
        }
        let needs = |features: Features, of: Features, what: Features| {
            if features.contains(of) && !features.contains(what) {
                Err(Errno::EINVAL)
            } else {
                Ok(())
            }
        };
        if features.contains(Features::OBJECT_MAP) {
            features = features.union(Features::FAST_DIFF);
        }
        needs(features, Features::FAST_DIFF, Features::OBJECT_MAP)?;
        needs(features, Features::OBJECT_MAP, Features::EXCLUSIVE_LOCK)?;
        needs(features, Features::JOURNALING, Features::EXCLUSIVE_LOCK)?;
        let object = 1u64 << order;
        let (stripe_unit, stripe_count) = match (options.stripe_unit, options.stripe_count) {
            (None, None) => (object, 1),
            (Some(unit), Some(count)) if unit > 0 && count > 0 && object.is_multiple_of(unit) => {
                (unit, count)
            }
            _ => return Err(Errno::EINVAL),
        };
        features = Features(features.0 & !(Features::STRIPING.0 | Features::DATA_POOL.0));
        if (stripe_unit, stripe_count) != (object, 1) {
            features = features.union(Features::STRIPING);
        }
        Ok(Layout {
            features,
            order,
            stripe_unit,
            stripe_count,
            data_pool: options.data_pool.clone(),
        })
    }
}

/// `EEXIST` when an id object of that name is there, which librbd looks at before anything else
/// about a new image.
pub(super) fn check_free(state: &mut State, place: &Place, name: &str) -> Outcome<()> {
    if state.space(place).id_objects.contains_key(name) { Err(Errno::EEXIST) } else { Ok(()) }
}

/// Takes back what [`create`] made, for a call that fails later.
pub(super) fn take_back(call: &mut Call<'_>, image: &ImageRef, name: &str) -> Outcome<()> {
    call.state().space(&image.place).headers.remove(&*image.id);
    call.step()?;
    call.state().space(&image.place).id_objects.remove(name);
    call.step()?;
    let mut state = call.state();
    let space = state.space(&image.place);
    space.names.remove(name);
    space.ids.remove(&*image.id);
    call.step()
}

/// Makes an empty image of `size` bytes. `EEXIST` when the name is taken in the directory or by an
/// id object, `ENOENT` when the data pool or the namespace does not exist.
pub(super) fn create(
    call: &mut Call<'_>,
    place: &Place,
    name: &str,
    size: u64,
    layout: &Layout,
) -> Outcome<ImageRef> {
    let mut features = layout.features;
    let mut state = call.state();
    if let Some(pool) = layout.data_pool.as_deref().filter(|pool| *pool != &*place.pool) {
        if !state.pools.contains_key(pool) {
            return Err(Errno::ENOENT);
        }
        features = features.union(Features::DATA_POOL);
    }
    state.check_registered(place)?;
    let id = state.new_image_id();
    let full = state.check_full(&place.pool);
    let space = state.space(place);
    if space.id_objects.contains_key(name) || space.names.contains_key(name) {
        return Err(Errno::EEXIST);
    }
    space.names.insert(name.to_owned(), id.clone());
    space.ids.insert(id.clone(), name.to_owned());
    call.step()?;
    if let Err(errno) = full {
        space.names.remove(name);
        space.ids.remove(&id);
        call.step()?;
        return Err(errno);
    }
    space.id_objects.insert(name.to_owned(), id.clone());
    call.step()?;
    let header = Header {
        size,
        order: layout.order,
        features,
        stripe_unit: layout.stripe_unit,
        stripe_count: layout.stripe_count,
        link: None,
        clone_child: false,
        snapshots: BTreeMap::new(),
        metadata: BTreeMap::new(),
        content: Content::default(),
        watches: Vec::new(),
        hold: None,
        group: None,
    };
    space.headers.insert(id.clone(), header);
    drop(state);
    call.step()?;
    Ok(ImageRef { place: place.clone(), id: id.into() })
}
