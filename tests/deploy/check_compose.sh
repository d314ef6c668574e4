#!/usr/bin/env bash
# Holds deploy/compose.yaml against the compose specification, the Dockerfile, promtool, Prometheus and
# the programs' flags. Starts no container: the containers' commands run as processes of this machine.
#
#   tests/deploy/check_compose.sh [--venv FOLDER] [BUILD_FOLDER]     default: build/release
#
# BUILD_FOLDER holds bin/flashbias-server and bin/flashbias-load. What compose_requirements.txt names
# comes from PyPI into a temporary folder, or into FOLDER and stays there. Where docker has its compose
# command, that judges the file too. deploy/install_packages.sh --containers installs the rest.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)

say() { echo "==> $*"; }
fail() {
  echo "check_compose.sh: $*" >&2
  exit 1
}

work=$(mktemp -d)
processes=()
stop() {
  local code=$? process
  for process in "${processes[@]}"; do
    kill "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
  done
  if ((code != 0)); then
    for log in server prometheus load; do
      [[ ! -s $work/$log.log ]] || { say "The end of $log's log:"; tail -n 8 "$work/$log.log"; }
    done
  fi
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

venv=$work/venv
if [[ ${1:-} == --venv ]]; then
  venv=${2:?--venv needs a folder}
  shift 2
fi
if [[ $# -gt 1 || ${1:-} == -* ]]; then
  echo "usage: $0 [--venv FOLDER] [BUILD_FOLDER]" >&2
  exit 2
fi
bin=$(cd "${1:-$repo/build/release}" && pwd)/bin
for tool in python3 promtool prometheus; do
  command -v "$tool" >/dev/null || fail "$tool is missing: deploy/install_packages.sh --containers"
done
for program in flashbias-server flashbias-load; do
  [[ -x $bin/$program ]] || fail "there is no $bin/$program: build it, or name its build folder"
done
file=$repo/deploy/compose.yaml

if ! cmp -s "$here/compose_requirements.txt" "$venv/requirements.txt"; then
  say "Python packages"
  python3 -m venv "$venv" || fail "no venv: deploy/install_packages.sh --containers"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/compose_requirements.txt"
  cp "$here/compose_requirements.txt" "$venv/requirements.txt"
fi
rules() { PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" "$here/compose_rules.py" "$@"; }

say "The compose specification's schema"
"$venv/bin/check-jsonschema" --builtin-schema vendor.compose-spec "$file"

if docker compose version >/dev/null 2>&1; then
  say "docker compose config, of each profile"
  for profile in cpu gpu; do
    docker compose -f "$file" --profile "$profile" --profile load config --quiet
  done
else
  say "NOT RUN: docker compose config, since docker has no compose command here"
fi

say "Confinement, ports, versions, mounts, health checks"
rules judge "$repo"

say "Prometheus, with the files that its container would see"
rules assemble "$repo" prometheus /etc/prometheus "$work/etc"
promtool check config "$work/etc/prometheus.yml" >"$work/prometheus.log" 2>&1 || fail "promtool check config"
targets=$(promtool check service-discovery "$work/etc/prometheus.yml" flashbias 2>/dev/null |
  python3 -c 'import json, sys; print(*[t["labels"]["instance"] for t in json.load(sys.stdin)])')
[[ $targets == flashbias:8472 ]] || fail "the targets are '$targets', not flashbias:8472"

say "The servers' and the load's command lines"
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
mapfile -t command < <(rules command "$repo" server-cpu)
"$bin/flashbias-server" --flagfile="$repo/deploy/flashbias-server.flags" "${command[@]}" \
  --listen_address=127.0.0.1:0 --metrics_address=127.0.0.1:0 --port_file="$work/ports" >"$work/server.log" 2>&1 &
server=$!
processes+=("$server")
for ((tries = 0; tries < 300; ++tries)); do
  [[ -e $work/ports ]] && break
  kill -0 "$server" 2>/dev/null || fail "flashbias-server has ended"
  sleep 0.1
done
port=$(sed -n 's/^grpc_port=//p' "$work/ports")
mapfile -t command < <(rules command "$repo" load)
[[ ${command[0]} == --target=flashbias:8471 ]] || fail "load's first argument is ${command[0]}, not --target=flashbias:8471"
"$bin/flashbias-load" "${command[@]}" --target="127.0.0.1:$port" --duration=2s >"$work/load.log" 2>&1 || fail "flashbias-load"
grep -E '^(requests|verified)' "$work/load.log"

say "Prometheus' command line and health check"
prometheus_port=$(free_port)
mapfile -t command < <(rules command "$repo" prometheus | sed "s|=/etc/prometheus/|=$work/etc/|; s|=/prometheus\$|=$work/tsdb|")
prometheus "${command[@]}" --web.listen-address="127.0.0.1:$prometheus_port" >"$work/prometheus.log" 2>&1 &
prometheus=$!
processes+=("$prometheus")
url=$(rules health "$repo" prometheus | tail -n 1)
[[ $url == http://localhost:9090/* ]] || fail "prometheus' health check asks '$url'"
for ((tries = 0; ; ++tries)); do
  python3 -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' "${url/:9090/:$prometheus_port}" 2>/dev/null && break
  kill -0 "$prometheus" 2>/dev/null || fail "prometheus has ended"
  ((tries < 60)) || fail "prometheus was not ready within 30 s"
  sleep 0.5
done
say "Everything holds"
