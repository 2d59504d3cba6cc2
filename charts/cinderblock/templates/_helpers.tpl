{{- define "cinderblock.name" -}}
{{- if contains "cinderblock" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-cinderblock" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "cinderblock.labels" -}}
app.kubernetes.io/name: cinderblock
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Selectors never change, or upgrades fail. Takes (list root component). */}}
{{- define "cinderblock.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: cinderblock
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Takes (list root component). */}}
{{- define "cinderblock.serviceAccount" -}}
{{- $root := index . 0 -}}
{{- $account := get $root.Values.serviceAccount (index . 1) -}}
{{- $account.name | default (printf "%s-%s" (include "cinderblock.name" $root) (index . 1)) -}}
{{- end }}

{{/* Takes (list root image defaultTag). global.imageRegistry takes the place of a repository's registry. */}}
{{- define "cinderblock.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $repository := $image.repository -}}
{{- with $root.Values.global.imageRegistry -}}
{{- $parts := splitList "/" $repository -}}
{{- if and (rest $parts) (regexMatch "[.:]|^localhost$" (first $parts)) -}}{{ $parts = rest $parts }}{{- end -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (join "/" $parts) -}}
{{- end -}}
{{- $repository }}:{{ $image.tag | default (index . 2) }}{{ with $image.digest }}@{{ . }}{{ end -}}
{{- end }}

{{- define "cinderblock.configMap" -}}
{{- .Values.existingConfigMap | default (printf "%s-clusters" (include "cinderblock.name" .)) -}}
{{- end }}

{{/* The driver's configuration: the list of clusters. */}}
{{- define "cinderblock.configuration" -}}
{{- $clusters := list -}}
{{- range $id, $cluster := .Values.clusters -}}
{{- $entry := merge (dict "clusterID" $id) (omit $cluster "secret" "ownUser") -}}
{{- with $cluster.ownUser -}}
{{- $entry = merge $entry (dict "userID" .userID "keyFile" (printf "/etc/cinderblock/keys/%s" $id)) -}}
{{- end -}}
{{- $clusters = append $clusters $entry -}}
{{- end -}}
{{- toYaml $clusters -}}
{{- end }}

{{/* The Secret of a class, as JSON {name, namespace}: its own, else its cluster's. Takes (list root kind name class). */}}
{{- define "cinderblock.secret" -}}
{{- $root := index . 0 -}}
{{- $class := index . 3 -}}
{{- $cluster := get $root.Values.clusters $class.cluster | default dict -}}
{{- if and $root.Values.clusters (not (hasKey $root.Values.clusters $class.cluster)) -}}
{{- fail (printf "%s.%s: the cluster %q is not among clusters, which has %s" (index . 1) (index . 2) $class.cluster (keys $root.Values.clusters | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $secret := $class.secret | default $cluster.secret -}}
{{- if not $secret -}}
{{- fail (printf "%s.%s: name an existing Secret with userID and userKey, as secret.name here or at the cluster %q" (index . 1) (index . 2) $class.cluster) -}}
{{- end -}}
{{- dict "name" $secret.name "namespace" ($secret.namespace | default $root.Release.Namespace) | toJson -}}
{{- end }}

{{/* Keys of a class that name its Secret. Takes (list secret kind…). */}}
{{- define "cinderblock.secretParameters" -}}
{{- $secret := first . -}}
{{- range $kind := rest . }}
csi.storage.k8s.io/{{ $kind }}-secret-name: {{ $secret.name | quote }}
csi.storage.k8s.io/{{ $kind }}-secret-namespace: {{ $secret.namespace | quote }}
{{- end }}
{{- end }}

{{/* Names of the Secrets that sidecars read, by namespace, as JSON. */}}
{{- define "cinderblock.secretsByNamespace" -}}
{{- $root := . -}}
{{- $found := dict -}}
{{- $secrets := list -}}
{{- range $kind := list "storageClasses" "volumeSnapshotClasses" "volumeGroupSnapshotClasses" -}}
{{- range $name, $class := get $root.Values $kind -}}
{{- $secrets = append $secrets (include "cinderblock.secret" (list $root $kind $name $class) | fromJson) -}}
{{- end -}}
{{- end -}}
{{- range $cluster := .Values.clusters -}}
{{- with $cluster.secret -}}
{{- $secrets = append $secrets (dict "name" .name "namespace" (.namespace | default $root.Release.Namespace)) -}}
{{- end -}}
{{- end -}}
{{- range concat $secrets .Values.rbac.secrets -}}
{{- $_ := set $found .namespace (append (get $found .namespace | default list) .name | uniq | sortAlpha) -}}
{{- end -}}
{{- toJson $found -}}
{{- end }}

{{/* "true" when the room that is left is published. csi-provisioner 6.3 takes what it has published for nodes without topology for a leftover
and removes it, and then the scheduler takes no node. */}}
{{- define "cinderblock.storageCapacity" -}}
{{- $answers := and (gt (len .Values.clusters) 0) (eq (include "cinderblock.topology" .) "true") -}}
{{- range .Values.clusters }}{{ if not .ownUser }}{{ $answers = false }}{{ end }}{{ end -}}
{{- if or (eq (toString .Values.storageCapacity) "true") (and (eq (toString .Values.storageCapacity) "auto") $answers) -}}true{{- end -}}
{{- end }}

{{/* "true" when some cluster is not reached from every node. */}}
{{- define "cinderblock.topology" -}}
{{- $used := or .Values.node.topology .Values.node.topologyLabels -}}
{{- range .Values.clusters }}{{ if .topology }}{{ $used = true }}{{ end }}{{ end -}}
{{- if $used -}}true{{- end -}}
{{- end }}

{{/* "true" when volumes stay attached while the node plugin restarts. */}}
{{- define "cinderblock.restartable" -}}
{{- $rbd := gt (len .Values.storageClasses) 0 -}}
{{- range .Values.storageClasses }}{{ if ne (.mounter | default "rbd") "rbd" }}{{ $rbd = false }}{{ end }}{{ end -}}
{{- if and (eq (toString .Values.node.restartable) "true") (not .Values.node.hostNetwork) -}}
{{- fail "node.restartable needs node.hostNetwork: krbd's connections end with the network namespace that they were made in, which is the pod's without it. Set node.hostNetwork to true, or node.restartable to false or auto" -}}
{{- end -}}
{{- $auto := and (eq (toString .Values.node.restartable) "auto") $rbd .Values.node.hostNetwork -}}
{{- if or (eq (toString .Values.node.restartable) "true") $auto -}}true{{- end -}}
{{- end }}

{{/* "true" where sidecars find storage.k8s.io/v1 VolumeAttributesClass, the one version they know. */}}
{{- define "cinderblock.volumeAttributesClasses" -}}
{{- if semverCompare ">=1.34.0-0" .Capabilities.KubeVersion.Version -}}true{{- end -}}
{{- end }}

{{/* The controller's sidecars that talk to Kubernetes, as JSON; their ports of metrics are in this order. */}}
{{- define "cinderblock.sidecars" -}}
{{- $sidecars := list "provisioner" "attacher" "resizer" -}}
{{- if .Values.sidecars.snapshotter.enabled }}{{ $sidecars = append $sidecars "snapshotter" }}{{ end -}}
{{- if .Values.snapshotMetadata.enabled }}{{ $sidecars = append $sidecars "snapshotMetadata" }}{{ end -}}
{{- toJson $sidecars -}}
{{- end }}

{{/* What every container but the node plugin's driver is held to. */}}
{{- define "cinderblock.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* A parameter as the string Kubernetes wants; numbers come as floats from YAML, and must not be written like 8e+06. */}}
{{- define "cinderblock.parameter" -}}
{{- if kindIs "float64" . }}{{ int64 . | toString | quote }}{{ else }}{{ toString . | quote }}{{ end -}}
{{- end }}

{{/* The ServiceAccount's token, for the containers that talk to Kubernetes alone. */}}
{{- define "cinderblock.tokenVolume" -}}
# Of those who talk to Kubernetes alone.
- name: token
  projected:
    defaultMode: 288 # 0440, as every reader of YAML has it
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3607
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                fieldPath: metadata.namespace
{{- end }}

{{/* The keys of the clusters' own users, in files that the configuration names. */}}
{{- define "cinderblock.keysVolume" -}}
- name: keys
  projected:
    defaultMode: 288 # 0440, as every reader of YAML has it
    sources:
      {{- range $id, $cluster := .Values.clusters }}
      {{- with $cluster.ownUser }}
      - secret:
          name: {{ .secret }}
          items:
            - key: userKey
              path: {{ $id | quote }}
      {{- end }}
      {{- end }}
{{- end }}
