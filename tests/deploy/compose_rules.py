#!/usr/bin/env python3
"""What deploy/compose.yaml promises beyond the schema; check_compose.sh calls it.

    compose_rules.py judge REPO                          fails with one line for each rule that is broken
    compose_rules.py command REPO SERVICE                prints a service's command, one word a line
    compose_rules.py health REPO SERVICE                 prints its health check's command
    compose_rules.py assemble REPO SERVICE FOLDER OUT    copies what the service sees in FOLDER to OUT

Variables have their defaults.
"""
import json
import os
import re
import shutil
import sys

from ruamel.yaml import YAML

SERVERS = ("server-gpu", "server-cpu")
# Beyond --drain_timeout: what the server may take to stop /metrics.
STOP_MARGIN_S = 2


def load_yaml(path):
    with open(path, encoding="utf-8") as file:
        return YAML(typ="safe").load(file)


def with_defaults(value):
    if isinstance(value, dict):
        return {key: with_defaults(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [with_defaults(entry) for entry in value]
    if isinstance(value, str):
        return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
    return value


def seconds(text):
    units = {"s": 1, "m": 60, "h": 3600}
    if not re.fullmatch(r"(\d+[smh])+", text):
        sys.exit(f"compose_rules.py: '{text}' is no duration; accepted: such as 45s or 1m30s")
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([smh])", text))


class Compose:
    def __init__(self, repo):
        self.repo = repo
        self.folder = os.path.join(repo, "deploy")
        self.content = with_defaults(load_yaml(os.path.join(self.folder, "compose.yaml")))
        self.services = self.content["services"]

    def mounts(self, service):
        """(source, target, read_only) of each mount; the source of a bind mount as an absolute path."""
        for volume in self.services[service].get("volumes", []):
            if isinstance(volume, str):
                source, target, *mode = volume.split(":")
                read_only = mode == ["ro"]
            else:
                source, target, read_only = volume["source"], volume["target"], volume.get("read_only")
            if source.startswith((".", "/")):
                source = os.path.normpath(os.path.join(self.folder, source))
            yield source, target, read_only

    def health(self, service):
        return self.services[service]["healthcheck"]["test"]


class Judge:
    def __init__(self, compose):
        self.compose = compose
        self.broken = []

    def expect(self, holds, service, message):
        if not holds:
            self.broken.append(f"{service}: {message}")

    def confinement(self, name, service):
        self.expect(service.get("read_only") is True, name, "its root can be written")
        self.expect(service.get("cap_drop") == ["ALL"], name, "it keeps capabilities")
        self.expect("no-new-privileges:true" in service.get("security_opt", []), name, "it may gain privileges")
        self.expect(not service.get("privileged") and not service.get("cap_add"), name, "it is privileged")
        for port in service.get("ports", []):
            self.expect(str(port).startswith("127.0.0.1:"), name, f"port {port} is not on 127.0.0.1")

    def image(self, name, service):
        if "build" in service:
            context = os.path.join(self.compose.folder, service["build"]["context"])
            self.expect(os.path.exists(os.path.join(context, "Dockerfile")), name, "no Dockerfile in its context")
            with open(os.path.join(context, "Dockerfile"), encoding="utf-8") as file:
                known = set(re.findall(r"^ARG (\w+)", file.read(), re.MULTILINE))
            unknown = set(service["build"].get("args", {})) - known
            self.expect(not unknown, name, f"the Dockerfile has no ARG {sorted(unknown)}")
        else:
            self.expect(re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name,
                        f"the version of {service['image']} is not pinned")

    def sources(self, name):
        for source, target, read_only in self.compose.mounts(name):
            if source.startswith("/"):
                self.expect(os.path.exists(source), name, f"there is no {source} to mount at {target}")
                self.expect(read_only, name, f"{target} is not mounted read-only")
            else:
                self.expect(source in self.compose.content["volumes"], name, f"there is no volume {source}")

    def dependencies(self, name, service):
        for other, condition in service.get("depends_on", {}).items():
            found = self.compose.services.get(other)
            self.expect(found is not None, name, f"it depends on {other}, which is not there")
            self.expect(condition["condition"] == "service_healthy", name, f"it does not wait until {other} is healthy")
            if found and found.get("profiles"):
                self.expect(condition.get("required") is False, name, f"without {other}'s profile it cannot start")

    def server(self, name, service, drain_s, image_health):
        self.expect(seconds(service.get("stop_grace_period", "10s")) > drain_s + STOP_MARGIN_S, name,
                    f"stop_grace_period is not longer than --drain_timeout ({drain_s} s)")
        self.expect(self.compose.health(name) == ["CMD", *image_health], name,
                    f"its health check is not the image's, {image_health}")
        flag_file = image_health[1].partition("=")[2]
        self.expect(flag_file in [target for _, target, _ in self.compose.mounts(name)], name,
                    f"nothing is mounted at {flag_file}")
        self.expect(service["networks"]["default"]["aliases"] == ["flashbias"], name,
                    "it is not known as flashbias")

    def monitoring(self):
        datasource, = load_yaml(os.path.join(self.compose.folder, "compose/datasources/prometheus.yml"))["datasources"]
        original, = load_yaml(os.path.join(
            self.compose.folder, "grafana/provisioning/datasources/prometheus.yml"))["datasources"]
        self.expect(datasource == {**original, "url": "http://prometheus:9090"}, "grafana",
                    "its data source differs from deploy/grafana's in more than the address")
        provider, = load_yaml(os.path.join(
            self.compose.folder, "grafana/provisioning/dashboards/flashbias.yml"))["providers"]
        path = provider["options"]["path"]
        mounted = {target: source for source, target, _ in self.compose.mounts("grafana")}
        self.expect(mounted.get(path, "").endswith("deploy/grafana/dashboards"), "grafana",
                    f"the dashboards are not at {path}")
        environment = self.compose.services["grafana"]["environment"]
        home = environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        self.expect(os.path.exists(home.replace(path, mounted.get(path, ""), 1)), "grafana", f"there is no {home}")
        self.expect(environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true", "grafana",
                    "it has an administrator with a default password")

    def all(self):
        with open(os.path.join(self.compose.repo, "Dockerfile"), encoding="utf-8") as file:
            health = re.search(r"^HEALTHCHECK [^\[]*CMD (\[.*\])$", file.read(), re.MULTILINE)
        image_health = json.loads(health.group(1))
        with open(os.path.join(self.compose.folder, "flashbias-server.flags"), encoding="utf-8") as file:
            drain_s = seconds(re.search(r"^#?--drain_timeout=(\w+)$", file.read(), re.MULTILINE).group(1))
        for name, service in self.compose.services.items():
            self.confinement(name, service)
            self.image(name, service)
            self.sources(name)
            self.dependencies(name, service)
        for name in SERVERS:
            self.server(name, self.compose.services[name], drain_s, image_health)
        devices = self.compose.services["server-gpu"]["deploy"]["resources"]["reservations"]["devices"]
        self.expect(any("gpu" in device["capabilities"] for device in devices), "server-gpu", "it reserves no GPU")
        self.monitoring()
        return self.broken


def assemble(compose, service, folder, out):
    # Outer mounts first, so that inner ones lie over them.
    mounts = sorted(compose.mounts(service), key=lambda mount: len(mount[1]))
    for source, target, _ in mounts:
        if not source.startswith("/") or not (target + "/").startswith(folder + "/"):
            continue
        place = os.path.normpath(os.path.join(out, os.path.relpath(target, folder)))
        if os.path.isdir(source):
            if os.path.isdir(place):
                shutil.rmtree(place)
            shutil.copytree(source, place)
        else:
            shutil.copy(source, place)


def main(action, repo, *arguments):
    compose = Compose(repo)
    if action == "judge":
        broken = Judge(compose).all()
        if broken:
            sys.exit("\n".join(f"compose_rules.py: {line}" for line in broken))
        print(f"{len(compose.services)} services")
    elif action == "command":
        print("\n".join(compose.services[arguments[0]]["command"]))
    elif action == "health":
        print("\n".join(compose.health(arguments[0])[1:]))
    elif action == "assemble":
        assemble(compose, *arguments)
    else:
        sys.exit(f"compose_rules.py: unknown action '{action}'")


main(*sys.argv[1:])
