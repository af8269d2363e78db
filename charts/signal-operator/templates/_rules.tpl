{{/* What the operator may do in the namespaces of SignalClusters. No wildcards; nothing on Roles, nodes or namespaces; exec into no pod. */}}
{{- define "signal-operator.rules" -}}
# The resource itself is never written: only its status, and, by the autoscaler, its scale.
- apiGroups: [signal.dev]
  resources: [signalclusters]
  verbs: [get, list, watch]
- apiGroups: [signal.dev]
  resources: [signalclusters/status, signalclusters/scale]
  verbs: [get, patch, update]
# Owner references that block deletion, where the API server enforces the right to them.
- apiGroups: [signal.dev]
  resources: [signalclusters/finalizers]
  verbs: [update]
# What a SignalCluster owns. Secrets: those that its spec names are read, and its own are written.
- apiGroups: [""]
  resources: [configmaps, secrets, serviceaccounts, services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# Between the Deployment and its pods.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [list]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [ingresses, networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
{{- if .Values.rbac.gatewayAPI }}
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
# Whether the listener of a route speaks TLS.
- apiGroups: [gateway.networking.k8s.io]
  resources: [gateways]
  verbs: [get]
{{- end }}
{{- if .Values.rbac.prometheusOperator }}
- apiGroups: [monitoring.coreos.com]
  resources: [prometheusrules, servicemonitors]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
# Pods are marked as draining and given a deletion cost; the Deployment makes and deletes them.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
