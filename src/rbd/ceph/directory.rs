//! An image's name in librbd's own objects, for the questions librbd's functions do not answer.
//!
//! The name `n` of an image with id `i` is in three places: the object `rbd_id.n` holds `i`, and
//! the omap of `rbd_directory` holds `name_n` and `id_i`. `rbd_rename` writes `rbd_id.to`, then the
//! directory (both keys in one operation), then removes `rbd_id.from`. Killed in between, it leaves
//! two id objects, and librbd refuses to go on: the new name is taken.

use std::ffi::c_char;
use std::thread;
use std::time::Duration;

use super::call::c_string;
use super::ioctx::Ioctx;
use super::omap;
use super::sys::{rados, rbd_rename};
use super::trash;
use crate::rbd::{Errno, Error, ImageKey, Result, Tolerate};

const DIRECTORY: &str = "rbd_directory";

/// The object whose omap lists the trash.
pub(super) const TRASH: &str = "rbd_trash";

/// How many times [`insist`] makes a call again.
const INSISTENCE: u32 = 20;
/// How long before that.
const PAUSE: Duration = Duration::from_millis(10);

fn id_object(name: &str) -> String {
    format!("rbd_id.{name}")
}

/// What `rbd_id.<name>` holds, if it is there.
pub(super) fn image_id(ioctx: &Ioctx, name: &str) -> Result<Option<String>> {
    let call = "rados_read";
    let object = id_object(name);
    let c_object = c_string(&object, call)?;
    let mut buffer = [0_u8; 256];
    // SAFETY: the context is valid, the name NUL-terminated; the buffer has the length given.
    let code = unsafe {
        let data = buffer.as_mut_ptr().cast::<c_char>();
        rados::rados_read(ioctx.raw(), c_object.as_ptr(), data, buffer.len(), 0)
    };
    match ioctx.check(code, call, || ioctx.spec(&object)) {
        Err(error) if error.errno == Errno::ENOENT => Ok(None),
        Err(error) => Err(error),
        Ok(_) => decode(&buffer)
            .map(Some)
            .ok_or_else(|| Error::new(Errno::EBADMSG, call, ioctx.spec(&object))),
    }
}

/// The RADOS object of the header of the image with this id.
pub(super) fn header(id: &str) -> String {
    format!("rbd_header.{id}")
}

/// Makes a call on something, and makes it again when it says `ENOENT` although `is_there`.
///
/// librbd reads the list of an image's snapshots and then the snapshots. It begins anew when one of
/// them has gone in between, at most ten times. Where many are removed at once it then finds no
/// image, no parent of one, or no snapshot. What stays `ENOENT` is half removed, or hangs on what
/// is gone.
pub(super) fn insist<T>(
    is_there: impl Fn() -> Result<bool>,
    mut call: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut times = 0;
    loop {
        match call() {
            Err(error) if error.errno == Errno::ENOENT && times < INSISTENCE => {
                if !is_there()? {
                    return Err(error);
                }
            }
            other => return other,
        }
        times += 1;
        thread::sleep(PAUSE);
    }
}

/// Whether the image has a header: without one, it does not open.
pub(super) fn has_header(ioctx: &Ioctx, image: ImageKey<'_>) -> Result<bool> {
    let id = match image {
        ImageKey::Id(id) => id.to_owned(),
        ImageKey::Name(name) => match image_id(ioctx, name)? {
            Some(id) => id,
            None => return Ok(false),
        },
    };
    Ok(!omap::get(ioctx, &header(&id), &["size"])?.is_empty())
}

/// The name of the image with this id now, or the one it had before it went to the trash. An open
/// image does not know: no client tells it of a rename.
pub(super) fn image_name(ioctx: &Ioctx, id: &str) -> Result<String> {
    let key = format!("id_{id}");
    if let Some(value) = omap::get(ioctx, DIRECTORY, &[&key])?.remove(&key) {
        return decode(&value)
            .ok_or_else(|| Error::new(Errno::EBADMSG, "image name", ioctx.spec(id)));
    }
    let entry = trash::get(ioctx, id)?
        .ok_or_else(|| Error::new(Errno::ENOENT, "image name", ioctx.spec(id)))?;
    Ok(entry.name)
}

