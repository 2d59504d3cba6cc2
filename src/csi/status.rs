//! The one table from errors to gRPC answers.
//!
//! Sidecars take CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE and ABORTED for "may still be running" and keep asking; any other
//! code for "surely over". So once something was changed, an unfinished or unknown outcome gets one of those four and never
//! INTERNAL. Messages say what, which object, why, and what to do; `details` stay empty, as the specification demands.

use super::ids::Location;
use crate::rbd::{self, Errno};
use crate::volume::Error;
use tonic::{Code, Status};

/// As whom, and where, an operation worked: what the advice in a message needs.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The Ceph user, without `client.`.
    pub user: String,
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
            Error::FailedPrecondition(_) => Status::failed_precondition(message),
            Error::Exhausted(_) => Status::resource_exhausted(message),
            Error::Conflict(_) => Status::aborted(message),
            Error::Rbd(cause) => Status::new(code(cause.errno), self.advise(cause, message)),
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

    /// The answer for a connection or pool that could not be had.
    pub fn connection_status(&self, cause: &rbd::Error) -> Status {
        Status::new(code(cause.errno), self.advise(cause, cause.to_string()))
    }

    fn advise(&self, cause: &rbd::Error, message: String) -> String {
        let Location { cluster, pool, namespace } = &self.location;
        let user = &self.user;
        let limits = match namespace.as_str() {
            "" => format!("pool={pool}"),
            namespace => format!("pool={pool} namespace={namespace}"),
        };
        match cause.errno {
            Errno::EPERM => format!(
                "{message}; the Ceph user lacks capabilities, run: ceph auth caps client.{user} mon 'profile rbd' osd \
                 'profile rbd {limits}' mgr 'profile rbd {limits}'"
            ),
            Errno::EACCES => {
                format!(
                    "{message}; the cluster refuses client.{user}: check userID and userKey in the secret, and see `ceph auth get \
                     client.{user}`: it needs at least mon 'profile rbd'"
                )
            }
            Errno::ETIMEDOUT => {
                format!("{message}; the cluster {cluster} does not answer, see `ceph status`; try again")
            }
            Errno::ESHUTDOWN => {
                format!("{message}; this client was blocklisted and connects anew; try again")
            }
            Errno::ENOSPC | Errno::EDQUOT => {
                format!("{message}; the pool {pool} is full or at its quota, see `ceph df`")
            }
            _ => message,
        }
    }
}

/// The answer for an errno of Ceph's before anything was changed.
fn code(errno: Errno) -> Code {
    match errno {
        Errno::EACCES => Code::Unauthenticated,
        Errno::EPERM => Code::PermissionDenied,
        Errno::ENOENT => Code::NotFound,
        Errno::EBUSY | Errno::ECANCELED | Errno::EEXIST => Code::Aborted,
        Errno::ENOSPC | Errno::EDQUOT => Code::ResourceExhausted,
        // A mirrored image that is not primary here, or a member of a group.
        Errno::EROFS | Errno::EMLINK | Errno::ENOTEMPTY => Code::FailedPrecondition,
        Errno::ETIMEDOUT
        | Errno::ESHUTDOWN
        | Errno::ENOTCONN
        | Errno::ECONNREFUSED
        | Errno::ECONNRESET
        | Errno::EHOSTUNREACH
        | Errno::ENETUNREACH
        | Errno::EAGAIN
        | Errno::EINTR
        | Errno::EMFILE
        | Errno::EIO => Code::Unavailable,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        let location = Location { cluster: "lab".into(), pool: "rbd".into(), namespace: "tenant".into() };
        Scope { user: "csi".into(), location }
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
