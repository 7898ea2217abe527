{{- define "open-spanner.name" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{- end -}}
{{- end -}}

{{- define "open-spanner.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "open-spanner.labels" -}}
{{ include "open-spanner.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "open-spanner.image" -}}
{{- $repository := required "image.repository is required: where the image is" .Values.image.repository -}}
{{- if .Values.image.digest -}}{{ $repository }}@{{ .Values.image.digest }}{{- else -}}{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{- end -}}
{{- end -}}

{{- define "open-spanner.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}{{ .Values.serviceAccount.name | default (include "open-spanner.name" .) }}{{- else -}}{{ .Values.serviceAccount.name | default "default" }}{{- end -}}
{{- end -}}

{{- /* What every process is told; the key of the Secret with the connection string comes as `key`. */ -}}
{{- define "open-spanner.environment" -}}
- {name: OPEN_SPANNER_DB_DRIVER, value: postgres}
- {name: OPEN_SPANNER_POSTGRES_DSN_FILE, value: /run/secrets/database/{{ .key }}}
- {name: OPEN_SPANNER_METRICS_ADDR, value: ":9464"}
{{- range $name, $value := .root.Values.settings }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- range .root.Values.secretSettings }}
- name: {{ .name }}
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}}
{{- end }}
{{- end -}}

{{- /* The restricted profile of Pod Security, for every container. */ -}}
{{- define "open-spanner.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- define "open-spanner.pod" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - {name: {{ . }}}
{{- end }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .role }}
topologySpreadConstraints:
{{- with .root.Values.topologySpreadConstraints }}
{{- toYaml . | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "open-spanner.selector" .root | nindent 8 }}
        app.kubernetes.io/component: {{ .role }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The Secret, and a place for what a process writes. */ -}}
{{- define "open-spanner.mounts" -}}
- {name: database, mountPath: /run/secrets/database, readOnly: true}
- {name: data, mountPath: /data}
{{- end -}}

{{- define "open-spanner.volumes" -}}
- name: database
  secret:
    secretName: {{ required "database.existingSecret is required: a Secret with the connection string" .Values.database.existingSecret }}
    defaultMode: 0440
- name: data
  emptyDir: {}
{{- end -}}

{{- define "open-spanner.exportsVolume" -}}
- name: exports
  persistentVolumeClaim:
    claimName: {{ .Values.exports.existingClaim | default (printf "%s-exports" (include "open-spanner.name" .)) }}
{{- end -}}
