//! Capabilities: what no volume can have is refused, and confirmed to no caller.

use cinderblock::csi::proto::volume_capability::access_mode::Mode;
use cinderblock::csi::proto::volume_capability::{AccessMode, AccessType};
use cinderblock::csi::proto::*;
use tonic::Code;

use super::session::{Session, block, refused};
use super::{Check, check};

pub fn checks() -> Vec<Check> {
    vec![
        check!(the_access_mode_matrix_of_filesystems),
        check!(the_access_mode_matrix_of_devices),
        check!(incomplete_capabilities_are_refused),
        check!(all_capabilities_of_a_request_must_hold),
        check!(repeated_and_reordered_capabilities_ask_for_the_same),
        check!(confirmed_is_what_was_asked),
        check!(what_cannot_be_is_not_confirmed_and_said_why),
        check!(validation_needs_an_id_and_capabilities),
    ]
}

const MODES: [Mode; 7] = [
    Mode::SingleNodeWriter,
    Mode::SingleNodeReaderOnly,
    Mode::MultiNodeReaderOnly,
    Mode::MultiNodeSingleWriter,
    Mode::MultiNodeMultiWriter,
    Mode::SingleNodeSingleWriter,
    Mode::SingleNodeMultiWriter,
];

/// Creates a volume with the capability and has it validated on another: both must say the same.
async fn agree(
    session: &Session,
    what: &str,
    capability: VolumeCapability,
    validated_on: &str,
) -> bool {
    let request = CreateVolumeRequest {
        volume_capabilities: vec![capability.clone()],
        ..session.new_volume(what)
    };
    let created = match session.create(request).await {
        Ok(volume) => {
            session.delete_volume(&volume.volume_id).await.unwrap();
            true
        }
        outcome => {
            refused(what, outcome, &[Code::InvalidArgument]);
            false
        }
    };
    let request = ValidateVolumeCapabilitiesRequest {
        volume_capabilities: vec![capability],
        ..session.validation(validated_on)
    };
    let validated = session.validate(request).await.unwrap();
    assert_eq!(
        validated.confirmed.is_some(),
        created,
        "{what}: CreateVolume {created}, but {validated:?}"
    );
    created
}

async fn the_access_mode_matrix_of_filesystems(session: &Session) {
    let volume = session.volume("v").await;
    for mode in MODES {
        let granted =
            agree(session, mode.as_str_name(), session.mounted(mode), &volume.volume_id).await;
        let alone = matches!(mode, Mode::SingleNodeWriter | Mode::SingleNodeReaderOnly);
        let destroys = matches!(mode, Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter);
        // A filesystem of one node's is destroyed by a second writer; how the rest is divided is
        // the driver's affair.
        assert!(granted || !alone, "{} is the least a volume is good for", mode.as_str_name());
        assert!(
            !granted || !destroys,
            "{} on {}",
            mode.as_str_name(),
            session.target.description.fs_type
        );
    }
}

async fn the_access_mode_matrix_of_devices(session: &Session) {
    let request = CreateVolumeRequest {
        volume_capabilities: vec![block(Mode::SingleNodeWriter)],
        ..session.new_volume("device")
    };
    let volume = session.create(request).await.unwrap();
    for mode in MODES {
        agree(session, mode.as_str_name(), block(mode), &volume.volume_id).await;
    }
}

fn incomplete(session: &Session) -> Vec<(&'static str, VolumeCapability)> {
    let good = session.mounted(Mode::SingleNodeWriter);
    let mode = |mode| VolumeCapability { access_mode: Some(AccessMode { mode }), ..good.clone() };
    vec![
        ("nothing", VolumeCapability::default()),
        ("no access_type", VolumeCapability { access_type: None, ..good.clone() }),
        ("no access_mode", VolumeCapability { access_mode: None, ..good.clone() }),
        ("UNKNOWN mode", mode(0)),
        ("mode 99", mode(99)),
        ("mode -1", mode(-1)),
    ]
}

