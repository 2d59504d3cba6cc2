//! The stream that `rbd export-diff` writes and `rbd import-diff` reads, version 1.
//!
//! After the line `rbd diff v1` come records: a letter, and what it takes. Numbers are
//! little-endian.
//!
//! | letter | what follows |
//! |---|---|
//! | `f` | 4 bytes of length, the name of the snapshot that the increment is based on |
//! | `t` | 4 bytes of length, the name of the snapshot that it leads to |
//! | `s` | 8 bytes: the image's size |
//! | `w` | 8 bytes of offset, 8 bytes of length, data |
//! | `z` | 8 bytes of offset, 8 bytes of length: zeros |
//! | `e` | nothing: the end |
//!
//! Here the stream is in order of offset, and no two records touch the same byte.

/// How it begins.
const BEGINNING: &[u8] = b"rbd diff v1\n";

/// Bytes of the largest data record.
pub(super) const LARGEST: u64 = 4 << 20;

/// Zeros of this many bytes are worth a record of their own.
const GRAIN: usize = 64 << 10;

/// To compare with.
static ZEROS: [u8; GRAIN] = [0; GRAIN];

/// A part of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// The snapshot it is based on.
    From(&'a str),
    /// The snapshot it leads to.
    To(&'a str),
    /// The image's size in bytes.
    Size(u64),
    /// Bytes at an offset.
    Data(u64, &'a [u8]),
    /// So many zeros at an offset.
    Zeros(u64, u64),
    /// The end.
    End,
}

/// Writes how a stream begins.
pub(super) fn begin(stream: &mut Vec<u8>, from: Option<&str>, to: &str, size: u64) {
    stream.extend_from_slice(BEGINNING);
    for (letter, name) in from.map(|from| (b'f', from)).into_iter().chain([(b't', to)]) {
        stream.push(letter);
        // RBD's names are short.
        stream.extend_from_slice(&u32::try_from(name.len()).unwrap_or(0).to_le_bytes());
        stream.extend_from_slice(name.as_bytes());
    }
    stream.push(b's');
    stream.extend_from_slice(&size.to_le_bytes());
}

/// Writes data of at most [`LARGEST`] bytes, with records of their own for long runs of zeros if
/// `zeros`; else these are left out.
pub(super) fn data(stream: &mut Vec<u8>, offset: u64, data: &[u8], zeros: bool) {
    let is_zero = |grain: &[u8]| *grain == ZEROS[..grain.len()];
    let mut position = 0;
    while position < data.len() {
        let rest = &data[position..];
        let as_first = is_zero(&rest[..rest.len().min(GRAIN)]);
        let length: usize = rest
            .chunks(GRAIN)
            .take_while(|grain| is_zero(grain) == as_first)
            .map(<[u8]>::len)
            .sum();
        let at = offset + position as u64;
        if !as_first {
            extent(stream, b'w', at, length as u64);
            stream.extend_from_slice(&rest[..length]);
        } else if zeros {
            self::zeros(stream, at, length as u64);
        }
        position += length;
    }
}

/// Writes that so many bytes are zeros.
pub(super) fn zeros(stream: &mut Vec<u8>, offset: u64, length: u64) {
    extent(stream, b'z', offset, length);
}

/// Writes the end.
pub(super) fn end(stream: &mut Vec<u8>) {
    stream.push(b'e');
}

fn extent(stream: &mut Vec<u8>, letter: u8, offset: u64, length: u64) {
    stream.push(letter);
    stream.extend_from_slice(&offset.to_le_bytes());
    stream.extend_from_slice(&length.to_le_bytes());
}

/// Reads records, of which `stream` has whole ones; `first` says whether it begins with the line.
/// An error says what is wrong, and at which byte.
pub(super) fn records(stream: &[u8], first: bool) -> Result<Vec<Record<'_>>, String> {
    let mut reader = Reader { stream, position: 0 };
    if first && reader.take(BEGINNING.len() as u64)? != BEGINNING {
        return Err("is no stream of rbd export-diff, version 1".to_owned());
    }
    let mut records = Vec::new();
    while reader.position < stream.len() {
        records.push(reader.record()?);
    }
    Ok(records)
}

struct Reader<'a> {
    stream: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn record(&mut self) -> Result<Record<'a>, String> {
        let at = self.position;
        Ok(match self.take(1)? {
            b"f" => Record::From(self.name()?),
            b"t" => Record::To(self.name()?),
            b"s" => Record::Size(self.number()?),
            b"w" => {
                let (offset, length) = (self.number()?, self.number()?);
                if length > LARGEST {
                    return Err(format!("has a record of {length} bytes at byte {at}"));
                }
                Record::Data(offset, self.take(length)?)
            }
            b"z" => Record::Zeros(self.number()?, self.number()?),
            b"e" => Record::End,
            _ => return Err(format!("has an unknown record at byte {at}")),
        })
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let rest = &self.stream[self.position..];
        let taken = usize::try_from(length).ok().and_then(|length| rest.get(..length));
        let taken = taken.ok_or_else(|| format!("is cut off at byte {}", self.stream.len()))?;
        self.position += taken.len();
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, String> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn name(&mut self) -> Result<&'a str, String> {
        let at = self.position;
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        let name = self.take(u32::from_le_bytes(bytes).into())?;
        std::str::from_utf8(name).map_err(|_| format!("has a name that is no text at byte {at}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(zeros_too: bool) -> Vec<u8> {
        let mut stream = Vec::new();
        begin(&mut stream, Some("a"), "b", 9 << 20);
        let mut bytes = vec![0; 3 * GRAIN + 5];
        bytes[GRAIN] = 1;
        data(&mut stream, 100, &bytes, zeros_too);
        zeros(&mut stream, 1 << 40, 1 << 33);
        end(&mut stream);
        stream
    }

    #[test]
    fn streams_are_written_and_read() {
        let grain = GRAIN as u64;
        let mut middle = vec![0; GRAIN];
        middle[0] = 1;
        let mut expected = vec![
            Record::From("a"),
            Record::To("b"),
            Record::Size(9 << 20),
            Record::Zeros(100, grain),
            Record::Data(100 + grain, &middle),
            // What follows a run of zeros is where it belongs (Cinder's LP#2155612).
            Record::Zeros(100 + 2 * grain, grain + 5),
            // Discards beyond 31 bits (Cinder's LP#1815845).
            Record::Zeros(1 << 40, 1 << 33),
            Record::End,
        ];
        assert_eq!(records(&written(true), true).unwrap(), expected);
        expected.retain(|record| !matches!(record, Record::Zeros(offset, _) if *offset < 1 << 40));
        assert_eq!(records(&written(false), true).unwrap(), expected);
    }

    #[test]
    fn what_is_cut_off_or_strange_is_refused() {
        let stream = written(true);
        let whole = records(&stream, true).unwrap().len();
        for length in 0..stream.len() {
            match records(&stream[..length], true) {
                Ok(records) => assert!(records.len() < whole, "{length}"),
                Err(why) => assert!(why.contains("cut off"), "{length}: {why}"),
            }
        }
        assert!(records(b"rbd diff v2\n", true).unwrap_err().contains("version 1"));
        assert!(records(b"x", false).unwrap_err().contains("unknown record"));
        let mut large = vec![b'w'];
        large.extend_from_slice(&[0; 8]);
        large.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(records(&large, false).unwrap_err().contains("has a record of"));
    }
}
