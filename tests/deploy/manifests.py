"""Objects as kustomize builds them, and where things are in them."""

import functools
import json
import re
import subprocess
import tempfile
from pathlib import Path

import yaml

OVERLAYS = ("cpu", "gpu")


class BuildError(Exception):
    """kustomize refuses a folder; the text is its own."""


def build(folder):
    run = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise BuildError(f"kustomize {folder.name}: {run.stderr.strip()}")
    return Manifests(list(yaml.load_all(run.stdout, Loader=yaml.CSafeLoader)))


def build_beside(folder, change):
    """The overlay with its kustomization changed: change() gets and alters what kustomization.yaml says."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    change(kustomization)
    # Beside the original, for its relative paths.
    with tempfile.TemporaryDirectory(dir=folder.parent) as other:
        for file in folder.iterdir():
            (Path(other) / file.name).write_text(file.read_text())
        (Path(other) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return build(Path(other))


class Manifests:
    def __init__(self, objects):
        self.objects = objects

    def all(self, kind):
        return [o for o in self.objects if o["kind"] == kind]

    def one(self, kind):
        found = self.all(kind)
        if len(found) != 1:
            raise BuildError(f"{len(found)} objects of kind {kind}; wanted: one")
        return found[0]

    @property
    def pod(self):
        return self.one("Deployment")["spec"]["template"]

    @property
    def container(self):
        return self.pod["spec"]["containers"][0]

    @property
    def flag_map(self):
        """The ConfigMap with the flag files, as the pod mounts it."""
        name = self.pod["spec"]["volumes"][0]["configMap"]["name"]
        for config_map in self.all("ConfigMap"):
            if config_map["metadata"]["name"] == name:
                return config_map
        raise BuildError(f"the pod mounts the ConfigMap {name}, which there is not")

    def arguments(self, folder):
        """The container's arguments, with the flag files written to the folder and looked for there."""
        for name, text in self.flag_map["data"].items():
            (folder / name).write_text(text)
        mount = self.container["volumeMounts"][0]["mountPath"]
        return [argument.replace(mount, str(folder)) for argument in self.container["args"]]

    def flags(self, server):
        """What the server takes from the container's arguments: name to text. BuildError where it refuses them."""
        with tempfile.TemporaryDirectory() as folder:
            command = [server, *self.arguments(Path(folder)), "--print_config"]
            # A build without CUDA judges all flags but this one.
            named = re.findall(r"^--backend=(\w+)$", "\n".join(self.flag_map["data"].values()), re.M)
            unjudged = named[-1:] == ["cuda"] and not has_cuda(server)
            if unjudged:
                command.append("--backend=auto")
            run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise BuildError(f"flashbias-server refuses its flags: {run.stderr.strip()}")
        flags = dict(re.match(r"--(\w+)=(.*)", line).groups() for line in run.stdout.splitlines())
        return flags | ({"backend": "cuda"} if unjudged else {})


@functools.cache
def has_cuda(server):
    command = [server, "--backend=cuda", "--print_config"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def seconds(duration):
    """abseil's text of a duration, such as 1m30s."""
    units = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    return sum(float(n) * units[unit] for n, unit in re.findall(r"([\d.]+)(ms|us|ns|h|m|s)", duration))


def quantity(text):
    """A quantity of Kubernetes such as 16Gi, 500m or 8."""
    number, unit = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi)?", str(text)).groups()
    return float(number) * {None: 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[unit]


def expressions(manifests):
    """The queries of the ScaledObject, by the names of their triggers."""
    return {t["name"]: t["metadata"]["query"] for t in manifests.one("ScaledObject")["spec"]["triggers"]}


def canonical(value):
    return json.dumps(value, sort_keys=True)
