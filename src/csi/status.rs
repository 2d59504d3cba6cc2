//! The one table from errors to gRPC answers.
//!
//! Sidecars take CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE and ABORTED for "may still be running"
//! and keep asking; any other code for "surely over". So once something was changed, an unfinished
//! or unknown outcome gets one of those four and never INTERNAL. Messages say what, which object,
//! why, and what to do; `details` stay empty, as the specification demands.

use super::ids::Location;
use crate::rbd::ceph::libraries;
use crate::rbd::{self, Class, Errno, KeyType, User};
use crate::volume::Error;
use std::path::Path;
use tonic::{Code, Status};

/// As whom, and where, an operation worked: what the advice in a message needs.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The Ceph user, without `client.`.
    pub user: String,
    /// The type of its key.
    pub key: Option<KeyType>,
    /// The pool and namespace.
    pub location: Location,
}

impl Scope {
    /// The answer for an operation on volumes that failed.
    pub fn status(&self, error: &Error) -> Status {
        let message = error.to_string();
        match error {
            Error::NotFound(_) => Status::not_found(message),
            Error::AlreadyExists(_) => Status::already_exists(message),
            Error::Invalid(_) => Status::invalid_argument(message),
            Error::OutOfRange(_) => Status::out_of_range(message),
            Error::FailedPrecondition(_) | Error::InUse(_) | Error::HasSnapshots { .. } => {
                Status::failed_precondition(message)
            }
            Error::Exhausted(_) => Status::resource_exhausted(message),
            Error::Conflict(_) => Status::aborted(message),
            Error::Rbd(cause) => Status::new(code(cause.errno), self.advise(cause, message)),
            Error::MayNotFence(cause) => Status::permission_denied(self.advise(cause, message)),
            Error::MayNotClone { pool, namespace, is_begun, .. } => {
                let code = if *is_begun { Code::Aborted } else { Code::PermissionDenied };
                let remedy = self.user().may_not_clone(pool, namespace);
                Status::new(code, format!("{message}; {remedy}"))
            }
            Error::Unfinished(cause) => {
                let code = match code(cause.errno) {
                    Code::Unavailable if cause.errno == Errno::ETIMEDOUT => Code::DeadlineExceeded,
                    Code::Unavailable => Code::Unavailable,
                    _ => Code::Aborted,
                };
                Status::new(code, self.advise(cause, message))
            }
        }
    }

    /// The answer when librados does not connect, after it has read `ceph_conf`.
    pub fn unconnected_status(&self, cause: &rbd::Error, ceph_conf: Option<&Path>) -> Status {
        let user = self.user();
        match (cause.errno, ceph_conf) {
            (Errno::EINVAL, _) => {
                let client = format!("the librados of this driver, Ceph {},", libraries().ceph);
                Status::failed_precondition(format!("{cause}; {}", user.is_malformed_to(&client)))
            }
            (Errno::EACCES, Some(path)) => Status::unauthenticated(format!(
                "{cause}; {}; or {} has it ask for connections that the cluster does not take (ms_client_mode)",
                user.refused(),
                path.display()
            )),
            _ => self.connection_status(cause),
        }
    }

    /// The answer for a pool that could not be had, or for what was asked of the cluster itself.
    pub fn connection_status(&self, cause: &rbd::Error) -> Status {
        Status::new(code(cause.errno), self.advise(cause, cause.to_string()))
    }