async fn incomplete_capabilities_are_refused(session: &Session) {
    for (what, capability) in incomplete(session) {
        for volume_capabilities in [
            vec![capability.clone()],
            vec![session.mounted(Mode::SingleNodeWriter), capability.clone()],
        ] {
            let request =
                CreateVolumeRequest { volume_capabilities, ..session.new_volume("incomplete") };
            refused(what, session.create(request).await, &[Code::InvalidArgument]);
        }
    }
    let request =
        CreateVolumeRequest { volume_capabilities: Vec::new(), ..session.new_volume("none") };
    refused("none", session.create(request).await, &[Code::InvalidArgument]);
}

async fn all_capabilities_of_a_request_must_hold(session: &Session) {
    let good = session.mounted(Mode::SingleNodeWriter);
    let bad = session.mounted(Mode::MultiNodeMultiWriter);
    for (what, volume_capabilities) in
        [("last", vec![good.clone(), bad.clone()]), ("first", vec![bad, good])]
    {
        let request = CreateVolumeRequest { volume_capabilities, ..session.new_volume(what) };
        refused(what, session.create(request).await, &[Code::InvalidArgument]);
    }
}

async fn repeated_and_reordered_capabilities_ask_for_the_same(session: &Session) {
    let (a, b) =
        (session.mounted(Mode::SingleNodeWriter), session.mounted(Mode::SingleNodeReaderOnly));
    let with = |volume_capabilities| CreateVolumeRequest {
        volume_capabilities,
        ..session.new_volume("v")
    };
    let volume = session.create(with(vec![a.clone(), b.clone()])).await.unwrap();
    for capabilities in [vec![b.clone(), a.clone()], vec![a.clone(), b.clone(), a.clone()]] {
        assert_eq!(session.create(with(capabilities)).await.unwrap().volume_id, volume.volume_id);
    }
}

async fn confirmed_is_what_was_asked(session: &Session) {
    let volume = session.volume("v").await;
    let request = ValidateVolumeCapabilitiesRequest {
        volume_context: volume.volume_context.clone(),
        parameters: session.target.description.parameters.clone(),
        ..session.validation(&volume.volume_id)
    };
    let answer = session.validate(request.clone()).await.unwrap();
    let confirmed = answer.confirmed.unwrap_or_else(|| panic!("not confirmed: {}", answer.message));
    assert_eq!(confirmed.volume_capabilities, request.volume_capabilities);
    assert_eq!(confirmed.volume_context, request.volume_context);
    assert_eq!(confirmed.parameters, request.parameters);
}

async fn what_cannot_be_is_not_confirmed_and_said_why(session: &Session) {
    let volume = session.volume("v").await;
    let good = session.validation(&volume.volume_id);
    let mut unknown_filesystem = session.mounted(Mode::SingleNodeWriter);
    let Some(AccessType::Mount(mount)) = &mut unknown_filesystem.access_type else {
        unreachable!()
    };
    mount.fs_type = "nosuchfs".to_string();
    let parameters = [("no-such-parameter".to_string(), "x".to_string())].into();
    let capabilities = |volume_capabilities| ValidateVolumeCapabilitiesRequest {
        volume_capabilities,
        ..good.clone()
    };
    for (what, request) in [
        ("a filesystem nobody knows", capabilities(vec![unknown_filesystem])),
        (
            "one of two",
            capabilities(vec![
                session.mounted(Mode::SingleNodeWriter),
                session.mounted(Mode::MultiNodeMultiWriter),
            ]),
        ),
        ("an unknown parameter", ValidateVolumeCapabilitiesRequest { parameters, ..good.clone() }),
    ] {
        let answer =
            session.validate(request).await.unwrap_or_else(|status| panic!("{what}: {status:?}"));
        assert_eq!(answer.confirmed, None, "{what}");
        assert!(!answer.message.is_empty(), "{what}: no words");
    }
}

async fn validation_needs_an_id_and_capabilities(session: &Session) {
    let volume = session.volume("v").await;
    refused("no id", session.validate(session.validation("")).await, &[Code::InvalidArgument]);
    let none = ValidateVolumeCapabilitiesRequest {
        volume_capabilities: Vec::new(),
        ..session.validation(&volume.volume_id)
    };
    refused("no capabilities", session.validate(none).await, &[Code::InvalidArgument]);
}
