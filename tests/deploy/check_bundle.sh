#!/usr/bin/env bash
# Makes the archive of deploy/bundle.sh and runs it where there is nothing but glibc: in an empty root,
# under another path than it was built for.
#
#   tests/deploy/check_bundle.sh [BUILD_FOLDER]     default: build/release
#
# As root, on Debian 12 or Ubuntu 24.04. deploy/install_packages.sh --containers installs what it needs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)

say() { echo "==> $*"; }
fail() {
  echo "check_bundle.sh: $*" >&2
  exit 1
}
if [[ $# -gt 1 || ${1:-} == -* ]]; then
  echo "usage: $0 [BUILD_FOLDER]" >&2
  exit 2
fi
[[ $(id -u) -eq 0 ]] || fail "needs root: it changes the root folder"

work=$(mktemp -d)
server=
stop() {
  local code=$?
  if [[ -n $server ]]; then
    kill -KILL "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  if ((code != 0)); then
    for log in server call load; do
      [[ ! -s $work/$log.log ]] || { say "The end of $log's log:"; tail -n 12 "$work/$log.log"; }
    done
  fi
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "The archive"
archive=$("$repo/deploy/bundle.sh" --build "${1:-$repo/build/release}" "$work")
name=$(basename "$archive" .tar.xz)
echo "$name.tar.xz: $(($(stat -c %s "$archive") / 1000)) kB"
[[ $name =~ ^flashbias-[0-9.]+-linux-x86_64-glibc[0-9.]+$ ]] || fail "the name is not as it should be"

# glibc's loader and libraries, and folders to mount on.
root=$work/root
place=/srv/elsewhere
mkdir -p "$root"/{dev,proc,tmp} "$root$place"
dpkg-query --listfiles libc6 | grep -E '/(ld-linux[^/]*|lib[^/]*)\.so(\.[0-9.]+)?$' | while read -r file; do
  target=$(readlink -f "$(dirname "$file")")
  mkdir -p "$root$target"
  cp -P "$file" "$root$target/"
done
mkdir -p "$root/lib64"
cp "$(readlink -f /lib64/ld-linux-x86-64.so.2)" "$root/lib64/ld-linux-x86-64.so.2"
[[ ! -L /lib ]] || ln -s usr/lib "$root/lib"
tar -C "$root$place" -xf "$archive"
bundle=$place/$name

say "What it holds"
for file in README VERSION etc/flashbias-server.flags etc/flashbias-server.service; do
  [[ -s $root$bundle/$file ]] || fail "there is no $file"
done
grep -q '^ExecStart=/opt/flashbias/bin/flashbias-server ' "$root$bundle/etc/flashbias-server.service" ||
  fail "the unit starts another program than README installs"
found=$(find "$root$bundle/lib" -regextype egrep -regex '.*/(libc|libm|libpthread|libdl|librt|libresolv|ld-linux.*)\.so.*')
[[ -z $found ]] || fail "it holds parts of glibc: $found"
for file in "$root$bundle"/bin/* "$root$bundle"/lib/*; do
  if readelf --sections --wide "$file" | grep -q ' \.symtab '; then fail "$(basename "$file") is not stripped"; fi
done
licences=$(ls "$root$bundle/licences")
grep -qx 'libgrpc++.*' <<<"$licences" && grep -qx 'libstdc++6' <<<"$licences" || fail "licences are missing: $licences"
cat "$root$bundle/VERSION"
echo "$(ls "$root$bundle/lib" | wc -l) libraries, $(wc -l <<<"$licences") licences, $(du -sh "$root$bundle" | cut -f1) unpacked"

if unshare --mount bash -c 'mount --bind /dev "$1/dev" && mount -t proc proc "$1/proc"' - "$root" 2>/dev/null; then
  say "A server in a root without other libraries"
  shared=/tmp
  inside=$bundle
  unshare --mount bash -c '
    mount --bind /dev "$1/dev" && mount -t proc proc "$1/proc" &&
    exec chroot "$1" "$2/bin/flashbias-server" --backend=cpu --listen_address=127.0.0.1:0 \
      --metrics_address=127.0.0.1:0 --port_file=/tmp/ports' - "$root" "$bundle" >"$work/server.log" 2>&1 &
  # Beside the server, in the same root.
  beside() { nsenter --target="$server" --mount --root --wd "$@"; }
else
  say "A server in another folder; NOT RUN in a root of its own, since this machine lets nobody mount"
  shared=$root/tmp
  inside=$root$bundle
  "$inside/bin/flashbias-server" --backend=cpu --listen_address=127.0.0.1:0 --metrics_address=127.0.0.1:0 \
    --port_file="$shared/ports" >"$work/server.log" 2>&1 &
  beside() { "$@"; }
fi
server=$!
for ((tries = 0; tries < 300; ++tries)); do
  [[ -e $root/tmp/ports ]] && break
  kill -0 "$server" 2>/dev/null || fail "the server has ended"
  sleep 0.1
done
port=$(sed -n 's/^grpc_port=//p' "$root/tmp/ports")
beside "$inside/bin/flashbias-server" --port_file="$shared/ports" --health_check || fail "the health check"
strange=$(awk '$6 ~ /\.so/ {print $6}' "/proc/$server/maps" | sort -u | grep -vE "$inside/lib/|/(libc|libm|libpthread|libdl|librt|libresolv|ld-linux-x86-64)\.so" || true)
[[ -z $strange ]] || fail "the server has loaded $strange"

say "Calls"
beside "$inside/bin/flashbias-call" --target="127.0.0.1:$port" --demo --demo_len=64 >"$work/call.log" 2>&1 || fail "flashbias-call"
beside "$inside/bin/flashbias-load" --target="127.0.0.1:$port" --seq_len=64 --requests=50 --warmup=0s --verify \
  >"$work/load.log" 2>&1 || fail "flashbias-load"
grep -E '^(server|requests|verif)' "$work/load.log"

say "SIGTERM"
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
((code == 0)) || fail "exit code $code after SIGTERM"
grep -q ' drained' "$work/server.log" || fail "the log does not say drained"
say "Everything holds"
