#!/usr/bin/env bash
# Packs the programs with the shared libraries that they load into one archive that runs from any
# folder of another x86-64 Linux, with its own glibc and, for GPUs, its own driver.
#
#   deploy/bundle.sh [--build FOLDER] [OUTPUT]     default: build/release, packed into build
#
# Builds nothing; what the build has (CUDA or not) the archive has. Prints the archive's path:
# OUTPUT/flashbias-VERSION-linux-x86_64-glibcLEAST.tar.xz. Needs patchelf
# (deploy/install_packages.sh --containers), on Debian 12 or Ubuntu 24.04.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/.." && pwd)

fail() {
  echo "bundle.sh: $*" >&2
  exit 1
}

build=$repo/build/release
if [[ ${1:-} == --build ]]; then
  build=${2:?--build needs a folder}
  shift 2
fi
if [[ $# -gt 1 || ${1:-} == -* ]]; then
  echo "usage: $0 [--build FOLDER] [OUTPUT]" >&2
  exit 2
fi
output=${1:-$repo/build}
for tool in patchelf objdump strip xz; do
  command -v "$tool" >/dev/null || fail "$tool is missing: deploy/install_packages.sh --containers"
done
programs=(flashbias-server flashbias-load flashbias-call)
for program in "${programs[@]}"; do
  [[ -x $build/bin/$program ]] || fail "there is no $build/bin/$program: build it, or name its build folder"
done

work=$(mktemp -d)
archive=
# An archive is there whole or not at all.
trap 'rm -rf "$work" "${archive:+$archive.part}"' EXIT
root=$work/root
mkdir -p "$root"/{bin,lib,etc,licences}

for program in "${programs[@]}"; do
  strip -o "$root/bin/$program" "$build/bin/$program"
  patchelf --set-rpath '$ORIGIN/../lib' "$root/bin/$program"
done
mapfile -t libraries < <("$here/shared_libraries.sh" "${programs[@]/#/$build/bin/}")
((${#libraries[@]} > 0)) || fail "the programs load no shared libraries"
# What libtbb opens by itself, where it is.
for library in "${libraries[@]}"; do
  malloc=$(dirname "$library")/libtbbmalloc.so.2
  if [[ $library == */libtbb.so.* && -e $malloc ]]; then libraries+=("$malloc"); fi
done
# Each under the name that it is asked for; $ORIGIN, since a program's own path holds for its own needs only.
for library in "${libraries[@]}"; do
  name=$(basename "$library")
  strip -o "$root/lib/$name" "$library"
  patchelf --set-rpath '$ORIGIN' "$root/lib/$name"
done

# Licences of the packages that own them, and of those whose code is in the programs themselves.
packages=(libhwy-dev libspdlog-dev nlohmann-json3-dev prometheus-cpp-dev)
for library in "${libraries[@]}"; do
  owners=$(dpkg-query --search "*/$(basename "$(dirname "$library")")/$(basename "$library")" | cut -d: -f1)
  mapfile -t -O "${#packages[@]}" packages <<<"$owners"
done
while read -r package; do
  copyright=/usr/share/doc/$package/copyright
  [[ -e $copyright ]] || fail "there is no $copyright, which the archive has to hold"
  cp "$copyright" "$root/licences/$package"
done < <(printf '%s\n' "${packages[@]}" | sort -u)

version=$("$build/bin/flashbias-server" --version)
version=${version##* }
kernels=CPU
# A build without CUDA refuses the flag.
if "$build/bin/flashbias-server" --backend=cuda --print_config >/dev/null 2>&1; then kernels="CUDA and CPU"; fi
glibc=$(objdump -T "$root"/bin/* "$root"/lib/* | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -1)
glibc=${glibc#GLIBC_}
[[ $(uname -m) == x86_64 && -n $glibc ]] || fail "this machine is $(uname -m); accepted: x86_64"
revision=$(git -C "$repo" rev-parse HEAD 2>/dev/null || echo unknown)

cat >"$root/VERSION" <<END
version=$version
revision=$revision
kernels=$kernels
least_glibc=$glibc
END
cp "$here/flashbias-server.flags" "$root/etc/"
{
  echo "# flashbias-server under systemd, from /opt/flashbias; README says how to install it."
  sed -n '/^\[Unit\]/,$p' "$here/flashbias-server.service" | sed 's|/usr/local/bin/|/opt/flashbias/bin/|'
} >"$root/etc/flashbias-server.service"
name=flashbias-$version-linux-x86_64-glibc$glibc
driver="It has CPU kernels only."
if [[ $kernels != CPU ]]; then
  driver="GPUs need NVIDIA's driver, 580 or later, and nothing else of CUDA."
  # The CUDA runtime is linked statically. Its licence lies where the toolkit's packages put it, which nvcc itself knows: the
  # compiler's path may be a link or a wrapper.
  nvcc=$(sed -nE 's,^(CMAKE_CUDA_COMPILER|FLASHBIAS_NVCC):[A-Z]*=(.*/nvcc)$,\2,p' "$build/CMakeCache.txt" | tail -n 1)
  toolkit=$("$(readlink -f "$nvcc")" --dryrun x.cu 2>&1 | sed -n 's/^#\$ TOP=//p' || true)
  for licence in "$toolkit"/EULA.txt "$toolkit"/dist-info/nvidia_cuda_runtime-*/licenses/License.txt; do
    [[ ! -e $licence ]] || cp "$licence" "$root/licences/cuda-runtime"
  done
  if [[ ! -e $root/licences/cuda-runtime ]]; then
    echo "bundle.sh: the toolkit in '$toolkit' holds no copy of its licence; the archive says where NVIDIA publishes it" >&2
    echo "The programs hold the CUDA runtime, under NVIDIA's licence: https://docs.nvidia.com/cuda/eula/index.html" \
      >"$root/licences/cuda-runtime"
  fi
fi
cat >"$root/README" <<END
FlashBias Serve $version: attention with ALiBi or low-rank bias as a gRPC service.

Runs on x86-64 Linux with glibc $glibc or later (ldd --version), from any folder. $driver

    bin/flashbias-server &          serves gRPC on port 8471, GET /metrics on port 8472
    bin/flashbias-call --demo       calls it
    bin/flashbias-load --verify     loads it for ten seconds and checks answers

--help lists the flags of each. Traffic is plain text and callers are not authenticated.

As a systemd service:

    mkdir -p /opt && tar -C /opt -xf $name.tar.xz && mv /opt/$name /opt/flashbias
    cd /opt/flashbias
    install -D -m 644 etc/flashbias-server.flags /etc/flashbias/flashbias-server.flags
    install -m 644 etc/flashbias-server.service /etc/systemd/system/
    systemctl daemon-reload && systemctl enable --now flashbias-server

etc/flashbias-server.flags has every flag of the server with its default and when to change it.
lib/ holds the shared libraries, licences/ the licences of what the programs are linked with.
END

mkdir -p "$output"
mv "$root" "$work/$name"
chmod -R u=rwX,go=rX "$work/$name"
archive=$output/$name.tar.xz
stamp=$(git -C "$repo" log -1 --format=%ct 2>/dev/null || date +%s)
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$stamp" -c "$name" |
  xz --threads=0 >"$archive.part"
mv "$archive.part" "$archive"
echo "$archive"
