#!/usr/bin/env bash
# Holds deploy/prometheus and deploy/grafana against a real server: promtool's checks, the unit tests of the alerts, and
# every expression of rules and dashboards in a Prometheus that scrapes flashbias-server under load.
#
#   tests/observability/check.sh [BUILD_FOLDER]     default: build/release; holds bin/flashbias-server, bin/flashbias-load
#
# Takes about a minute. deploy/install_packages.sh --observability installs prometheus and promtool.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
bin=$(cd "${1:-$repo/build/release}" && pwd)/bin
rules=$repo/deploy/prometheus

say() { echo "==> $*"; }
fail() {
  echo "check.sh: $*" >&2
  exit 1
}

for tool in promtool prometheus python3; do
  command -v "$tool" >/dev/null || fail "$tool is missing: deploy/install_packages.sh --observability"
done
for program in flashbias-server flashbias-load; do
  [[ -x $bin/$program ]] || fail "there is no $bin/$program: build it, or name its build folder"
done

work=$(mktemp -d)
server=
prometheus=
stop() {
  local code=$?
  for process in $prometheus $server; do
    kill "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
  done
  if ((code != 0)); then
    for log in server prometheus load; do
      [[ -s $work/$log.log ]] && { say "The end of $log's log:"; tail -n 8 "$work/$log.log"; }
    done
  fi
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Waits up to 20 s until a command succeeds, as long as the process lives.
await() {
  local what=$1 process=$2
  shift 2
  for ((tries = 0; tries < 200; ++tries)); do
    "$@" 2>/dev/null && return
    kill -0 "$process" 2>/dev/null || fail "$what has ended"
    sleep 0.1
  done
  fail "$what was not ready within 20 seconds"
}

fetch() { python3 -c 'import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1], timeout=5).read())' "$1"; }

say "promtool: configuration, rules, unit tests of the alerts"
promtool check config "$rules/prometheus.yml" >"$work/promtool" 2>&1 || {
  cat "$work/promtool"
  fail "promtool check config"
}
promtool check rules "$rules/recording_rules.yml" "$rules/alerts.yml"
promtool test rules "$rules"/tests/*.yml
python3 "$here/check_expressions.py" tested "$rules/alerts.yml" "$rules"/tests/*.yml

say "A server, and a Prometheus that scrapes it each second"
"$bin/flashbias-server" --backend=cpu --listen_address=127.0.0.1:0 --metrics_address=127.0.0.1:0 \
  --port_file="$work/ports" >"$work/server.log" 2>&1 &
server=$!
await flashbias-server "$server" test -e "$work/ports"
grpc_port=$(sed -n 's/^grpc_port=//p' "$work/ports")
metrics_port=$(sed -n 's/^metrics_port=//p' "$work/ports")

fetch "http://127.0.0.1:$metrics_port/metrics" >"$work/metrics"
promtool check metrics <"$work/metrics"

cat >"$work/prometheus.yml" <<END
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: ["$rules/recording_rules.yml", "$rules/alerts.yml"]
scrape_configs:
  - job_name: flashbias
    static_configs: [{targets: ["127.0.0.1:$metrics_port"]}]
END
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/tsdb" \
  --web.listen-address="127.0.0.1:$port" >"$work/prometheus.log" 2>&1 &
prometheus=$!
ready() { fetch "http://127.0.0.1:$port/-/ready" >/dev/null; }
await prometheus "$prometheus" ready
sleep 2 # scrapes of the counters at zero: increases count from there

say "Load: forward and backward calls"
"$bin/flashbias-load" --target="127.0.0.1:$grpc_port" --metrics="127.0.0.1:$metrics_port" --direction=both --heads=4 --seq_len=128 \
  --concurrency=4 --duration=12s --warmup=0 --json="$work/load.json" >"$work/load.log" 2>&1 ||
  fail "flashbias-load"

say "Every expression"
python3 "$here/check_expressions.py" live "http://127.0.0.1:$port" "$work/load.json" \
  "$repo"/deploy/grafana/dashboards/*.json
say "Everything holds"
