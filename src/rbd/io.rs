//! Reading and writing an image through `std::io`.
//!
//! [`ImageIo`] promises:
//!
//! - Reading at or beyond the end gives 0 bytes; a read that reaches the end is short.
//! - Seeking beyond the end is allowed, seeking before the start is an error.
//! - A write is written whole or is an error: an image does not grow, so one that reaches beyond
//!   the end writes nothing.
//! - What fails leaves the position as it was. Errors of a flush are passed on.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Deref;

use super::{Error, Image};

/// A position in the head of an image, held as a `&dyn Image` or a `Box<dyn Image>`.
#[derive(Debug)]
pub struct ImageIo<I> {
    image: I,
    position: u64,
}

impl<I> ImageIo<I> {
    /// Starts at byte 0.
    pub fn new(image: I) -> ImageIo<I> {
        ImageIo { image, position: 0 }
    }

    /// Gives the image back. Nothing is flushed.
    pub fn into_inner(self) -> I {
        self.image
    }
}

impl<I> Read for ImageIo<I>
where
    I: Deref<Target: Image>,
{
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.image.read_at(None, self.position, buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl<I> Write for ImageIo<I>
where
    I: Deref<Target: Image>,
{
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.image.write_at(self.position, data)?;
        self.position += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(self.image.flush()?)
    }
}

impl<I> Seek for ImageIo<I>
where
    I: Deref<Target: Image>,
{
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match target {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::Current(offset) => (self.position, offset),
            SeekFrom::End(offset) => (self.image.info()?.size, offset),
        };
        let Some(position) = base.checked_add_signed(offset) else {
            let why = format!("cannot seek {offset} bytes from byte {base}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        };
        self.position = position;
        Ok(position)
    }
}

/// The error keeps its message; its kind is the errno's.
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        io::Error::new(io::Error::from_raw_os_error(error.errno as i32).kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbd::model::{Fault, Model, Session};
    use crate::rbd::{Errno, ImageKey, ImageOptions, OpenMode};

    const SIZE: u64 = 1 << 20;

    fn image() -> (Session, ImageIo<Box<dyn Image>>) {
        let model = Model::new();
        model.create_pool("rbd");
        let session = model.connect();
        let pool = session.cluster().pool("rbd", "").unwrap();
        pool.create_image("image", SIZE, &ImageOptions::default()).unwrap();
        let image = pool.open_image(ImageKey::Name("image"), OpenMode::ReadWrite).unwrap();
        (session, ImageIo::new(image))
    }

    fn position<I: Deref<Target: Image>>(io: &mut ImageIo<I>) -> u64 {
        io.stream_position().unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let (_session, mut io) = image();
        io.write_all(b"hello").unwrap();
        assert_eq!(position(&mut io), 5);
        io.rewind().unwrap();
        let mut buffer = [0; 7];
        assert_eq!(io.read(&mut buffer).unwrap(), 7);
        assert_eq!((&buffer, position(&mut io)), (b"hello\0\0", 7));
    }

    #[test]
    fn reads_are_short_at_the_end_and_empty_beyond() {
        let (_session, mut io) = image();
        let mut buffer = [1; 8];
        assert_eq!(io.seek(SeekFrom::End(-3)).unwrap(), SIZE - 3);
        assert_eq!(io.read(&mut buffer).unwrap(), 3);
        assert_eq!(io.read(&mut buffer).unwrap(), 0);
        assert_eq!(io.seek(SeekFrom::Current(100)).unwrap(), SIZE + 100);
        assert_eq!(io.read(&mut buffer).unwrap(), 0);
        assert_eq!(position(&mut io), SIZE + 100);
    }

    #[test]
    fn seeking_before_the_start_fails_and_stays() {
        let (_session, mut io) = image();
        io.seek(SeekFrom::Start(10)).unwrap();
        for target in [SeekFrom::Current(-11), SeekFrom::End(-(SIZE.cast_signed()) - 1)] {
            assert_eq!(io.seek(target).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(position(&mut io), 10);
        }
        assert_eq!(io.seek(SeekFrom::Current(-10)).unwrap(), 0);
    }

    #[test]
    fn writes_past_the_end_fail_and_write_nothing() {
        let (_session, mut io) = image();
        for start in [SIZE - 2, SIZE, SIZE + 5] {
            io.seek(SeekFrom::Start(start)).unwrap();
            assert_eq!(io.write(b"abc").unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(position(&mut io), start);
        }
        io.seek(SeekFrom::End(-2)).unwrap();
        let mut end = Vec::new();
        io.read_to_end(&mut end).unwrap();
        assert_eq!(end, [0, 0]);
    }

    #[test]
    fn what_fails_leaves_the_position_and_is_told() {
        let (session, mut io) = image();
        io.seek(SeekFrom::Start(7)).unwrap();
        let fail_next = || session.inject(session.calls() + 1, Fault::Fail(Errno::EIO));
        let failed = |result: io::Result<usize>| {
            let error = result.unwrap_err();
            assert_eq!(error.downcast::<Error>().unwrap().errno, Errno::EIO);
        };
        fail_next();
        failed(io.read(&mut [0; 4]));
        fail_next();
        failed(io.write(b"abc"));
        fail_next();
        failed(io.flush().map(|()| 0));
        assert_eq!(position(&mut io), 7);
    }

    #[test]
    fn a_borrowed_image_will_do() {
        let (_session, io) = image();
        let image = io.into_inner();
        let mut borrowed = ImageIo::new(&*image);
        borrowed.write_all(b"x").unwrap();
        assert_eq!(position(&mut borrowed), 1);
    }
}
