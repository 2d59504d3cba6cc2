//! Checksums of what is transferred, as `b3sum` and `sha256sum` print them.
//!
//! A [`Tally`] is given the blocks of a whole in order. BLAKE3 hashes the blocks themselves before
//! that, each on the thread that has it ([`Tally::part`]): they are subtrees of its tree. SHA-256
//! knows no such thing and hashes one block after the other.

use std::fmt;
use std::str::FromStr;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use sha2::{Digest, Sha256};

use super::blocks::{BLOCK, Content};

/// How a checksum is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// BLAKE3, 256 bits, as `b3sum` makes it.
    #[default]
    Blake3,
    /// SHA-256, as `sha256sum` makes it.
    Sha256,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Algorithm::Blake3 => "blake3",
            Algorithm::Sha256 => "sha256",
        })
    }
}

impl FromStr for Algorithm {
    type Err = String;

    fn from_str(text: &str) -> Result<Algorithm, String> {
        match text {
            "blake3" => Ok(Algorithm::Blake3),
            "sha256" => Ok(Algorithm::Sha256),
            _ => Err(format!("{text:?} is no checksum known here: blake3 or sha256")),
        }
    }
}

/// A checksum, written `blake3:HEX` or `sha256:HEX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    /// How it was made.
    pub algorithm: Algorithm,
    /// Its 256 bits.
    pub bytes: [u8; 32],
}

impl fmt::Display for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:", self.algorithm)?;
        self.bytes.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Checksum, String> {
        let (algorithm, digits) = text
            .split_once(':')
            .ok_or_else(|| format!("{text:?} is no checksum: sha256:HEX or blake3:HEX"))?;
        let mut bytes = [0; 32];
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(format!("{digits:?} are not the 64 hexadecimal digits of a checksum"));
        }
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|why| why.to_string())?;
        }
        Ok(Checksum { algorithm: algorithm.parse()?, bytes })
    }
}

/// What a caller wants to know of the checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing: none is made.
    Nothing,
    /// What it is.
    Made(Algorithm),
    /// That it is this one.
    Equal(Checksum),
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted::Made(Algorithm::default())
    }
}

impl Wanted {
    /// A tally of what is wanted.
    pub(super) fn tally(self) -> Option<Tally> {
        match self {
            Wanted::Nothing => None,
            Wanted::Made(algorithm) | Wanted::Equal(Checksum { algorithm, .. }) => {
                Some(Tally::new(algorithm))
            }
        }
    }

    /// [`super::Error::Checksum`] when another one is wanted than was found in `what`.
    pub(super) fn compare(self, found: Option<Checksum>, what: &str) -> super::Result<()> {
        match (self, found) {
            (Wanted::Equal(expected), Some(found)) if expected != found => {
                Err(super::Error::Checksum {
                    what: what.to_owned(),
                    expected: expected.to_string(),
                    found: found.to_string(),
                })
            }
            _ => Ok(()),
        }
    }
}

/// A checksum in the making.
#[derive(Debug)]
pub(super) enum Tally {
    Blake3(Tree),
    Sha256(Sha256),
}

/// What was made of one block by itself.
pub(super) enum Part {
    Blake3(Box<blake3::Hasher>),
    Sha256,
}

impl Tally {
    fn new(algorithm: Algorithm) -> Tally {
        match algorithm {
            Algorithm::Blake3 => Tally::Blake3(Tree::default()),
            Algorithm::Sha256 => Tally::Sha256(Sha256::new()),
        }
    }

    /// The algorithm, for [`Tally::part`] without the tally.
    pub(super) fn algorithm(&self) -> Algorithm {
        match self {
            Tally::Blake3(_) => Algorithm::Blake3,
            Tally::Sha256(_) => Algorithm::Sha256,
        }
    }

    /// What can be made of a block before its turn. Blocks begin at multiples of [`BLOCK`], and all
    /// but the last are that long.
    pub(super) fn part(algorithm: Algorithm, offset: u64, content: Content<'_>) -> Part {
        if algorithm == Algorithm::Sha256 {
            return Part::Sha256;
        }
        debug_assert!(offset.is_multiple_of(BLOCK));
        let mut hasher = Box::new(blake3::Hasher::new());
        hasher.set_input_offset(offset);
        for slice in content.slices() {
            hasher.update(slice);
        }
        Part::Blake3(hasher)
    }

