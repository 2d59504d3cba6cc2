//! Commands of examples and pages, run as a person runs them whose namespace this is.

use std::path::Path;
use std::process::Command;

use super::space::Space;

/// Runs commands in `folder`, with variables that their text tells the reader to set. All have to
/// do well.
pub(crate) fn run(space: &Space<'_>, folder: &Path, variables: &[(&str, &str)], commands: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_BIN_EXE_cinderblock")).parent().unwrap();
    let script = format!(
        r#"set -euo pipefail
        PATH={}:$PATH
        kubectl() {{
            local more=()
            # No kubelet says that a pod has ended.
            [[ " $* " != *" delete pod "* ]] || more=(--grace-period=0 --force)
            '{}/.tools/bin/kubectl' --kubeconfig "$kubeconfig" "$@" "${{more[@]}}"
        }}
        kubeconfig=$(mktemp)
        trap 'rm "$kubeconfig"' EXIT
        cp "$KUBECONFIG" "$kubeconfig"
        namespace='{}'
        kubectl config set-context --current --namespace "$namespace" >/dev/null
        {commands}"#,
        program.display(),
        root.display(),
        space.name
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .envs(variables.iter().copied())
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{commands}: {}", String::from_utf8_lossy(&output.stderr));
}
