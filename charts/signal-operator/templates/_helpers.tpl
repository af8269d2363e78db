{{/* Name of every object. */}}
{{- define "signal-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What pods are selected by; never changes. The NetworkPolicies of gateways know the operator by the name. */}}
{{- define "signal-operator.selector" -}}
app.kubernetes.io/component: operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/name: {{ .Chart.Name }}
{{- end -}}

{{/* The recommended labels of every object. */}}
{{- define "signal-operator.labels" -}}
{{ include "signal-operator.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: signal
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Metadata of an object: list of context, name, and further labels and annotations. */}}
{{- define "signal-operator.metadata" -}}
{{- $context := index . 0 -}}
{{- $labels := merge (include "signal-operator.labels" $context | fromYaml) $context.Values.commonLabels -}}
{{- $annotations := deepCopy $context.Values.commonAnnotations -}}
{{- if gt (len .) 2 -}}
{{- $labels = merge $labels (index . 2) -}}
{{- end -}}
{{- if gt (len .) 3 -}}
{{- $annotations = mergeOverwrite $annotations (index . 3) -}}
{{- end -}}
name: {{ index . 1 }}
labels:
  {{- toYaml $labels | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "signal-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "signal-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name must be set when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "signal-operator.image" -}}
{{- $registry := default .Values.global.imageRegistry .Values.image.registry -}}
{{- $repository := .Values.image.repository -}}
{{- if $registry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" $registry) $repository -}}
{{- end -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "signal-operator.pullSecrets" -}}
{{- with concat .Values.global.imagePullSecrets .Values.image.pullSecrets | uniq -}}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* ADDRESS:PORT of a list of both. */}}
{{- define "signal-operator.address" -}}
{{- if contains ":" (index . 0) -}}
{{- printf "[%s]:%v" (index . 0) (index . 1) -}}
{{- else -}}
{{- printf "%s:%v" (index . 0) (index . 1) -}}
{{- end -}}
{{- end -}}

{{/* A security context, of a list of context and values: on OpenShift the constraints of the namespace give user and groups. */}}
{{- define "signal-operator.security" -}}
{{- $security := index . 1 -}}
{{- if eq (index . 0).Values.platform "OpenShift" -}}
{{- $security = omit $security "runAsUser" "runAsGroup" "fsGroup" -}}
{{- end -}}
{{- toYaml $security -}}
{{- end -}}
