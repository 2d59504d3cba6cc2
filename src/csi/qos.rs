//! Mutable parameters: what a VolumeAttributesClass may set and change. Today that is librbd's own
//! quality of service.
//!
//! A key `rbd_qos_…` becomes the image configuration of that name, which every librbd client of the
//! image heeds as soon as it changes (krbd does not). All keys are checked before any is applied,
//! with what the image has already. A key that is not named is not changed; `0` is no limit. A
//! volume made from another takes none of its limits.

use super::parameters::{self, Parameter, Parameters, parameter};
use std::collections::BTreeMap;
use tonic::Status;

/// The image metadata keys that librbd reads as configuration begin so.
const CONFIGURATION_PREFIX: &str = "conf_";

/// librbd's options, all of them whole numbers: a limit, a burst, and how many seconds a burst may
/// last.
pub const MUTABLE_PARAMETERS: &[Parameter] = &[
    parameter("rbd_qos_iops_limit", "0", "Operations in a second; 0 is no limit."),
    parameter(
        "rbd_qos_iops_burst",
        "0",
        "Operations in a second for a short while; not below the limit; 0 is none.",
    ),
    parameter("rbd_qos_iops_burst_seconds", "1", "For how many seconds, at least 1."),
    parameter("rbd_qos_bps_limit", "0", "Bytes read and written in a second; 0 is no limit."),
    parameter(
        "rbd_qos_bps_burst",
        "0",
        "Bytes read and written in a second for a short while; not below the limit; 0 is none.",
    ),
    parameter("rbd_qos_bps_burst_seconds", "1", "For how many seconds, at least 1."),
    parameter("rbd_qos_read_iops_limit", "0", "Reads in a second; 0 is no limit."),
    parameter(
        "rbd_qos_read_iops_burst",
        "0",
        "Reads in a second for a short while; not below the limit; 0 is none.",
    ),
    parameter("rbd_qos_read_iops_burst_seconds", "1", "For how many seconds, at least 1."),
    parameter("rbd_qos_read_bps_limit", "0", "Bytes read in a second; 0 is no limit."),
    parameter(
        "rbd_qos_read_bps_burst",
        "0",
        "Bytes read in a second for a short while; not below the limit; 0 is none.",
    ),
    parameter("rbd_qos_read_bps_burst_seconds", "1", "For how many seconds, at least 1."),
    parameter("rbd_qos_write_iops_limit", "0", "Writes in a second; 0 is no limit."),
    parameter(
        "rbd_qos_write_iops_burst",
        "0",
        "Writes in a second for a short while; not below the limit; 0 is none.",
    ),
    parameter("rbd_qos_write_iops_burst_seconds", "1", "For how many seconds, at least 1."),
    parameter("rbd_qos_write_bps_limit", "0", "Bytes written in a second; 0 is no limit."),
    parameter(
        "rbd_qos_write_bps_burst",
        "0",
        "Bytes written in a second for a short while; not below the limit; 0 is none.",
    ),
    parameter("rbd_qos_write_bps_burst_seconds", "1", "For how many seconds, at least 1."),
];

/// Checks mutable parameters and gives the image metadata to set. A burst must not be below its
/// limit.
pub fn settings(mutable: &Parameters) -> Result<BTreeMap<String, String>, Status> {
    let mutable = parameters::compared(mutable);
    let mut settings = BTreeMap::new();
    for (key, text) in &mutable {
        if !MUTABLE_PARAMETERS.iter().any(|parameter| parameter.name == key) {
            return Err(parameters::unknown("mutable parameter", key, MUTABLE_PARAMETERS));
        }
        let number = text.parse::<u64>().map_err(|_| {
            Status::invalid_argument(format!(
                "{key} is a whole number, 0 for no limit, not {text:?}"
            ))
        })?;
        if key.ends_with("_seconds") && number == 0 {
            return Err(Status::invalid_argument(format!("{key} is at least 1")));
        }
        settings.insert(format!("{CONFIGURATION_PREFIX}{key}"), number.to_string());
    }
    check(&settings).map_err(Status::invalid_argument)?;
    Ok(settings)
}

/// Checks limits and bursts against each other, as image metadata that an image has or is to have.
/// Other metadata is not looked at.
pub fn check(settings: &BTreeMap<String, String>) -> Result<(), String> {
    let number = |text: &String| text.parse::<u64>().unwrap_or(0);
    for (key, burst) in settings.iter().filter(|(key, _)| key.ends_with("_burst")) {
        let Some(name) = key.strip_prefix(CONFIGURATION_PREFIX) else { continue };
        let limit_name = name.replace("_burst", "_limit");
        let Some(limit) = settings.get(&format!("{CONFIGURATION_PREFIX}{limit_name}")) else {
            continue;
        };
        if MUTABLE_PARAMETERS.iter().any(|known| known.name == name)
            && number(burst) != 0
            && number(burst) < number(limit)
        {
            return Err(format!("{name} is {burst}, less than {limit_name}, which is {limit}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        pairs.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
    }

    #[test]
    fn limits_become_image_configuration() {
        let settings = settings(&parameters(&[
            ("rbd_qos_iops_limit", "500"),
            ("csi.storage.k8s.io/pvc/name", "x"),
        ]))
        .unwrap();
        assert_eq!(settings, parameters(&[("conf_rbd_qos_iops_limit", "500")]));
    }

    #[test]
    fn a_limit_is_checked_against_the_burst_an_image_has() {
        let settings = |limit, burst| {
            parameters(&[
                ("conf_rbd_qos_iops_limit", limit),
                ("conf_rbd_qos_iops_burst", burst),
                ("other_burst", "1"),
            ])
        };
        check(&settings("5", "5")).unwrap();
        check(&settings("5", "0")).unwrap();
        assert!(check(&settings("6", "5")).unwrap_err().contains("less than rbd_qos_iops_limit"));
    }

    #[test]
    fn one_wrong_key_or_value_refuses_all() {
        for (pairs, words) in [
            (
                &[("rbd_qos_iops_limit", "5"), ("XXX_FakeKey", "x")][..],
                "unknown mutable parameter \"XXX_FakeKey\"",
            ),
            (&[("rbd_qos_iop_limit", "5")], "did you mean \"rbd_qos_iops_limit\""),
            (&[("rbd_qos_bps_limit", "-1")], "whole number"),
            (&[("rbd_qos_bps_limit", "10M")], "whole number"),
            (&[("rbd_qos_bps_burst_seconds", "0")], "at least 1"),
            (
                &[("rbd_qos_bps_limit", "10"), ("rbd_qos_bps_burst", "5")],
                "less than rbd_qos_bps_limit",
            ),
        ] {
            let status = settings(&parameters(pairs)).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(words), "{pairs:?} gave {:?}", status.message());
        }
    }
}
