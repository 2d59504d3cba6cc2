//! This repository's driver as the target: both roles on one socket, in a RADOS namespace of its
//! own.

use cinderblock::csi::parameters::Parameters;

use super::common::driver::{Class, Driver, lab_config_with_own_user};
use super::common::{Lab, Namespace};
use super::target::Description;

pub struct OwnDriver {
    lab: &'static Lab,
    namespace: Namespace<'static>,
    driver: Driver,
    _state: tempfile::TempDir,
}

impl OwnDriver {
    pub fn start() -> OwnDriver {
        // For as long as the process lives.
        let lab: &'static Lab = Box::leak(Box::new(Lab::from_environment()));
        let namespace = Namespace::new(lab);
        let state = tempfile::tempdir().unwrap();
        let config = lab_config_with_own_user(lab, &namespace.name);
        let arguments = ["--role", "all", "--node-id", "conformance", "--state-dir"];
        let driver =
            Driver::start(&config, &[&arguments[..], &[state.path().to_str().unwrap()]].concat());
        OwnDriver { lab, namespace, driver, _state: state }
    }

    pub fn description(&self) -> Description {
        let class = Class::new(self.lab, &self.namespace.name);
        let pairs = |pairs: &[(&str, &str)]| -> Parameters {
            pairs.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
        };
        Description {
            endpoint: format!("unix://{}", self.driver.socket().display()),
            other_parameters: Some(class.clone().with("maxCloneDepth", "3").parameters),
            parameters: class.parameters,
            snapshot_parameters: pairs(&[("clusterID", "lab")]),
            mutable_parameters: pairs(&[("rbd_qos_iops_limit", "1000")]),
            other_mutable_parameters: pairs(&[("rbd_qos_iops_limit", "2000")]),
            secrets: class.secrets,
            wrong_secrets: Some(pairs(&[
                ("userID", self.lab.user.as_str()),
                ("userKey", "AQCU0ARnAAAAABAAfK8wbqI8hcGyMdBbOSGrqg=="),
            ])),
            size: 16 << 20,
            granularity: 512,
            fs_type: "ext4".to_string(),
            differences: [].into(),
        }
    }

    /// Ends the driver, and fails when anything of the checks is left, or a key is in its log.
    pub fn leave_nothing(self) {
        assert!(!self.driver.log().contains(self.lab.key.expose()), "the driver has logged a key");
        self.driver.stop();
        self.namespace.assert_nothing_is_recorded();
        self.namespace.assert_empty();
        println!("conformance: nothing is left");
    }
}
