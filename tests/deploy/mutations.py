"""Faults, each of which check_kubernetes.py must see: where, what is replaced with what, and how the failure reads."""

import re

BASE = "deploy/kubernetes/base/"
CPU = "deploy/kubernetes/overlays/cpu/"
GPU = "deploy/kubernetes/overlays/gpu/"
SCALED = "deploy/kubernetes/components/autoscaling/scaled_object.yaml"
MONITOR = "deploy/kubernetes/components/monitoring/service_monitor.yaml"

RULES = "deploy/kubernetes/components/monitoring/prometheus_rules.yaml"
RATE = "deploy/kubernetes/components/autoscaling/rate_trigger.yaml"
GRAFANA = "deploy/grafana/kustomization.yaml"
DEPLOYMENT = BASE + "deployment.yaml"

HPA = """apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: flashbias}
spec: {maxReplicas: 4, scaleTargetRef: {kind: Deployment, name: flashbias}}
---
"""

# By the check that must see them.
MUTATIONS = {
    "cpu": [
        # kustomize and schemas
        (BASE + "kustomization.yaml", "  - service.yaml\n", "", "0 objects of kind Service"),
        (BASE + "kustomization.yaml", "- service.yaml", "- services.yaml", "^kustomize cpu: "),
        (DEPLOYMENT, "minReadySeconds", "minimumReadySeconds", "Kubernetes 1.30: .*minimumReadySeconds"),
        (DEPLOYMENT, "maxSkew: 1", "maxSkew: one", "Kubernetes 1.37.*maxSkew"),
        (SCALED, "pollingInterval: 15", "pollInterval: 15", r"unknown field \.spec\.pollInterval"),
        (SCALED, "maxReplicaCount: 8", "maxReplicaCount: many", "maxReplicaCount"),
        (MONITOR, "scrapeTimeout", "timeout", "unknown field .*timeout"),
        # objects
        (BASE + "service_account.yaml", "name: flashbias\n", "name: other\n", "service account"),
        (CPU + "kustomization.yaml", "namespace: flashbias\n", "", "not in the namespace"),
        (CPU + "kustomization.yaml", "namespace: flashbias", "namespace: other", "job or namespace other"),
        # selectors
        (BASE + "service.yaml", "component: server", "component: serving", "Service: its selector"),
        (BASE + "pod_disruption_budget.yaml", "component: server", "component: x", "Budget: its selector"),
        (BASE + "network_policy.yaml", "component: server", "component: x", "NetworkPolicy: its selector"),
        (DEPLOYMENT, "              app.kubernetes.io/component: server", "              a: b", "spread over"),
        # ports and probes
        (DEPLOYMENT, "containerPort: 8472", "containerPort: 8473", "container's ports"),
        (BASE + "server.flags", "0.0.0.0:8471", "0.0.0.0:9000", "container's ports"),
        (BASE + "service.yaml", "targetPort: metrics", "targetPort: grpc", "Service: port"),
        (BASE + "service.yaml", "clusterIP: None", "type: ClusterIP", "clusterIP|headless"),
        (BASE + "service.yaml", "Addresses: false", "Addresses: true", "not ready"),
        (DEPLOYMENT, "port: 8471\n              service", "port: 8472\n              service", "startupProbe asks"),
        (DEPLOYMENT, "port: metrics", "port: grpc", "livenessProbe"),
        (DEPLOYMENT, "path: /metrics", "path: /", "livenessProbe"),
        (BASE + "service.yaml", "    - name: metrics\n      port: 8472\n      targetPort: metrics\n", "",
         "its ports are not"),
        # network
        (BASE + "network_policy.yaml", "  egress: []", "  egress: [{}]", "egress is not denied"),
        (BASE + "network_policy.yaml", "port: metrics", "port: grpc", "ingress to"),
        (BASE + "network_policy.yaml", "matchLabels:\n              kubernetes.io/metadata.name: monitoring",
         "{}", "open to a source"),
        # ending
        (BASE + "server.flags", "drain_timeout=30s", "drain_timeout=1m", "terminationGracePeriodSeconds is 50"),
        (DEPLOYMENT, "seconds: 10", "seconds: 20", "terminationGracePeriodSeconds is 50"),
        (DEPLOYMENT, "sleep:\n                seconds: 10", "exec:\n                command: [sleep]", "preStop is"),
        # flags
        (BASE + "server.flags", "--log_format", "--log_fromat", "refuses its flags.*log_fromat"),
        (BASE + "server.flags", "drain_timeout=30s", "drain_timeout=30", "refuses its flags"),
        (BASE + "server.flags", "shared_memory=off", "shared_memory=auto", "--shared_memory"),
        (BASE + "server.flags", "--listen_unix=", "--listen_unix=/tmp/s", "--listen_unix"),
        (BASE + "server.flags", "connection_age=2m", "connection_age=inf", "--max_connection_age is"),
        (CPU + "backend.flags", "backend=cpu", "backend=auto", "--backend is"),
        (CPU + "backend.flags", "cpu_threads=6", "cpu_threads=8", "--cpu_threads is 8"),
        (CPU + "backend.flags", "copy_threads=2", "copy_threads=0", "--copy_threads is 0"),
        (CPU + "backend.flags", "--backend=cpu", "--backend=cpu\n--max_stream_bytes=17179869184", "memory limit"),
        (DEPLOYMENT, "server.flags,/etc", "server.flag,/etc", "refuses its flags"),
        (BASE + "server.flags", "--max_connection_age_grace=10m", "--max_connection_age_grace=inf", "age_grace is"),
        # image and security
        (CPU + "kustomization.yaml", "newTag: 0.1.0", "newTag: 9.9.9", "the image is"),
        (DEPLOYMENT, "command: [flashbias-server]", "command: [flashbias]", "the command is"),
        ("Dockerfile", "/programs/ /usr/local/bin/", "/programs/ /programs/", "the command is"),
        (DEPLOYMENT, "runAsUser: 10001", "runAsUser: 10002", "runs as 10002"),
        (DEPLOYMENT, "runAsNonRoot: true", "runAsNonRoot: false", "security: runAsNonRoot"),
        (DEPLOYMENT, "type: RuntimeDefault", "type: Unconfined", "security: seccomp"),
        (DEPLOYMENT, "drop: [ALL]", "drop: [NET_RAW]", "security: capabilities"),
        (DEPLOYMENT, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "security: readOnly"),
        (DEPLOYMENT, "automountServiceAccountToken: false", "automountServiceAccountToken: true", "security: token"),
        (DEPLOYMENT, "runAsGroup: 10001", "runAsGroup: 0", "security: runAsGroup"),
        (DEPLOYMENT, "Escalation: false", "Escalation: true", "security: allowPrivilegeEscalation"),
        (DEPLOYMENT, "Escalation: false", "Escalation: false\n            privileged: true", "security: privileged"),
        (DEPLOYMENT, "enableServiceLinks: false", "hostNetwork: true", "security: host"),
        (BASE + "service_account.yaml", "Token: false", "Token: true", "security: token"),
        # capacity and scaling
        (DEPLOYMENT, "maxUnavailable: 0", "maxUnavailable: 1", "below capacity"),
        (DEPLOYMENT, "spec:\n  selector", "spec:\n  replicas: 2\n  selector", "replicas is set"),
        (BASE + "pod_disruption_budget.yaml", "maxUnavailable: 1", "maxUnavailable: 2", "2 of 2 replicas"),
        (BASE + "namespace.yaml", "apiVersion: v1\n", HPA + "apiVersion: v1\n", "HorizontalPodAutoscaler beside"),
        (SCALED, "minReplicaCount: 2", "minReplicaCount: 1", "1 of 1 replicas"),
        (SCALED, "maxReplicaCount: 8", "maxReplicaCount: 2", "minReplicaCount"),
        (SCALED, "name: flashbias\n  # Two", "name: other\n  # Two", "its target"),
        (SCALED, "Seconds: 900", "Seconds: 60", "five minutes"),
        (SCALED, 'threshold: "20"', 'threshold: "0"', "threshold 0"),
        (SCALED, 'ignoreNullValues: "false"', 'ignoreNullValues: "true"', "no load"),
        (SCALED, 'namespace="flashbias", stage', 'namespace="other", stage', "namespace flashbias"),
        (SCALED, "[2m])) == 0", "[2m]) == 0", "promtool test rules"),
        (SCALED, "          or sum(rate(flashbias_requests_total", "          or 1 + sum(rate(flashbias_requests_total",
         "promtool test rules"),
        (SCALED, "/ (sum(rate(flashbias_stage", "/ (count(rate(flashbias_stage", "promtool test rules"),
        # monitoring
        (MONITOR, "jobLabel: app.kubernetes.io/name", "jobLabel: app.kubernetes.io/component", "the job is"),
        (MONITOR, "- port: metrics", "- port: grpc", "port metrics alone"),
        (MONITOR, "name: flashbias\n  endpoints", "name: other\n  endpoints", "ServiceMonitor: its selector"),
        (RULES, "flashbias_queue_limit_requests", "flashbias_queue_limit_bytes", "not the rules of deploy/prometheus"),
        (RULES, "(flashbias_queue_limit_requests)", "(flashbias_queue_limit_requests", "promtool check rules"),
        (GRAFANA, 'grafana_dashboard: "1"', 'grafana_dashboard: "0"', "sidecar"),
        (GRAFANA, "dashboards/flashbias-batching.json", "dashboards/flashbias-overview.json", "overview.json: twice"),
        (GRAFANA, "dashboards/flashbias-overview.json", "README.md", "flashbias-overview.json: its ConfigMap"),
        (CPU + "deployment_patch.yaml", 'cpu: "8"\n            limits:', 'cpu: "8"\n            limits:\n              '
         'nvidia.com/gpu: "1"', "overlay cpu: 1 GPUs"),
    ],
    "gpu": [
        (GPU + "backend.flags", "backend=cuda", "backend=auto", "--backend is"),
        (GPU + "backend.flags", "--backend=cuda", "--backend=cuda\n--pinned_memory_bytes=17179869184", "memory limit"),
        (GPU + "kustomization.yaml", "-cuda", "-cpu", "the image is"),
        (GPU + "deployment_patch.yaml", "compute.major", "family", "affinity False"),
        (GPU + "deployment_patch.yaml", 'nvidia.com/gpu: "1"', 'memory: 16Gi', "0 GPUs"),
        (GPU + "deployment_patch.yaml", "- key: nvidia.com/gpu\n          operator: Exists", "- operator: Exists",
         "toleration False"),
    ],
    "base": [
        (BASE + "kustomization.yaml", "  - service.yaml\n",
         "  - service.yaml\n  - ../components/monitoring/service_monitor.yaml\n", "kustomize base"),
        (DEPLOYMENT, "spec:\n  selector", "spec:\n  replicas: 2\n  selector", "base: has"),
    ],
    "variants": [
        ("deploy/kubernetes/components/fixed_replicas/kustomization.yaml", "count: 3", "count: 1", "1 of 1 replicas"),
        (RATE, "threshold: PLANNED_RATE", 'threshold: "7"', "as it stands"),
        (RATE, "metricType", "metricsType", "unknown field"),
        (RATE, "sum(rate", "max(rate", "promtool test rules"),
        ("deploy/kubernetes/components/autoscaling/kustomization.yaml", "scaled_object.yaml\n",
         "scaled_object.yaml\n  - ../monitoring/service_monitor.yaml\n", "kustomize"),
    ],
    "rollout": [
        (BASE + "kustomization.yaml", "    options:\n", "    options:\n      disableNameSuffixHash: true\n",
         "leaves the pods"),
    ],
    "live": [
        (DEPLOYMENT, "service: flashbias.v1.AttentionService", "service: flashbias.v2.AttentionService", "NOT_FOUND"),
        (SCALED, 'stage="queue"', 'stage="queueing"', "the server exports no"),
        (SCALED, "flashbias_rejected_total", "flashbias_refused_total", "the server exports no"),
        (BASE + "server.flags", "--log_format",
         "--port_file=/nowhere\n--reflection=maybe\n--log_format", "does not serve"),
    ],
}


def check_mutations(tree, checks):
    """checks: by the names above, what gives the tree's failures."""
    for check, mutations in MUTATIONS.items():
        # A failure of the unbroken tree is no sign of a fault.
        unbroken = checks[check]()
        yield from (f"unbroken: {failure}" for failure in unbroken)
        for mutation in mutations:
            yield from unseen(tree, checks[check], unbroken, *mutation)
        print(f"{check}: {len(mutations)} faults")


def unseen(tree, failures, unbroken, file, old, new, wanted):
    path = tree / file
    text = path.read_text()
    if old not in text:
        yield f"{file}: there is no {old!r} to replace"
        return
    path.write_text(text.replace(old, new, 1))
    found = [failure for failure in failures() if failure not in unbroken]
    path.write_text(text)
    if not any(re.search(wanted, failure, re.DOTALL) for failure in found):
        yield f"{file}: {old!r} replaced with {new!r} is not seen as {wanted!r}: {found}"
