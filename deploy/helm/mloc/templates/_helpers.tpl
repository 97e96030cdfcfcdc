{{- define "mloc.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}{{ end }}{{ end }}
{{- end }}

{{- define "mloc.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: control-plane
{{- end }}

{{- define "mloc.labels" -}}
{{ include "mloc.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* The name of an image: registry, then digest or tag. Takes a list of the root and the image. */}}
{{- define "mloc.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}
{{- $name := $image.repository }}
{{- with $root.Values.imageRegistry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end }}
{{- if $image.digest }}{{ $name }}@{{ $image.digest }}
{{- else }}{{ $name }}:{{ default $root.Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{- define "mloc.serviceAccount" -}}
{{ default (ternary (include "mloc.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{- define "mloc.stageServiceAccount" -}}
{{ default (ternary (printf "%s-stages" (include "mloc.fullname" .)) "default" .Values.stageServiceAccount.create) .Values.stageServiceAccount.name }}
{{- end }}

{{- define "mloc.stageNamespace" -}}
{{ default .Release.Namespace .Values.stageNamespace }}
{{- end }}

{{- /* Where files are left for each other; empty when nowhere. */}}
{{- define "mloc.artifacts" -}}
{{- if .Values.artifacts.s3.url }}{{ .Values.artifacts.s3.url }}
{{- else if .Values.artifacts.claim.name }}file:///artifacts/store{{ end }}
{{- end }}

{{- /* Plain variables of the control plane and of stages, as a map. */}}
{{- define "mloc.shared" -}}
{{- $found := dict }}
{{- range $name, $value := .Values.env }}{{ $_ := set $found $name ($value | toString) }}{{ end }}
{{- with .Values.artifacts.s3.endpoint }}{{ $_ := set $found "AWS_ENDPOINT_URL" . }}{{ end }}
{{- with .Values.artifacts.s3.region }}{{ $_ := set $found "AWS_DEFAULT_REGION" . }}{{ end }}
{{- toJson $found }}
{{- end }}

{{- /* Names of the Secrets with variables, as {names: [...]}. */}}
{{- define "mloc.secrets" -}}
{{- $names := .Values.secrets }}
{{- with .Values.artifacts.s3.existingSecret }}{{ $names = append $names . }}{{ end }}
{{- toJson (dict "names" (uniq $names)) }}
{{- end }}

{{- /* workers.yaml: each pool over poolDefaults over what the chart knows; lists that name secrets, variables and
volumes are joined, everything else is replaced. Of the defaults' start_seconds_by_gpu a pool has the types of its GPUs. */}}
{{- define "mloc.workers" -}}
{{- $root := . }}
{{- $workers := list }}
{{- range .Values.pools }}
{{- $section := dict "image" (include "mloc.image" (list $root $root.Values.stageImage)) }}
{{- $_ := set $section "image_pull_policy" $root.Values.stageImage.pullPolicy }}
{{- $_ := set $section "namespace" (include "mloc.stageNamespace" $root) }}
{{- $_ := set $section "service_account" (include "mloc.stageServiceAccount" $root) }}
{{- $_ := set $section "user" ($root.Values.user | int) }}
{{- $_ := set $section "image_pull_secrets" $root.Values.pullSecrets }}
{{- $_ := set $section "env" (keys (fromJson (include "mloc.shared" $root)) | sortAlpha) }}
{{- $_ := set $section "env_from" (fromJson (include "mloc.secrets" $root)).names }}
{{- with $root.Values.kueue.localQueue }}{{ $_ := set $section "queue" . }}{{ end }}
{{- if and $root.Values.artifacts.claim.name (not $root.Values.artifacts.s3.url) }}
{{- $_ := set $section "volumes" (list (dict "name" "artifacts" "path" "/artifacts" "claim" $root.Values.artifacts.claim.name)) }}
{{- end }}
{{- $types := list }}
{{- range default list .gpus }}{{ $types = append $types (lower (toString .type)) }}{{ end }}
{{- $defaults := deepCopy $root.Values.poolDefaults }}
{{- range $type, $_ := default dict $root.Values.poolDefaults.start_seconds_by_gpu }}
{{- if not (has (lower $type) $types) }}{{ $_ := unset $defaults.start_seconds_by_gpu $type }}{{ end }}
{{- end }}
{{- range $given := list $defaults (default dict .kubernetes) }}
{{- range $key, $value := $given }}
{{- if has $key (list "image_pull_secrets" "env" "env_from" "volumes") }}
{{- $_ := set $section $key (concat (default list (get $section $key)) $value | uniq) }}
{{- else }}{{ $_ := set $section $key $value }}{{ end }}
{{- end }}
{{- end }}
{{- $workers = append $workers (merge (dict "kubernetes" $section) (omit . "kubernetes")) }}
{{- end }}
{{- toYaml (dict "artifacts" (include "mloc.artifacts" .) "workers" $workers) }}
{{- end }}

{{- /* What leaves the pods of the control plane and of stages. */}}
{{- define "mloc.egress" -}}
- to: [{namespaceSelector: {}}]
  ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
- to:
    {{- range .Values.networkPolicy.inside }}
    - ipBlock: {cidr: {{ . }}}
    {{- end }}
  ports:
    {{- range .Values.networkPolicy.ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- if .Values.networkPolicy.outbound }}
- to: [{ipBlock: {cidr: 0.0.0.0/0}}]
  ports: [{protocol: TCP, port: 443}]
{{- end }}
{{- with .Values.networkPolicy.egress }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* What all containers of the control plane have in common. */}}
{{- define "mloc.container" -}}
image: {{ include "mloc.image" (list . .Values.image) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}
