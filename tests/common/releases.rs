//! What one release of Ceph answers otherwise than another, each a value by its own name. What is
//! not here, all releases that the lab has answer alike. `docs/reference/compatibility.md` tells
//! users.

use cinderblock::rbd::{Errno, Release};

use super::Lab;

impl Lab {
    /// What a user hears who has no rights on OSDs. The monitors of Ceph 18 give it no ticket for
    /// them, so its calls wait until they are given up.
    pub fn without_rights_on_osds(&self) -> Errno {
        if self.daemons < Release::REEF { Errno::EPERM } else { Errno::ETIMEDOUT }
    }
}
