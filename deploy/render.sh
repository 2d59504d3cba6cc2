#!/usr/bin/env bash
# Prints the plain manifests: the chart with its defaults and values.yaml beside this script.
# `make manifests` writes them to cinderblock.yaml, and tests/chart fails when the two differ.
# KUBE_VERSION=1.30.0 deploy/render.sh prints them for an older Kubernetes.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
helm=$here/.tools/bin/helm
[[ -x $helm ]] || {
    echo "helm is not built; run: make tools" >&2
    exit 1
}
cd "$here"
echo "# Rendered from charts/cinderblock with deploy/values.yaml; change those, then run: make manifests"
"$helm" template cinderblock charts/cinderblock --namespace cinderblock --values deploy/values.yaml --skip-tests --kube-version "${KUBE_VERSION:-1.34.0}"
