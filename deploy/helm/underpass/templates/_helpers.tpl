{{/* What finds the pods, and everything that belongs to this release. */}}
{{- define "underpass.labels" -}}
app.kubernetes.io/name: underpass
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The name of everything: "underpass", or with the release's name in front. */}}
{{- define "underpass.name" -}}
{{- if contains "underpass" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-underpass{{ end }}
{{- end }}
