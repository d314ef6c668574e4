#!/usr/bin/env bash
# Makes prometheus_rules.yaml of the rules in deploy/prometheus: kustomize cannot wrap a file into an object.
#
#   deploy/kubernetes/components/monitoring/generate.sh           writes it
#   deploy/kubernetes/components/monitoring/generate.sh --check   fails where it is not current
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# rule_object NAME FILE: the file's `groups:` become the object's spec.
rule_object() {
  cat <<END
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: $1
  labels:
    app.kubernetes.io/name: flashbias
spec:
END
  sed 's/^\(.\)/  \1/' "../../../prometheus/$2"
}

rules() {
  echo '# Made by generate.sh of deploy/prometheus/recording_rules.yml and alerts.yml: change those.'
  rule_object flashbias-recording-rules recording_rules.yml
  rule_object flashbias-alerts alerts.yml
}

case "${1:-}" in
  '') rules >prometheus_rules.yaml ;;
  --check)
    rules | diff -u prometheus_rules.yaml - || {
      echo "generate.sh: prometheus_rules.yaml is not current: run generate.sh" >&2
      exit 1
    }
    ;;
  *)
    echo "usage: $0 [--check]" >&2
    exit 2
    ;;
esac
