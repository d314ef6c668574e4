"""Checks deploy/kubernetes; check_kubernetes.sh runs it.

  check_kubernetes.py [--self-test] REPOSITORY SERVER

Prints each failure; exits with 1 if there was any. With --self-test it breaks a copy of the manifests in one place
after the other, and a failure is a fault that was not seen.
"""

import shutil
import signal
import sys
import tempfile
from pathlib import Path

import yaml

import live_server
import manifest_rules as rules
import manifest_schemas
import scaling_queries
from manifests import OVERLAYS, BuildError, build, build_beside, has_cuda
from mutations import check_mutations

COMPONENTS = {"monitoring": {"ServiceMonitor", "PrometheusRule"}, "autoscaling": {"ScaledObject"}, "grafana": set()}


def check_overlay(repo, overlay, server):
    """One overlay, all but a running server."""
    m = build(repo / "deploy/kubernetes/overlays" / overlay)
    invalid = list(manifest_schemas.check_schemas(m))
    if invalid:
        yield from invalid
        return
    flags = m.flags(server)
    yield from rules.check_objects(m)
    yield from rules.check_selectors(m)
    yield from rules.check_ports(m, flags)
    yield from rules.check_network(m)
    yield from rules.check_ending(m, flags)
    yield from rules.check_flags(m, flags, overlay)
    yield from rules.check_image(m, overlay, server, (repo / "Dockerfile").read_text())
    yield from rules.check_security(m)
    yield from rules.check_capacity(m)
    yield from rules.check_scaling(m)
    yield from rules.check_monitoring(m, repo / "deploy/prometheus")
    yield from rules.check_dashboards(m, repo / "deploy/grafana/dashboards")
    yield from rules.check_devices(m, overlay)
    yield from scaling_queries.check_rules(m)
    yield from scaling_queries.check_queries(m)


def check_base(repo):
    m = build(repo / "deploy/kubernetes/base")
    yield from manifest_schemas.check_schemas(m)
    custom = {o["kind"] for o in m.objects} & set(manifest_schemas.CUSTOM)
    if custom or "replicas" in m.one("Deployment")["spec"]:
        yield f"base: has {sorted(custom)} or replicas, which components are for"


def check_variants(repo, overlay):
    """What README.md tells clusters to change: components, the trigger by rate, flags."""
    folder = repo / "deploy/kubernetes/overlays" / overlay
    for component, kinds in COMPONENTS.items():

        def leave_out(kustomization, component=component):
            kept = [c for c in kustomization["components"] if not c.endswith(component)]
            kustomization["components"] = kept

        m = build_beside(folder, leave_out)
        yield from manifest_schemas.check_schemas(m)
        if kinds & {o["kind"] for o in m.objects}:
            yield f"without {component}: there are {kinds}"
        if component == "grafana" and len(m.all("ConfigMap")) != 1:
            yield "without grafana: there are dashboards"

    def fixed(kustomization):
        kustomization["components"] = ["../../components/fixed_replicas"]

    m = build_beside(folder, fixed)
    yield from manifest_schemas.check_schemas(m)
    yield from rules.check_capacity(m)

    patch = yaml.safe_load((repo / "deploy/kubernetes/components/autoscaling/rate_trigger.yaml").read_text())

    def by_rate(kustomization):
        kustomization["patches"].append({"target": {"kind": "ScaledObject"}, "patch": yaml.safe_dump(patch)})

    if not any("PLANNED_RATE" in failure for failure in rules.check_scaling(build_beside(folder, by_rate))):
        yield "rate_trigger.yaml: its threshold would be taken as it stands"
    patch[0]["value"]["metadata"]["threshold"] = "25"
    m = build_beside(folder, by_rate)
    yield from manifest_schemas.check_schemas(m)
    yield from rules.check_scaling(m)
    yield from scaling_queries.check_queries(m)
    if "rate" not in scaling_queries.expressions(m):
        yield "rate_trigger.yaml adds no trigger"


def check_rollout(repo, overlay):
    """A changed flag changes the pod."""
    folder = repo / "deploy/kubernetes/overlays" / overlay

    def change(kustomization):
        kustomization["configMapGenerator"][0]["literals"] = ["more.flags=--log_level=debug"]

    before, after = build(folder), build_beside(folder, change)
    if before.pod == after.pod:
        yield f"overlay {overlay}: a changed flag file leaves the pods as they are"


def check_live(repo, server):
    yield from live_server.check_live(build(repo / "deploy/kubernetes/overlays/cpu"), server)


def check_all(repo, server):
    yield from check_base(repo)
    for overlay in OVERLAYS:
        for failure in check_overlay(repo, overlay, server):
            yield f"overlay {overlay}: {failure}"
        yield from check_variants(repo, overlay)
        yield from check_rollout(repo, overlay)
    yield from check_live(repo, server)


def failures_of(check, *arguments):
    try:
        yield from check(*arguments)
    except BuildError as error:
        yield str(error)
    except LookupError as error:
        yield f"a rule looks for what is not there: {error!r}"


def faults_unseen(tree, server):
    def check(function, *arguments):
        return lambda: list(failures_of(function, tree, *arguments))

    return check_mutations(tree, {
        "base": check(check_base),
        "cpu": check(check_overlay, "cpu", server),
        "gpu": check(check_overlay, "gpu", server),
        "variants": check(check_variants, "cpu"),
        "rollout": check(check_rollout, "cpu"),
        "live": check(check_live, server),
    })


def main():
    arguments = sys.argv[1:]
    self_test = "--self-test" in arguments
    if self_test:
        arguments.remove("--self-test")
    if len(arguments) != 2:
        sys.exit(__doc__)
    repo, server = Path(arguments[0]), arguments[1]
    # As an exception, which ends the server and removes the folders.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if not has_cuda(server):
        print("This server has no CUDA: it does not judge --backend=cuda of the overlay gpu")
    failed = False
    # A copy: variants and faults are built in it.
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        shutil.copytree(repo / "deploy", tree / "deploy")
        shutil.copy(repo / "Dockerfile", tree)
        for failure in faults_unseen(tree, server) if self_test else failures_of(check_all, tree, server):
            failed = True
            print("FAIL", failure)
    if not failed:
        print("Every fault is seen" if self_test else "Everything holds")
    sys.exit(1 if failed else 0)


main()
