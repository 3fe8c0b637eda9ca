{{- define "reeve.name" -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}

{{- define "reeve.selector" -}}
app.kubernetes.io/name: reeve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "reeve.labels" -}}
{{ include "reeve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "reeve.uninstall" -}}
{{- include "reeve.name" . }}-uninstall
{{- end -}}

{{/* For what is no agent: the DaemonSet's selector must not find it. */}}
{{- define "reeve.release" -}}
app.kubernetes.io/name: reeve-uninstall
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "reeve.hook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{- define "reeve.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
