//! What keeps an image from being changed or removed: other tools' locks, mirroring, groups.

use std::ffi::{c_char, c_int};
use std::ptr::null_mut;

use super::call::{grow, owned, strings, text};
use super::handle::Handle;
use super::sys::{
    RBD_MIRROR_IMAGE_ENABLED, rados_pool_reverse_lookup, rbd_get_group, rbd_group_info_cleanup,
    rbd_group_info_t, rbd_list_lockers, rbd_mirror_image_get_info,
    rbd_mirror_image_get_info_cleanup, rbd_mirror_image_info_t,
};
use crate::rbd::{Errno, Features, Hold, Result};

/// What the cookies of the exclusive lock begin with, librbd's and krbd's.
const AUTOMATIC: &str = "auto ";

impl Handle {
    /// See [`crate::rbd::Image::hold`]. librbd reads the locks along with the header, so this asks
    /// the cluster for nothing unless the image has the journaling feature.
    pub(super) fn hold(&self) -> Result<Option<Hold>> {
        if let Some(lock) = self.foreign_lock()? {
            return Ok(Some(lock));
        }
        let features = self.info()?.features;
        let demoted = features.contains(Features::NON_PRIMARY)
            || features.contains(Features::JOURNALING) && self.is_demoted()?;
        Ok(demoted.then_some(Hold::Mirrored))
    }

    /// The first lock that is not the exclusive lock.
    fn foreign_lock(&self) -> Result<Option<Hold>> {
        let call = "rbd_list_lockers";
        let mut room = [64; 4];
        loop {
            let [mut tag, mut clients, mut cookies, mut addresses] =
                room.map(|length| vec![0; length]);
            let [mut tag_length, mut clients_length, mut cookies_length, mut addresses_length] =
                room;
            let mut exclusive = 0;
            // SAFETY: the image is open; each buffer has the length given.
            let found = unsafe {
                rbd_list_lockers(
                    self.raw(),
                    &raw mut exclusive,
                    tag.as_mut_ptr(),
                    &raw mut tag_length,
                    clients.as_mut_ptr(),
                    &raw mut clients_length,
                    cookies.as_mut_ptr(),
                    &raw mut cookies_length,
                    addresses.as_mut_ptr(),
                    &raw mut addresses_length,
                )
            };
            if found == -(Errno::ERANGE as isize) {
                // It says how much it wants of each, and there may be more by the next call.
                let wanted = [tag_length, clients_length, cookies_length, addresses_length];
                room = std::array::from_fn(|index| wanted[index].max(room[index] * 2));
                continue;
            }
            self.check(c_int::try_from(found.min(0)).unwrap_or(c_int::MIN), call)?;
            if found == 0 {
                return Ok(None);
            }
            let all = |buffer: &[c_char], length: usize| strings(&buffer[..length]);
            let ids = all(&cookies, cookies_length);
            let Some(index) = ids.iter().position(|id| !id.starts_with(AUTOMATIC)) else {
                return Ok(None);
            };
            let nth = |list: Vec<String>| list.into_iter().nth(index).unwrap_or_default();
            return Ok(Some(Hold::Lock {
                id: ids[index].clone(),
                client: nth(all(&clients, clients_length)),
                address: nth(all(&addresses, addresses_length)),
            }));
        }
    }

    /// Whether the image is mirrored by its journal, and not primary here.
    fn is_demoted(&self) -> Result<bool> {
        let call = "rbd_mirror_image_get_info";
        let mut info = rbd_mirror_image_info_t { global_id: null_mut(), state: 0, primary: false };
        // SAFETY: the image is open; `info` has the size given.
        let code = unsafe {
            rbd_mirror_image_get_info(
                self.raw(),
                &raw mut info,
                size_of::<rbd_mirror_image_info_t>(),
            )
        };
        match self.check(code, call) {
            // Mirroring is off for the pool, or for the image.
            Err(error) if matches!(error.errno, Errno::ENOENT | Errno::EINVAL) => return Ok(false),
            other => other?,
        };
        // SAFETY: on success librbd filled `info`, which is cleaned up once.
        unsafe { rbd_mirror_image_get_info_cleanup(&raw mut info) };
        Ok(info.state == RBD_MIRROR_IMAGE_ENABLED && !info.primary)
    }

    /// See [`crate::rbd::Image::group`].
    pub(super) fn group(&self) -> Result<Option<String>> {
        let call = "rbd_get_group";
        let mut info = rbd_group_info_t { name: null_mut(), pool: -1 };
        let size = size_of::<rbd_group_info_t>();
        // SAFETY: the image is open; `info` has the size given.
        let code = unsafe { rbd_get_group(self.raw(), &raw mut info, size) };
        self.check(code, call)?;
        let pool = info.pool;
        // SAFETY: on success librbd made the name, if the image has a group, and it is freed once,
        // after it was copied.
        let name = unsafe {
            let name = owned(info.name);
            rbd_group_info_cleanup(&raw mut info, size);
            name
        };
        if pool < 0 || name.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.ioctx().spec_in(&self.pool_name(pool)?, &name)))
    }

    fn pool_name(&self, id: i64) -> Result<String> {
        let connection = self.ioctx().connection();
        let (code, name) = grow(0, 128, |name, length| {
            // SAFETY: the connection is up; there is room for `length` bytes at `name`.
            unsafe { rados_pool_reverse_lookup(connection.raw(), id, name, *length) }
        });
        connection.check(code, "rados_pool_reverse_lookup", || format!("pool {id}"))?;
        Ok(text(&name))
    }
}