    fn user(&self) -> User<'_> {
        let Location { pool, namespace, .. } = &self.location;
        User { name: &self.user, key: self.key, pool, namespace }
    }

    fn advise(&self, cause: &rbd::Error, message: String) -> String {
        let (Location { cluster, pool, .. }, user) = (&self.location, self.user());
        match cause.errno {
            Errno::EPERM => format!("{message}; {}", user.lacks_capabilities()),
            Errno::EACCES => format!("{message}; {}", user.refused()),
            Errno::ETIMEDOUT => {
                format!(
                    "{message}; the cluster {cluster} does not answer, see `ceph status`; try again"
                )
            }
            Errno::ESHUTDOWN => {
                format!("{message}; this client was blocklisted and connects anew; try again")
            }
            Errno::ENOSPC | Errno::EDQUOT => {
                format!("{message}; the pool {pool} is full or at its quota, see `ceph df`")
            }
            errno if rbd::class(errno) == Class::Refused => {
                let known = CEPH_ERRORS.iter().find(|known| known.errno == errno);
                known.map_or(message.clone(), |known| {
                    format!("{message}; {} {}", known.cause, known.remedy)
                })
            }
            _ => message,
        }
    }
}

/// What an errno of Ceph's means to the client, before anything was changed.
#[derive(Debug, Clone, Copy)]
pub struct CephError {
    /// What Ceph answered.
    pub errno: Errno,
    /// Why that happens.
    pub cause: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

const fn ceph_error(errno: Errno, cause: &'static str, remedy: &'static str) -> CephError {
    CephError { errno, cause, remedy }
}

impl CephError {
    /// What the client hears.
    pub fn code(&self) -> Code {
        code(self.errno)
    }
}

const AWAY: &str = "The cluster cannot be reached, or does not answer.";
const COME_BACK: &str = "Nothing, when it passes: callers ask again. Else look at `ceph status`, the monitors in the configuration \
                         and the network.";
const AT_WORK: &str = "Another operation is at work on the same object.";
const ASK_AGAIN: &str = "Nothing: callers ask again.";

/// Why each errno of [`rbd::CLASSES`] is answered, and what to do. Any other errno is INTERNAL: the
/// driver does not foresee it.
pub const CEPH_ERRORS: &[CephError] = &[
    ceph_error(
        Errno::EACCES,
        "The cluster does not know the user, or the key is another; or it has stopped taking keys of that type.",
        "Correct userID and userKey in the secret that the class names. For a key of the type aes see auth_allowed_ciphers in `ceph mon \
         dump`.",
    ),
    ceph_error(
        Errno::EPERM,
        "The user lacks capabilities.",
        "Run the `ceph auth caps` command that the message holds.",
    ),
    ceph_error(Errno::ENOENT, "The object is gone.", "Look at what the message names."),
    ceph_error(Errno::EBUSY, AT_WORK, ASK_AGAIN),
    ceph_error(Errno::ECANCELED, AT_WORK, ASK_AGAIN),
    ceph_error(Errno::EEXIST, AT_WORK, ASK_AGAIN),
    ceph_error(
        Errno::ENOSPC,
        "The pool or the cluster is full.",
        "Look at `ceph df`; add disks, or delete volumes: that works in a full pool. See `cinderblock trash ls` for deleted ones.",
    ),
    ceph_error(
        Errno::EDQUOT,
        "The pool is at its quota.",
        "Raise it with `ceph osd pool set-quota`, or delete volumes.",
    ),
    ceph_error(
        Errno::EROFS,
        "The image is mirrored, and not primary here; or a client keeps its lock (`rbd map --exclusive`).",
        "Promote it here, or use it where it is primary; or map it without that option.",
    ),
    ceph_error(
        Errno::EMLINK,
        "The image belongs to a group.",
        "Take it out with `rbd group image remove`.",
    ),
    ceph_error(
        Errno::ENOTEMPTY,
        "The image has snapshots that another tool made.",
        "Delete them with `rbd snap rm`, or leave the volume.",
    ),
    ceph_error(Errno::ETIMEDOUT, AWAY, COME_BACK),
    ceph_error(
        Errno::ESHUTDOWN,
        "This client was blocklisted: `ceph osd blocklist ls` shows it.",
        "Nothing: the driver connects anew.",
    ),
    ceph_error(Errno::ENOTCONN, AWAY, COME_BACK),
    ceph_error(Errno::ECONNREFUSED, AWAY, COME_BACK),
    ceph_error(Errno::ECONNRESET, AWAY, COME_BACK),
    ceph_error(Errno::EHOSTUNREACH, AWAY, COME_BACK),
    ceph_error(Errno::ENETUNREACH, AWAY, COME_BACK),
    ceph_error(Errno::EAGAIN, "The cluster has no answer yet.", ASK_AGAIN),
    ceph_error(Errno::EINTR, "The call was interrupted.", ASK_AGAIN),
    ceph_error(
        Errno::EMFILE,
        "The driver has as many files and connections open as it may.",
        "Nothing, when it passes; else raise the limit of open files (`ulimit -n`, LimitNOFILE).",
    ),
    ceph_error(
        Errno::EIO,
        "An OSD cannot read or write an object.",
        "Look at `ceph health detail`: damaged or unfound objects.",
    ),
];

/// The answer for an errno of Ceph's before anything was changed.
fn code(errno: Errno) -> Code {
    match rbd::class(errno) {
        Class::Unauthenticated => Code::Unauthenticated,
        Class::Forbidden => Code::PermissionDenied,
        Class::Gone => Code::NotFound,
        Class::Contended => Code::Aborted,
        Class::Full => Code::ResourceExhausted,
        Class::Refused => Code::FailedPrecondition,
        Class::Away => Code::Unavailable,
        Class::Unknown => Code::Internal,
    }
}

/// What a code means, whichever part of the driver gave it.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// The code.
    pub code: Code,
    /// Why it is answered.
    pub cause: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

const fn answer(code: Code, cause: &'static str, remedy: &'static str) -> Answer {
    Answer { code, cause, remedy }
}

/// Every code this driver answers.
pub const ANSWERS: &[Answer] = &[
    answer(
        Code::InvalidArgument,
        "A field is missing, too long, or holds what no volume can have; a parameter is unknown; the pool or the RADOS namespace does \
         not exist. Nothing was touched.",
        "Correct what the message names, most often in the class. A pool is created with `ceph osd pool create` and `rbd pool init`, a \
         namespace with `rbd namespace create`.",
    ),
    answer(
        Code::NotFound,
        "The volume, snapshot, source or node does not exist, or its id is none of this driver's.",
        "For a source: wait for it or name another. For a node: add it to `nodes` in the configuration.",
    ),
    answer(
        Code::AlreadyExists,
        "The name is taken by a volume or snapshot that differs in what the message names, or by an image that this driver did not make.",
        "Use another name, or delete what has it.",
    ),
    answer(
        Code::FailedPrecondition,
        "Something must happen first: the volume is attached, published to another node, in use on the healthy node that it is unpublished from, or \
         has snapshots it may not be deleted with; nothing was changed. Or a record was written by a newer driver.",
        "Do what the message says: unpublish, detach at the address it names, delete the snapshots, run the newer driver.",
    ),
    answer(
        Code::OutOfRange,
        "No volume can have that size: less than its source, more than an object map describes, a limit below what is required, or no \
         whole number of 512-byte sectors in between; a volume would have to shrink.",
        "Ask for another size.",
    ),
    answer(
        Code::ResourceExhausted,
        "There is no room, or a volume has as many snapshots as it may; what was begun has been undone.",
        "Make room (`ceph df`), raise the quota, or delete snapshots.",
    ),
    answer(
        Code::Aborted,
        "Another operation holds the volume, for as long as the message says and with what it says; or work is unfinished and recorded.",
        "Nothing: callers ask again, and the same request joins or continues the work. When it never ends, see what it waits for.",
    ),
    answer(
        Code::DeadlineExceeded,
        "The caller's deadline came first. The work goes on; the message says how far it is.",
        "Nothing: the same request joins it. Give sidecars a longer `--timeout` where this is the rule.",
    ),
    answer(
        Code::Unavailable,
        "The cluster cannot be reached, or does not answer; or, with `--kubernetes`, Kubernetes does not say whether a node may be lost \
         that has not let go of a volume.",
        COME_BACK,
    ),
    answer(
        Code::Unauthenticated,
        "The secret is missing or incomplete, or the cluster refuses its user or key.",
        "Name a secret with `userID` (without `client.`) and `userKey` (what `ceph auth get-key` prints) in the class.",
    ),
    answer(
        Code::PermissionDenied,
        "The Ceph user may not do that.",
        "Run the `ceph auth caps` command that the message holds.",
    ),
    answer(
        Code::Unimplemented,
        "The RPC is not among the capabilities, or not served in this role.",
        "See [capabilities](capabilities.md).",
    ),
    answer(
        Code::Internal,
        "The driver does not know the case: an unknown errno before anything was changed, a program on the node that failed; or, from gRPC itself, a \
         request that is no message.",
        "Look at the driver's log, and report it.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        let location =
            Location { cluster: "lab".into(), pool: "rbd".into(), namespace: "tenant".into() };
        Scope { user: "csi".into(), key: Some(KeyType::Aes), location }
    }

    fn cause(errno: Errno) -> rbd::Error {
        rbd::Error::new(errno, "rbd_create4", "rbd/tenant/csi-a")
    }

    #[test]
    fn a_user_without_capabilities_reads_the_command_to_run() {
        let status = scope().status(&Error::Rbd(cause(Errno::EPERM)));
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains(
            "ceph auth caps client.csi mon 'profile rbd' osd 'profile rbd pool=rbd namespace=tenant'"
        ));
    }

