use std::fmt;

/// A release of Ceph, by the first number of its versions. Later releases are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release(pub u32);

impl Release {
    /// Ceph 16, the oldest release that the driver runs on.
    pub const PACIFIC: Release = Release(16);
    /// Ceph 18.
    pub const REEF: Release = Release(18);
    /// Ceph 20.
    pub const TENTACLE: Release = Release(20);
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Ceph {}", self.0)
    }
}
