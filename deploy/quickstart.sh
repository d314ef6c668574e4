#!/usr/bin/env bash
# From a clean machine to measured attention calls: installs the packages that are missing, builds,
# starts flashbias-server on loopback, loads it with the GPT-2 shape of the FlashBias paper (50 heads
# x 32, causal, seed slopes, 1024 tokens, float16), checks a share of the answers against a
# double-precision reference, prints the report and stops the server.
#
#   deploy/quickstart.sh [--duration=10s] [--seq_len=1024] [any other flag of flashbias-load]
#   deploy/quickstart.sh --rate=20 --html=report.html
#
# Debian 12 or Ubuntu 24.04, as root or with sudo. The exit code is flashbias-load's: 0 when every
# request was answered and every answer that was checked is right.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "==> $*"; }

work=$(mktemp -d)
server=
stop() {
  local code=$?
  if [[ -n $server ]]; then
    say "Stopping the server"
    kill "$server" 2>/dev/null || true
    wait "$server" || true
  fi
  if ((code != 0)) && [[ -s $work/server.log ]]; then
    say "The server's last words:"
    tail -n 20 "$work/server.log"
  fi
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "Checking packages"
deploy/install_packages.sh

say "Building (the first time takes a few minutes)"
{
  cmake --preset release
  cmake --build --preset release --parallel "$(nproc)" \
    --target flashbias-server flashbias-load flashbias-call
} >"$work/build.log" 2>&1 || {
  tail -n 40 "$work/build.log"
  say "The build failed"
  exit 1
}
bin=build/release/bin

say "Starting flashbias-server on free ports of 127.0.0.1"
"$bin/flashbias-server" --listen_address=127.0.0.1:0 --metrics_address=127.0.0.1:0 \
  --port_file="$work/ports" >"$work/server.log" 2>&1 &
server=$!
for ((tries = 0; tries < 300; ++tries)); do
  [[ -e $work/ports ]] && break
  kill -0 "$server" 2>/dev/null || {
    wait "$server" || true
    server=
    say "The server did not start"
    exit 1
  }
  sleep 0.1
done
[[ -e $work/ports ]] || {
  say "The server was not ready within 30 seconds"
  exit 1
}
grpc_port=$(sed -n 's/^grpc_port=//p' "$work/ports")
metrics_port=$(sed -n 's/^metrics_port=//p' "$work/ports")
"$bin/flashbias-call" --target="127.0.0.1:$grpc_port" --demo --demo_len=16 >/dev/null
say "Serving on port $grpc_port, metrics on port $metrics_port"

# A closed loop of four callers, unless the flags ask for another load.
loop=(--concurrency=4)
for flag in "$@"; do
  case "$flag" in
    --concurrency* | --rate* | --sweep* | --trace*) loop=() ;;
  esac
done

say "Loading it: 1 x 50 heads x 32, causal, seed slopes, 1024 tokens, float16"
code=0
"$bin/flashbias-load" --target="127.0.0.1:$grpc_port" --heads=50 --head_dim=32 --seq_len=1024 \
  --dtype=float16 --alibi=seed --causal --connections=2 --duration=10s --verify \
  --metrics="127.0.0.1:$metrics_port" "${loop[@]}" "$@" || code=$?

say "Some of what http://127.0.0.1:$metrics_port/metrics says"
exec 3<>"/dev/tcp/127.0.0.1/$metrics_port"
printf 'GET /metrics HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
grep -aE '^flashbias_(requests_total.*[^0]$|(tiles|received_bytes|sent_bytes)|batch_requests_(sum|count)|stage_duration_seconds_(sum|count))' <&3 |
  tr -d '\r' || true
exec 3>&-

exit "$code"
