//! An RPC with the volumes it works on, and what must come of it wherever the driver dies on the
//! way.
//!
//! What must come out is what came out of the RPC whose driver was not killed: the same images with
//! the same bytes, the same links seen from both sides, the same records, an empty journal
//! ([`picture`](crate::picture)). Then everything is deleted through the driver, and the namespace
//! must be empty.

use std::io::Write;

use crate::common::OwnLab;
use crate::rpc::Rpc;
use crate::tenant::Tenant;

/// Parameters of a StorageClass.
pub type Parameters<'a> = &'a [(&'a str, &'a str)];

pub const FORMAT_1: (&str, &str) = ("cloneFormat", "1");
pub const FORMAT_2: (&str, &str) = ("cloneFormat", "2");

/// Makes the volumes an RPC works on and gives the RPC.
pub type Prepare = fn(&mut Tenant<'_>) -> Rpc;

/// What is done after a driver was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aftermath {
    /// The RPC is repeated once the dead driver's watches are gone.
    Retry,
    /// The RPC is repeated at once, and what it could not finish is left to `cinderblock gc`.
    RetryAtOnce,
    /// The opposite is asked for.
    Opposite,
    /// No caller asks for anything; `cinderblock gc` settles it.
    Abandoned,
}

impl Aftermath {
    pub const ALL: [Aftermath; 4] =
        [Aftermath::Retry, Aftermath::RetryAtOnce, Aftermath::Opposite, Aftermath::Abandoned];
}

/// An RPC, and what it leads to when no driver is killed.
pub struct Scenario<'a> {
    pub what: &'a str,
    lab: &'a OwnLab,
    parameters: Parameters<'a>,
    prepare: Prepare,
    before: Vec<String>,
    after: Vec<String>,
    undone: Vec<String>,
}

impl<'a> Scenario<'a> {
    /// Carries it out once, and its opposite.
    pub fn new(
        what: &'a str,
        lab: &'a OwnLab,
        parameters: Parameters<'a>,
        prepare: Prepare,
    ) -> Scenario<'a> {
        let mut tenant = Tenant::new(lab, parameters);
        let rpc = prepare(&mut tenant);
        let before = tenant.picture();
        tenant.done(&rpc);
        let after = tenant.picture();
        tenant.done_unless_gone(&tenant.opposite(&rpc));
        let undone = tenant.picture();
        tenant.clear(true);
        tenant.end();
        Scenario { what, lab, parameters, prepare, before, after, undone }
    }

    /// A namespace to carry it out in.
    pub fn tenant(&self) -> Tenant<'a> {
        Tenant::new(self.lab, self.parameters)
    }

    /// Makes the volumes the RPC works on.
    pub fn set_up(&self, tenant: &mut Tenant<'_>) -> Rpc {
        (self.prepare)(tenant)
    }

    /// Another driver takes over from a dead one. Fails when anything is lost, doubled or left
    /// behind.
    pub fn settle(
        &self,
        tenant: &mut Tenant<'_>,
        rpc: &Rpc,
        aftermath: Aftermath,
        latest_first: bool,
    ) {
        tenant.new_controller();
        if aftermath != Aftermath::RetryAtOnce {
            tenant.fence_the_dead();
        }
        match aftermath {
            Aftermath::Retry => {
                tenant.done(rpc);
                self.assert_done(tenant);
            }
            Aftermath::RetryAtOnce => {
                tenant.done(rpc);
                tenant.wait_for_the_dead();
                tenant.collect();
                self.assert_done(tenant);
            }
            Aftermath::Opposite => {
                if tenant.done_unless_gone(&tenant.opposite(rpc)) {
                    assert_one_of(&tenant.picture(), &[&self.undone, &self.before]);
                } else {
                    // What the opposite needs was on its way out.
                    tenant.done(rpc);
                    self.assert_done(tenant);
                }
            }
            Aftermath::Abandoned => {
                tenant.collect();
                match rpc {
                    // A source that was flattened for the clone stays flat when the clone goes.
                    Rpc::CreateVolume(_) => {
                        assert_one_of(
                            &tenant.picture(),
                            &[&self.before, &self.after, &self.undone],
                        );
                    }
                    // The record of a volume's size follows its image's, so in between is no harm.
                    Rpc::Expand(_) => {}
                    _ => assert_one_of(&tenant.picture(), &[&self.before, &self.after]),
                }
                tenant.done(rpc);
            }
        }
        tenant.clear(latest_first);
    }

    fn assert_done(&self, tenant: &Tenant<'_>) {
        let picture = tenant.picture();
        assert!(
            picture == self.after,
            "it is now:\n{picture:#?}\nbut should be:\n{:#?}",
            self.after
        );
    }

    /// One line about what was covered, past the capture of the test harness: it is worth reading
    /// also when all is well.
    pub fn report(&self, line: &str) {
        let line = format!("{} {:?}: {line}\n", self.what, self.parameters);
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
}

fn assert_one_of(picture: &[String], wanted: &[&Vec<String>]) {
    assert!(
        wanted.iter().any(|wanted| *wanted == picture),
        "it is now:\n{picture:#?}\nbut should be one of:\n{wanted:#?}"
    );
}

/// Whether the long run was asked for.
pub fn is_long() -> bool {
    std::env::var("KILL_SWEEP").is_ok_and(|value| value == "all")
}
