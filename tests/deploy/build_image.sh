#!/usr/bin/env bash
# Builds the Dockerfile and runs what came out, without a container daemon: buildah builds, runc runs
# the image as a hardened host would (check_image.sh says what is judged).
#
#   tests/deploy/build_image.sh [--cpu | --cuda] [BUILD_FOLDER]
#
#   --cpu          the image without CUDA kernels
#   --cuda         the one with them; needs the toolkit at /usr/local/cuda
#   neither        the first, and the second where there is a toolkit
#   BUILD_FOLDER   holds bin/flashbias-call and bin/flashbias-load, which call the container from
#                  outside; default: build/release
#
# As root, on Debian 12 or Ubuntu 24.04. The base images are made by debootstrap from the host's own
# package sources; they, the layers and the compiler's cache stay in build/images for the next time.
# deploy/install_packages.sh --containers installs what it needs.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
toolkit=/usr/local/cuda

say() { printf '==> %s (%s s)\n' "$*" "$SECONDS"; }
fail() {
  echo "build_image.sh: $*" >&2
  exit 1
}

kinds=(cpu)
[[ ! -x $toolkit/bin/nvcc ]] || kinds+=(cuda)
case ${1:-} in
  --cpu | --cuda)
    kinds=("${1#--}")
    shift
    ;;
esac
if [[ $# -gt 1 || ${1:-} == -* ]]; then
  echo "usage: $0 [--cpu | --cuda] [BUILD_FOLDER]" >&2
  exit 2
fi
bin=$(cd "${1:-$repo/build/release}" && pwd)/bin
[[ ${kinds[*]} != *cuda* || -x $toolkit/bin/nvcc ]] || fail "there is no $toolkit/bin/nvcc"
[[ $(id -u) -eq 0 ]] || fail "needs root: it makes root folders and mounts"
for tool in buildah debootstrap runc python3 readelf; do
  command -v "$tool" >/dev/null || fail "$tool is missing: deploy/install_packages.sh --containers"
done
for program in flashbias-call flashbias-load; do
  [[ -x $bin/$program ]] || fail "there is no $bin/$program: build it, or name its build folder"
done

store=$repo/build/images
mkdir -p "$store/tmp"
export TMPDIR=$store/tmp # the cache mounts of RUN lie there
exec {lock}>"$store/lock"
flock --nonblock "$lock" || fail "another run of this script uses $store"
work=$(mktemp -d)

b() { buildah --root "$store/root" --runroot "$store/run" --storage-driver vfs "$@"; }

stop() {
  local code=$?
  b rm --all >/dev/null 2>&1 || true
  if ((code != 0)); then
    for log in base build; do
      [[ ! -s $work/$log.log ]] || { say "The end of $log's log:"; tail -n 25 "$work/$log.log"; }
    done
  fi
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# open IMAGE: a container of it, or of nothing (scratch), in $made, its files at $files.
open() {
  made=$(b from --pull-never "$1")
  files=$(b mount "$made")
}
exists() { b inspect --type image "$1" >/dev/null 2>&1; }
megabytes() { echo $((($(du -s --block-size=1000 --one-file-system "$1" | cut -f1) + 500) / 1000)); }

codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
base=localhost/flashbias-base:$codename

# The host's package sources of its own distribution, as "URI SUITE COMPONENT".
sources() {
  apt-get indextargets --format '$(CODENAME) $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v codename="$codename" 'index($1, codename) == 1 {print $2, $3, $4}' | sort -u
}

# As the public slim images are: no documents, no translations, no package lists.
make_base() {
  local mirror
  mirror=$(sources | awk -v suite="$codename" '$2 == suite {print $1; exit}')
  [[ -n $mirror ]] || fail "apt knows no source of $codename: apt-get update makes it known"
  open scratch
  debootstrap --variant=minbase "$codename" "$files" "$mirror" >"$work/base.log" 2>&1 || fail "debootstrap"
  rm -rf "$files"/etc/apt/sources.list.d/*
  sources | sed 's/^/deb /' >"$files/etc/apt/sources.list"
  apt-config dump | grep -E '^Acquire::(http|https|ftp|Check|Retries)' >"$files/etc/apt/apt.conf.d/90host" || true
  chroot "$files" apt-get clean
  find "$files/usr/share/doc" ! -type d ! -name copyright -delete
  rm -rf "$files"/usr/share/{info,locale,man}/* "$files"/var/lib/apt/lists/* "$files"/var/log/*
  b commit --quiet "$made" "$base" >/dev/null
}

# The same with what compiling for CUDA takes of the host's toolkit: no libraries but the runtime.
make_cuda_base() {
  open "$base"
  mkdir -p "$files$toolkit"
  (cd "$toolkit/" && find . ! -type d ! -path './nsight*' ! -path './compute-sanitizer/*' ! -path './extras/*' \
    \( ! -path '*/lib/*' -a ! -path '*/lib64/*' -o -path './nvvm/*' -o -name 'libcudart*' -o -name 'libcudadevrt*' \) -print0) |
    tar -C "$toolkit/" --null --files-from=- -c | tar -C "$files$toolkit" -x
  # As NVIDIA's images have it.
  b config --env PATH="$toolkit/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" "$made"
  b commit --quiet "$made" "$base-cuda" >/dev/null
}

# build STAGE KIND BUILD_IMAGE [OPTION...]: STAGE of the Dockerfile; '' is the image.
build() {
  local stage=$1 kind=$2 build_image=$3 with_cuda=OFF
  shift 3
  [[ $kind == cpu ]] || with_cuda=ON
  b bud --isolation chroot --format docker --pull-never "$@" --tag "localhost/flashbias${stage:+-$stage}:$kind" \
    --build-arg BUILD_IMAGE="$build_image" --build-arg RUNTIME_IMAGE="$base" --build-arg WITH_CUDA="$with_cuda" \
    --build-arg VERSION="$version" --build-arg REVISION="$revision" "$repo" >"$work/build.log" 2>&1 ||
    fail "building the $kind image"
}

version=$(sed -n 's/^project(flashbias VERSION \([0-9.]*\).*/\1/p' "$repo/CMakeLists.txt")
revision=$(git -C "$repo" rev-parse HEAD 2>/dev/null || echo unknown)

for kind in "${kinds[@]}"; do
  build_image=$base
  if ! exists "$base"; then
    say "Base image: $codename, by debootstrap"
    make_base
  fi
  if [[ $kind == cuda ]]; then
    build_image=$base-cuda
    if ! exists "$build_image"; then
      say "Base image of the build: the same with the CUDA toolkit"
      make_cuda_base
    fi
  fi
  say "Building the $kind image"
  # Packages first, by a name of their own: they stay for the next time, while sources change.
  build packages "$kind" "$build_image" --layers --target packages
  build '' "$kind" "localhost/flashbias-packages:$kind"
  grep -E '^ +(Hits|Misses): ' "$work/build.log" | sed 's/^ */    compiler cache /' || true
  b rmi --prune >/dev/null

  b inspect --type image "localhost/flashbias:$kind" >"$work/image.json"
  open "$base"
  base_size=$(megabytes "$files")
  open "localhost/flashbias:$kind"
  say "The $kind image: $(megabytes "$files") MB of files, $base_size MB of them the base;" \
    "$(($(tar -C "$files" -c . | gzip -1 | wc -c) / 1000000)) MB with gzip -1"
  say "Running it"
  "$here/check_image.sh" "$kind" "$files" "$work/image.json" "$version" "$revision" "$bin"
done
say "Everything holds: ${kinds[*]}"
