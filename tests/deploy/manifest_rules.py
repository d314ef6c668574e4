"""What must hold between objects, and between them and the server; each rule yields its failures."""

import re
import subprocess

import yaml

from manifests import canonical, quantity, seconds

# At most: cutting short and closing connections, then the metrics endpoint.
ENDING_SECONDS = 4


def check_objects(m):
    namespace = m.one("Namespace")["metadata"]["name"]
    for item in m.objects:
        if item["kind"] != "Namespace" and item["metadata"].get("namespace") != namespace:
            yield f"{item['kind']} {item['metadata']['name']} is not in the namespace {namespace}"


def check_selectors(m):
    labels = m.pod["metadata"]["labels"]
    selectors = {
        "Deployment": m.one("Deployment")["spec"]["selector"]["matchLabels"],
        "Service": m.one("Service")["spec"]["selector"],
        "PodDisruptionBudget": m.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": m.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    }
    for spread in m.pod["spec"]["topologySpreadConstraints"]:
        selectors[f"spread over {spread['topologyKey']}"] = spread["labelSelector"]["matchLabels"]
    for where, selector in selectors.items():
        if not selector or not selector.items() <= labels.items():
            yield f"{where}: its selector {selector} does not match the pod's labels {labels}"
    account = m.one("ServiceAccount")["metadata"]["name"]
    if m.pod["spec"]["serviceAccountName"] != account:
        yield f"the pod's service account is not {account}"


def check_ports(m, flags):
    ports = {p["name"]: p["containerPort"] for p in m.container["ports"]}
    wanted = {"grpc": port_of(flags["listen_address"]), "metrics": port_of(flags["metrics_address"])}
    if ports != wanted:
        yield f"the container's ports are {ports}, the flags say {wanted}"
    service = m.one("Service")["spec"]
    for port in service["ports"]:
        if ports.get(port["targetPort"]) != port["port"] or port["name"] != port["targetPort"]:
            yield f"Service: port {port} is none of {ports}"
    if {p["name"] for p in service["ports"]} != set(ports):
        yield f"Service: its ports are not {sorted(ports)}"
    if service["clusterIP"] != "None" or service.get("publishNotReadyAddresses"):
        yield "Service: not headless, or with addresses that are not ready"
    probed = {
        "startupProbe": m.container["startupProbe"].get("grpc", {}).get("port"),
        "readinessProbe": m.container["readinessProbe"].get("grpc", {}).get("port"),
    }
    for probe, port in probed.items():
        if port != ports.get("grpc"):
            yield f"{probe} asks port {port}; wanted: gRPC health at {ports.get('grpc')}"
    # NOT_SERVING must not restart a pod.
    alive = m.container["livenessProbe"].get("httpGet", {})
    if alive.get("port") != "metrics" or alive.get("path") != "/metrics":
        yield "livenessProbe does not get /metrics from the port metrics"


def port_of(address):
    return int(address.rpartition(":")[2])


def check_network(m):
    policy = m.one("NetworkPolicy")["spec"]
    if sorted(policy["policyTypes"]) != ["Egress", "Ingress"] or policy.get("egress") != []:
        yield "NetworkPolicy: egress is not denied"
    peers = {}
    for rule in policy["ingress"]:
        for port in rule.get("ports", [{"port": "every port"}]):
            peers.setdefault(port["port"], []).extend(rule.get("from", [{}]))
    if sorted(peers) != ["grpc", "metrics"]:
        yield f"NetworkPolicy: ingress to {sorted(peers)}; wanted: grpc and metrics"
    for port, sources in peers.items():
        for source in sources:
            chosen = [s.get("matchLabels") for s in source.values()]
            if not chosen or not all(chosen):
                yield f"NetworkPolicy: {port} is open to a source without a label: {source}"


def check_ending(m, flags):
    spec = m.pod["spec"]
    stop = m.container["lifecycle"]["preStop"]
    if set(stop) != {"sleep"}:
        yield f"preStop is {stop}; wanted: sleep, which needs no program in the image"
        return
    needed = stop["sleep"]["seconds"] + seconds(flags["drain_timeout"]) + ENDING_SECONDS
    if spec["terminationGracePeriodSeconds"] < needed:
        yield f"terminationGracePeriodSeconds is {spec['terminationGracePeriodSeconds']}; preStop, drain_timeout and " \
              f"the end take {needed:g}"


def check_flags(m, flags, overlay):
    wanted = {"shared_memory": "off", "listen_unix": "", "backend": {"cpu": "cpu", "gpu": "cuda"}[overlay]}
    for name, value in wanted.items():
        if flags.get(name) != value:
            yield f"--{name} is '{flags.get(name)}'; wanted: '{value}'"
    for name in ("max_connection_age", "max_connection_age_grace"):
        if not 0 < seconds(flags.get(name, "")) < 86400:
            yield f"--{name} is '{flags.get(name)}': clients would not find new pods"
    limits = m.container["resources"]["limits"]
    cpu, memory = quantity(limits["cpu"]), quantity(limits["memory"])
    if overlay == "cpu" and not 0 < int(flags["cpu_threads"]) < cpu:
        yield f"--cpu_threads is {flags['cpu_threads']} of {cpu:g} CPUs; 0 counts those of the node"
    if not 0 < int(flags["copy_threads"]) < cpu:
        yield f"--copy_threads is {flags['copy_threads']} of {cpu:g} CPUs; 0 counts those of the node"
    held = ("pinned_memory_bytes",) if overlay == "gpu" else ("max_queue_bytes", "max_stream_bytes")
    # Arriving messages and running batches come on top.
    if sum(int(flags[name]) for name in held) > 0.75 * memory:
        yield f"{' and '.join(held)} take more than three quarters of the memory limit"


def check_image(m, overlay, server, dockerfile):
    version = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    tag = f"{version}-{'cuda' if overlay == 'gpu' else 'cpu'}"
    image = m.container["image"]
    if not image.endswith(f"/flashbias:{tag}"):
        yield f"the image is {image}; wanted: .../flashbias:{tag}, the version being the server's"
    if m.container["command"] != ["flashbias-server"] or "/programs/ /usr/local/bin/" not in dockerfile:
        yield f"the command is {m.container['command']}, which the image does not have in its path"
    user = m.pod["spec"]["securityContext"]["runAsUser"]
    if not re.search(rf"\b{user}\b", dockerfile):
        yield f"the pod runs as {user}, which the Dockerfile does not know"


def check_security(m):
    spec, container = m.pod["spec"], m.container["securityContext"]
    pod = spec["securityContext"]
    wanted = {
        "runAsNonRoot": pod.get("runAsNonRoot") is True,
        "runAsUser": pod.get("runAsUser") == 10001,
        "runAsGroup": pod.get("runAsGroup") == 10001,
        "seccompProfile": pod.get("seccompProfile") == {"type": "RuntimeDefault"},
        "allowPrivilegeEscalation": container.get("allowPrivilegeEscalation") is False,
        "readOnlyRootFilesystem": container.get("readOnlyRootFilesystem") is True,
        "capabilities": container.get("capabilities") == {"drop": ["ALL"]},
        "privileged": "privileged" not in container,
        "host": not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")),
        "token": spec.get("automountServiceAccountToken") is False
        and m.one("ServiceAccount").get("automountServiceAccountToken") is False,
    }
    for name, holds in wanted.items():
        if not holds:
            yield f"security: {name}"


def check_capacity(m):
    deployment = m.one("Deployment")["spec"]
    rolling = deployment["strategy"]["rollingUpdate"]
    if rolling["maxUnavailable"] != 0 or not rolling["maxSurge"]:
        yield "a rolling update goes below capacity"
    scaled = m.all("ScaledObject")
    if scaled and "replicas" in deployment:
        yield "replicas is set, and a ScaledObject sets it too"
    if m.all("HorizontalPodAutoscaler"):
        yield "a HorizontalPodAutoscaler beside KEDA's"
    least = scaled[0]["spec"]["minReplicaCount"] if scaled else deployment.get("replicas", 1)
    budget = m.one("PodDisruptionBudget")["spec"]
    if not 0 < budget["maxUnavailable"] < least:
        yield f"PodDisruptionBudget: {budget['maxUnavailable']} of {least} replicas may go"


def check_scaling(m):
    scaled = m.one("ScaledObject")["spec"]
    target = scaled["scaleTargetRef"]
    if (target["kind"], target["name"]) != ("Deployment", m.one("Deployment")["metadata"]["name"]):
        yield "ScaledObject: its target is not the Deployment"
    if not scaled["minReplicaCount"] < scaled["maxReplicaCount"]:
        yield "ScaledObject: minReplicaCount is not below maxReplicaCount"
    if scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] < 300:
        yield "ScaledObject: scales down within five minutes"
    namespace = m.one("Namespace")["metadata"]["name"]
    for trigger in scaled["triggers"]:
        metadata = trigger["metadata"]
        if not re.fullmatch(r"\d+(\.\d+)?", metadata["threshold"]) or float(metadata["threshold"]) <= 0:
            yield f"trigger {trigger['name']}: threshold {metadata['threshold']} is no positive number"
        if metadata.get("ignoreNullValues") != "false":
            yield f"trigger {trigger['name']}: no data would count as no load"
        for selector in re.findall(r"flashbias_\w+(\{[^}]*\})?", metadata["query"]):
            if f'namespace="{namespace}"' not in selector or 'job="flashbias"' not in selector:
                yield f"trigger {trigger['name']}: a selector without job or namespace {namespace}: {selector}"


