"""A server with the flags of the CPU overlay, probed as the kubelet would, and asked for the series of the queries."""

import re
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import grpc

from manifests import expressions

# Ours, for a machine of any size and with other servers on it; a later flag wins.
HERE = ["--listen_address=127.0.0.1:0", "--metrics_address=127.0.0.1:0", "--cpu_threads=1"]
SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}
MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')
# Labels that Prometheus adds.
ADDED = ("job", "namespace")


def check_live(m, server):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ports = folder / "ports"
        command = [server, *m.arguments(folder), *HERE, f"--port_file={ports}"]
        with open(folder / "log", "w+", encoding="utf-8") as log:
            process = subprocess.Popen(command, stderr=log)
            try:
                for _ in range(300):
                    if ports.exists() or process.poll() is not None:
                        break
                    time.sleep(0.1)
                if not ports.exists():
                    log.seek(0)
                    yield f"flashbias-server does not serve: {log.read()}"
                    return
                port = dict(line.split("=") for line in ports.read_text().split())
                yield from check_probes(m, port)
                yield from check_series(m, scrape(m, port))
            finally:
                process.terminate()
                try:
                    code = process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    code = process.wait()
        if code != 0:
            yield f"flashbias-server ended with {code} at SIGTERM"


def check_probes(m, port):
    with grpc.insecure_channel(f"127.0.0.1:{port['grpc_port']}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        for probe in ("startupProbe", "readinessProbe"):
            service = m.container[probe]["grpc"].get("service", "").encode()
            try:
                answer = check(b"\x0a" + bytes([len(service)]) + service, timeout=20)
            except grpc.RpcError as error:
                yield f"{probe}: {service.decode()}: {error.code().name}"
                continue
            if answer != SERVING:
                yield f"{probe}: {service.decode()}: not SERVING: {answer!r}"


def scrape(m, port):
    path = m.container["livenessProbe"]["httpGet"]["path"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port['metrics_port']}{path}", timeout=20) as answer:
        return answer.read().decode()


def check_series(m, text):
    """Every series that the queries name is exported from the start, with every label's value."""
    for trigger, query in expressions(m).items():
        for name, matchers in re.findall(r"(flashbias_\w+)\{([^}]*)\}", query):
            lines = [line for line in text.splitlines() if line.startswith(name + "{")]
            for label, operator, pattern in MATCHER.findall(matchers):
                if label in ADDED:
                    continue
                for value in pattern.split("|") if operator == "=~" else [re.escape(pattern)]:
                    if not any(re.search(rf'[{{,]{label}="{value}"', line) for line in lines):
                        yield f'trigger {trigger}: the server exports no {name}{{{label}="{value}"}}'
