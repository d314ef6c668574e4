"""promtool on the rules of PrometheusRules and on the ScaledObject's queries: what each gives, in which situation."""

import subprocess
import tempfile
from pathlib import Path

import yaml

from manifests import expressions

LABELS = 'job="flashbias", namespace="flashbias"'


def series(busy):
    """Two pods, one call in ten seconds each: 30 ms in the queue, one in fifty refused; or no call at all."""

    def counter(name, labels, each):
        for pod in ("a", "b"):
            text = ", ".join(filter(None, (LABELS, f'instance="{pod}"', labels)))
            yield {"series": f"{name}{{{text}}}", "values": f"0+{each if busy else 0}x40"}

    return [
        *counter("flashbias_stage_duration_seconds_sum", 'stage="queue"', 0.03),
        *counter("flashbias_stage_duration_seconds_count", 'stage="queue"', 1),
        *counter("flashbias_stage_duration_seconds_sum", 'stage="compute"', 7),
        *counter("flashbias_stage_duration_seconds_count", 'stage="compute"', 1),
        *counter("flashbias_requests_total", 'method="Attend", code="OK"', 1),
        *counter("flashbias_requests_total", 'method="GetServerInfo", code="OK"', 5),
        *counter("flashbias_rejected_total", 'reason="queue"', 0.01),
        *counter("flashbias_rejected_total", 'reason="deadline"', 0.01),
        *counter("flashbias_rejected_total", 'reason="invalid"', 3),
    ]


def failing():
    """Calls come, none is answered OK."""
    return [s | ({"values": "0x40"} if "stage=" in s["series"] else {}) for s in series(True)]


# Situation: its series, and what the queries give at its end; None: nothing.
SITUATIONS = {
    "busy": (series(True), {"queue": 30, "rejected": 2, "rate": 0.2}),
    "idle": (series(False), {"queue": 0, "rejected": 0, "rate": 0}),
    "failing": (failing(), {"queue": None, "rejected": 2, "rate": 0.2}),
    "unscraped": ([], {"queue": None, "rejected": None, "rate": None}),
}


def promtool(command, content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file.yml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        run = subprocess.run(["promtool", *command, file], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        yield f"promtool {' '.join(command)}: {run.stdout.strip()} {run.stderr.strip()}"


def check_rules(m):
    groups = [group for rules in m.all("PrometheusRule") for group in rules["spec"]["groups"]]
    yield from promtool(["check", "rules"], {"groups": groups})


def check_queries(m):
    queries = expressions(m)
    for name in queries.keys() - {"queue", "rejected", "rate"}:
        yield f"trigger {name}: no situation says what it gives"
    tests = []
    for situation, (input_series, wanted) in SITUATIONS.items():
        for trigger, query in queries.items():
            value = wanted.get(trigger)
            # Rounded: the last bits are no matter.
            samples = [] if value is None else [{"labels": "{}", "value": value}]
            test = {"expr": f"round({query}, 0.001)", "eval_time": "5m", "exp_samples": samples}
            tests.append({"name": situation, "interval": "10s", "input_series": input_series})
            tests[-1]["promql_expr_test"] = [test]
    yield from promtool(["test", "rules"], {"evaluation_interval": "10s", "tests": tests})