/// Ceph's encoding of a string: its length in four bytes, the least significant first, then its
/// bytes.
fn decode(buffer: &[u8]) -> Option<String> {
    let (length, rest) = buffer.split_first_chunk::<4>()?;
    let text = rest.get(..u32::from_le_bytes(*length) as usize)?;
    if text.is_empty() { None } else { String::from_utf8(text.to_vec()).ok() }
}

/// Whether the directory has the name, be it of an image or of remains of one.
pub(super) fn is_listed(ioctx: &Ioctx, name: &str) -> Result<bool> {
    let key = format!("name_{name}");
    Ok(omap::get(ioctx, DIRECTORY, &[&key])?.contains_key(&key))
}

/// Strings in that encoding, one after the other.
fn encode(texts: &[&str]) -> Vec<u8> {
    let encoded = |text: &&str| {
        // RBD's names are shorter than a hundred bytes.
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        [&length.to_le_bytes()[..], text.as_bytes()].concat()
    };
    texts.iter().flat_map(encoded).collect()
}

/// Renames an image, and finishes a rename of the same names that was interrupted.
pub(super) fn rename(ioctx: &Ioctx, from: &str, to: &str) -> Result<()> {
    match rename_once(ioctx, from, to) {
        Err(error) if error.errno == Errno::EEXIST => {
            let id = image_id(ioctx, from)?;
            if from == to || id.is_none() || id != image_id(ioctx, to)? {
                return Err(error);
            }
        }
        other => return other,
    }
    if is_listed(ioctx, from)? {
        // Killed before the directory was written: as if nothing had happened once the new id
        // object is gone.
        remove(ioctx, &id_object(to))?;
        rename_once(ioctx, from, to)
    } else {
        // Killed after: only the old id object is left to remove.
        remove(ioctx, &id_object(from))
    }
}

/// `rbd_rename`, or the same steps where that is refused for want of space: it needs a new object
/// of a few bytes.
fn rename_once(ioctx: &Ioctx, from: &str, to: &str) -> Result<()> {
    match rbd_rename_image(ioctx, from, to) {
        Err(error) if matches!(error.errno, Errno::EDQUOT | Errno::ENOSPC) => {
            let id = image_id(ioctx, from)?.ok_or(error)?;
            omap::create_object(ioctx, &id_object(to), &encode(&[&id]))?;
            ioctx.call_class(DIRECTORY, "dir_rename_image", &encode(&[from, to, &id]))?;
            remove(ioctx, &id_object(from))
        }
        other => other,
    }
}

fn rbd_rename_image(ioctx: &Ioctx, from: &str, to: &str) -> Result<()> {
    let call = "rbd_rename";
    let (c_from, c_to) = (c_string(from, call)?, c_string(to, call)?);
    // SAFETY: the context is valid, the names NUL-terminated.
    let code = unsafe { rbd_rename(ioctx.raw(), c_from.as_ptr(), c_to.as_ptr()) };
    ioctx.check(code, call, || format!("{} to {}", ioctx.spec(from), ioctx.spec(to))).map(drop)
}

fn remove(ioctx: &Ioctx, object: &str) -> Result<()> {
    let c_object = c_string(object, "rados_remove")?;
    // SAFETY: the context is valid, the name NUL-terminated.
    let code = unsafe { rados::rados_remove(ioctx.raw(), c_object.as_ptr()) };
    ioctx.check(code, "rados_remove", || ioctx.spec(object)).map(drop).tolerate(Errno::ENOENT)
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn ids_are_decoded() {
        assert_eq!(decode(b"\x03\0\0\0abcde"), Some("abc".to_owned()));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for bytes in [
            &b""[..],
            b"\x03\0\0",
            b"\0\0\0\0",
            b"\x03\0\0\0ab",
            b"\xff\xff\xff\xffab",
            b"\x01\0\0\0\xff",
        ] {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
    }
}
