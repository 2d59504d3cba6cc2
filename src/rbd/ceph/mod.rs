//! RBD over librados and librbd.