    /// Adds the next block.
    pub(super) fn add(&mut self, part: &Part, content: Content<'_>) {
        match (self, part) {
            (Tally::Blake3(tree), Part::Blake3(hasher)) => tree.add(hasher),
            (Tally::Sha256(hasher), _) => content.slices().for_each(|slice| hasher.update(slice)),
            (Tally::Blake3(_), Part::Sha256) => unreachable!("parts are made for their tally"),
        }
    }

    /// The checksum of all blocks that were added.
    pub(super) fn finish(self) -> Checksum {
        let algorithm = self.algorithm();
        let bytes = match self {
            Tally::Blake3(tree) => tree.finish(),
            Tally::Sha256(hasher) => hasher.finalize().into(),
        };
        Checksum { algorithm, bytes }
    }
}

/// BLAKE3's tree above the blocks: the roots of whole subtrees, from left to right. What is merged
/// waits for the next block, since the last merge of all is another one.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Alone it is the whole, which is hashed in its own way.
    first: Option<Box<blake3::Hasher>>,
    subtrees: Vec<ChainingValue>,
    blocks: u64,
}

impl Tree {
    fn add(&mut self, block: &blake3::Hasher) {
        if self.blocks == 0 {
            self.first = Some(Box::new(block.clone()));
        }
        while self.subtrees.len() > self.blocks.count_ones() as usize {
            let right = self.subtrees.pop();
            let left = self.subtrees.pop();
            if let (Some(left), Some(right)) = (left, right) {
                self.subtrees.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
            }
        }
        self.subtrees.push(block.finalize_non_root());
        self.blocks += 1;
    }

    fn finish(mut self) -> [u8; 32] {
        match (self.blocks, self.first, self.subtrees.pop()) {
            (1, Some(whole), _) => *whole.finalize().as_bytes(),
            (_, _, Some(mut right)) => {
                while self.subtrees.len() > 1 {
                    if let Some(left) = self.subtrees.pop() {
                        right = merge_subtrees_non_root(&left, &right, Mode::Hash);
                    }
                }
                match self.subtrees.pop() {
                    Some(left) => *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(),
                    None => right,
                }
            }
            _ => *blake3::hash(&[]).as_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checksum of `data`, cut into blocks, with those that are zeros as holes.
    fn tally(algorithm: Algorithm, data: &[u8]) -> Checksum {
        let mut tally = Tally::new(algorithm);
        let block = usize::try_from(BLOCK).unwrap();
        for (number, data) in (0..).zip(data.chunks(block)) {
            let zeros = data.iter().all(|byte| *byte == 0);
            let content = if zeros { Content::Zeros(data.len()) } else { Content::Data(data) };
            let part = Tally::part(algorithm, number * BLOCK, content);
            tally.add(&part, content);
        }
        tally.finish()
    }

    #[test]
    fn checksums_are_those_of_the_well_known_programs() {
        let block = usize::try_from(BLOCK).unwrap();
        let mut data = vec![0; 9 * block + 1234];
        for (at, byte) in data.iter_mut().enumerate().filter(|(at, _)| at / block % 3 != 1) {
            *byte = u8::try_from(at * 7 % 251).unwrap();
        }
        let blocks = (0..9).flat_map(|n| [n * block, n * block + 1, n * block + 1234]);
        for length in blocks.filter(|length| *length <= data.len()) {
            let data = &data[..length];
            let expected = *blake3::hash(data).as_bytes();
            assert_eq!(tally(Algorithm::Blake3, data).bytes, expected, "{length}");
        }
        let expected: [u8; 32] = Sha256::digest(&data).into();
        assert_eq!(tally(Algorithm::Sha256, &data).bytes, expected);
    }

    #[test]
    fn checksums_are_written_and_read() {
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let read: Checksum = text.parse().unwrap();
        assert_eq!(read, tally(Algorithm::Sha256, &[]));
        assert_eq!(read.to_string(), text);
        for (wrong, why) in [
            ("e3b0", "no checksum"),
            ("sha256:e3b0", "64 hexadecimal digits"),
            (&text.replace('e', "g"), "64 hexadecimal digits"),
            (&text.replace("sha256", "md5"), "no checksum known here"),
        ] {
            let said = wrong.parse::<Checksum>().unwrap_err();
            assert!(said.contains(why), "{wrong}: {said}");
        }
    }
}
