#!/usr/bin/env bash
# Runs an unpacked image under runc and judges it; build_image.sh calls it.
#
#   tests/deploy/check_image.sh KIND ROOTFS IMAGE_JSON VERSION REVISION BIN
#
#   KIND         cpu or cuda: which kernels the image is to have
#   ROOTFS       the image's files, mounted
#   IMAGE_JSON   what `buildah inspect --type image` says of it
#   BIN          a folder with flashbias-call and flashbias-load, which call it from outside
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kind=$1 rootfs=$2 image=$3 version=$4 revision=$5 bin=$6

say() { echo "  - $*"; }
fail() {
  echo "check_image.sh: $kind: $*" >&2
  exit 1
}

work=$(mktemp -d)
name=flashbias-$$
server=
load=
stop() {
  local code=$?
  [[ -z $load ]] || kill "$load" 2>/dev/null || true
  runc --root "$work/runc" delete --force "$name" >/dev/null 2>&1 || true
  [[ -z $server ]] || wait "$server" 2>/dev/null || true
  if ((code != 0)); then
    for log in server load call; do
      [[ -s $work/$log.log ]] && { echo "The end of $log's log:"; tail -n 12 "$work/$log.log"; }
    done
  fi
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

config() { python3 "$here/image_config.py" "$@" <"$image"; }
# prepare FLAG_FILE [ARGUMENT...]: what run runs.
prepare() {
  mkdir -p "$work/bundle"
  config runc "$rootfs" "$@" >"$work/bundle/config.json"
}
run() { runc --root "$work/runc" run --bundle "$work/bundle" "$name"; }
inside() { runc --root "$work/runc" exec "$name" "$@"; }

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
# metric NAME: its value in the container's /metrics, 0 where it is not there.
metric() {
  python3 -c 'import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1], timeout=5).read())' \
    "http://127.0.0.1:$metrics_port/metrics" |
    awk -v name="$1" '$1 == name {value = $2} END {print value + 0}'
}

say "labels, user, ports, stop signal"
config check "$version" "$revision"

say "nothing of the build, no documents, no package lists; programs stripped"
found=$(cd "$rootfs" && find . -xdev ! -type d \( -path './var/lib/apt/lists/*' -o -path './usr/share/man/*' \
  -o -path './usr/share/doc/*' ! -name copyright -o -name 'libcudart*' -o -name nvcc -o -name 'g++*' \
  -o -name cmake -o -name '*.a' -o -path './source/*' \) | head -n 5)
[[ -z $found ]] || fail "the image holds $found"
for program in flashbias-server flashbias-call flashbias-load; do
  [[ -x $rootfs/usr/local/bin/$program ]] || fail "there is no $program"
  if readelf --sections --wide "$rootfs/usr/local/bin/$program" | grep -q ' \.symtab '; then
    fail "$program is not stripped"
  fi
done

say "its own flag file is read, and arguments count"
prepare '' --max_queue_requests=77 --print_config
run >"$work/printed" 2>"$work/server.log" || fail "--print_config: exit code $?"
for flag in --listen_address=0.0.0.0:8471 --max_queue_requests=77; do
  grep -qx -e "$flag" "$work/printed" || fail "--print_config does not print $flag"
done
prepare '' --version
[[ $(run) == "flashbias-server $version" ]] || fail "--version says $(run)"

say "the kernels that it is to have"
# A build without CUDA refuses the flag; one with it needs a device only once it serves.
prepare '' --backend=cuda --print_config
code=0
run >/dev/null 2>"$work/server.log" || code=$?
case $kind in
  cpu) ((code == 2)) || fail "--backend=cuda: exit code $code, not 2" ;;
  cuda) ((code == 0)) || fail "--backend=cuda: exit code $code, not 0" ;;
esac

say "it serves, with a flag file of the caller's, and its HEALTHCHECK follows"
grpc_port=$(free_port)
metrics_port=$(free_port)
cat >"$work/flags" <<END
# Another port than the default.
--listen_address=127.0.0.1:$grpc_port
--metrics_address=127.0.0.1:$metrics_port
--backend=cpu
--drain_timeout=2m
END
chmod 755 "$work" && chmod 644 "$work/flags"
prepare "$work/flags"
run >"$work/server.log" 2>&1 &
server=$!
mapfile -t health < <(config health)
for ((tries = 0; ; ++tries)); do
  inside "${health[@]}" 2>"$work/health.log" && break
  kill -0 "$server" 2>/dev/null || fail "the server has ended"
  ((tries < 60)) || fail "not healthy within 30 s: $(cat "$work/health.log")"
  sleep 0.5
done
if inside flashbias-server --listen_address=127.0.0.1:1 --health_check 2>/dev/null; then
  fail "the health check finds a server at port 1"
fi

say "as its user, without capabilities, its root read-only"
[[ $(inside id -u) == "$(config user)" ]] || fail "the user is $(inside id -u)"
[[ $(inside sh -c 'tr "\0" " " < /proc/1/cmdline') == flashbias-server* ]] || fail "process 1 is not the server"
[[ $(inside sh -c 'grep -h ^CapEff /proc/1/status | tr -d "[:space:]"') == CapEff:0000000000000000 ]] ||
  fail "the server has capabilities"
if inside sh -c 'echo > /tmp/x || echo > /x' 2>/dev/null; then fail "something can be written"; fi

say "calls from outside"
"$bin/flashbias-call" --target="127.0.0.1:$grpc_port" --demo --demo_len=64 >"$work/call.log" 2>&1 || fail "flashbias-call"
calls='flashbias_requests_total{code="OK",method="Attend",transport="tcp"}'
[[ $(metric "$calls") == 1 ]] || fail "/metrics counts no call"

say "SIGTERM under load: what was accepted is answered"
"$bin/flashbias-load" --target="127.0.0.1:$grpc_port" --seq_len=8192 --eps=0 --concurrency=2 \
  --warmup=0s --duration=20s --timeout=120s --allow_errors --json="$work/load.json" >"$work/load.log" 2>&1 &
load=$!
for ((tries = 0; $(metric flashbias_inflight_requests) < 1; ++tries)); do
  kill -0 "$load" 2>/dev/null || fail "flashbias-load has ended"
  ((tries < 300)) || fail "nothing in flight within 30 s"
  sleep 0.1
done
[[ $(metric "$calls") == 1 ]] || fail "the load was answered before SIGTERM: its requests are too small for this machine"
sent=$(date +%s%N)
runc --root "$work/runc" kill "$name" TERM # which is the image's stop signal, see above
code=0
wait "$server" || code=$?
server=
took=$((($(date +%s%N) - sent) / 1000000))
((code == 0)) || fail "exit code $code after SIGTERM"
grep -q ' drained' "$work/server.log" || fail "the log does not say drained"
wait "$load" || fail "flashbias-load: exit code $?"
load=
python3 - "$work/load.json" <<'END' || fail "what the callers got"
import json, sys
report = json.load(open(sys.argv[1]))
errors = {code: status["count"] for code, status in report["statuses"].items() if code != "OK"}
print(f"  - callers: {report['requests_succeeded']} answered, then {errors}")
if report["requests_succeeded"] < 1 or set(errors) != {"UNAVAILABLE"}:
    sys.exit(1)
END
say "stopped with exit code 0, $took ms after SIGTERM"
