"""Every object against its schema, strictly: unknown fields are faults.

Kubernetes' own kinds against the oldest version that deploy/kubernetes/README.md asks for and the newest whose schemas
are packaged. Custom resources against models made of their definitions (KEDA 2.16, Prometheus operator 0.80).
"""

import functools
import json

import kubernetes_validate
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as operator

from manifests import canonical

VERSIONS = ("1.30", kubernetes_validate.latest_version())
CUSTOM = {
    "ScaledObject": keda.ScaledObject,
    "ServiceMonitor": operator.ServiceMonitor,
    "PrometheusRule": operator.PrometheusRule,
}


def unknown_fields(given, kept, path=""):
    """Where the model dropped something."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key in kept:
                yield from unknown_fields(value, kept[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for n, (one, other) in enumerate(zip(given, kept)):
            yield from unknown_fields(one, other, f"{path}[{n}]")
    elif canonical(given) != canonical(kept):
        yield f"{path}: {given!r} became {kept!r}"


def check_schemas(manifests):
    for item in manifests.objects:
        where = f"{item['kind']} {item['metadata']['name']}"
        for failure in failures_of(canonical(item)):
            yield f"{where}: {failure}"


# Builds have most objects in common, and schemas are slow.
@functools.cache
def failures_of(text):
    item = json.loads(text)
    if item["kind"] not in CUSTOM:
        return [failure for version in VERSIONS for failure in native_failures(item, version)]
    try:
        model = CUSTOM[item["kind"]].model_validate(item)
    except ValueError as error:
        return [str(error)]
    kept = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return [f"unknown field {field}" for field in unknown_fields(item, kept)]


def native_failures(item, version):
    try:
        kubernetes_validate.validate(item, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = ".".join(str(step) for step in error.path)
        yield f"Kubernetes {version}: {path}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield error.message