    #[test]
    fn every_answer_is_in_the_table() {
        let errnos = CEPH_ERRORS.iter().map(|known| known.errno).chain([Errno::EINVAL]);
        let words = || String::from("words");
        let mut errors = vec![
            Error::NotFound(words()),
            Error::AlreadyExists(words()),
            Error::Invalid(words()),
            Error::OutOfRange(words()),
            Error::FailedPrecondition(words()),
            Error::InUse(words()),
            Error::HasSnapshots { volume: words(), image_id: words(), snapshots: vec![words()] },
            Error::Exhausted(words()),
            Error::Conflict(words()),
            Error::MayNotFence(cause(Errno::EPERM)),
        ];
        errors.extend(
            errnos.flat_map(|errno| [Error::Rbd(cause(errno)), Error::Unfinished(cause(errno))]),
        );
        for error in errors {
            let code = scope().status(&error).code();
            assert!(ANSWERS.iter().any(|answer| answer.code == code), "{code:?} for {error:?}");
        }
        let explained: Vec<_> = CEPH_ERRORS.iter().map(|known| known.errno).collect();
        let known: Vec<_> = rbd::CLASSES.iter().map(|(errno, _)| *errno).collect();
        assert_eq!(explained, known);
    }

    #[test]
    fn unfinished_work_never_looks_finished() {
        for errno in [
            Errno::EPERM,
            Errno::EIO,
            Errno::EINVAL,
            Errno::ETIMEDOUT,
            Errno::ENOSPC,
            Errno::EBUSY,
            Errno::ENOENT,
        ] {
            let status = scope().status(&Error::Unfinished(cause(errno)));
            assert!(
                matches!(status.code(), Code::Aborted | Code::Unavailable | Code::DeadlineExceeded),
                "{errno} gave {}",
                status.code()
            );
            assert!(status.details().is_empty());
        }
    }

    #[test]
    fn a_cluster_that_is_away_is_unavailable_before_a_change_and_a_missed_deadline_after() {
        assert_eq!(scope().status(&Error::Rbd(cause(Errno::ETIMEDOUT))).code(), Code::Unavailable);
        assert_eq!(
            scope().status(&Error::Unfinished(cause(Errno::ETIMEDOUT))).code(),
            Code::DeadlineExceeded
        );
    }
}