def check_monitoring(m, prometheus_folder):
    service = m.one("Service")
    monitor = m.one("ServiceMonitor")["spec"]
    labels = service["metadata"]["labels"]
    if not monitor["selector"]["matchLabels"].items() <= labels.items():
        yield "ServiceMonitor: its selector does not match the Service's labels"
    # Rules and dashboards rely on this name.
    if labels.get(monitor.get("jobLabel")) != "flashbias":
        yield "ServiceMonitor: the job is not called flashbias"
    if [e["port"] for e in monitor["endpoints"]] != ["metrics"]:
        yield "ServiceMonitor: it does not scrape the port metrics alone"
    built = [group for rules in m.all("PrometheusRule") for group in rules["spec"]["groups"]]
    wanted = []
    for file in ("recording_rules.yml", "alerts.yml"):
        wanted += yaml.safe_load((prometheus_folder / file).read_text())["groups"]
    if canonical(sorted(built, key=canonical)) != canonical(sorted(wanted, key=canonical)):
        yield "PrometheusRules: not the rules of deploy/prometheus"


def check_dashboards(m, folder):
    files = {file.name: file.read_text() for file in folder.glob("*.json")}
    found = {}
    for config_map in m.all("ConfigMap"):
        for name, text in config_map["data"].items():
            if not name.endswith(".json"):
                continue
            if config_map["metadata"]["labels"].get("grafana_dashboard") != "1":
                yield f"dashboard {name}: without the label that Grafana's sidecar looks for"
            if name in found:
                yield f"dashboard {name}: twice"
            found[name] = text
    for name in sorted(files.keys() | found.keys()):
        if files.get(name) != found.get(name):
            yield f"dashboard {name}: its ConfigMap is missing, or differs from deploy/grafana"


def check_devices(m, overlay):
    spec = m.pod["spec"]
    gpus = quantity(m.container["resources"]["limits"].get("nvidia.com/gpu", 0))
    tolerated = any(t.get("key") == "nvidia.com/gpu" for t in spec.get("tolerations", []))
    chosen = "nvidia.com/gpu.compute.major" in canonical(spec.get("affinity", {}))
    if (gpus >= 1, tolerated, chosen) != ((overlay == "gpu",) * 3):
        yield f"overlay {overlay}: {gpus:g} GPUs, toleration {tolerated}, affinity {chosen}"
