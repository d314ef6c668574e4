#!/usr/bin/env bash
# Installs the Debian packages that this project needs and that are missing.
#
#   deploy/install_packages.sh            what building and testing takes
#   deploy/install_packages.sh --checks   the same, clang, clang-format and clang-tidy as well
#   deploy/install_packages.sh --observability
#                                         the same, and Prometheus, for tests/observability/check.sh
#   deploy/install_packages.sh --kubernetes
#                                         the same, for tests/deploy/check_kubernetes.sh
#   deploy/install_packages.sh --containers
#                                         the same, and what builds and runs images and archives, for
#                                         deploy/bundle.sh and tests/deploy
#
# Debian 12 and Ubuntu 24.04. Does nothing, and needs no network, when all are there. Uses sudo when
# it is not run by root.
set -euo pipefail

packages=(
  # tools
  ca-certificates ccache cmake g++ make ninja-build pkg-config
  # gRPC, protobuf and abseil
  libabsl-dev libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
  # what the CMake files of those look for
  libc-ares-dev libre2-dev zlib1g-dev
  # checks of certificates and keys; gRPC's TLS too
  libssl-dev
  # metrics, logs, JSON
  prometheus-cpp-dev libspdlog-dev nlohmann-json3-dev
  # SIMD and threads of the CPU backend
  libhwy-dev libtbb-dev
  # matrix products of the client's example
  libeigen3-dev
  # reading a server's metrics
  libcurl4-openssl-dev
  # tests and benchmarks
  libgmock-dev libgtest-dev libbenchmark-dev python3-numpy
)

case "${1:-}" in
  '') ;;
  --checks) packages+=(clang clang-format clang-tidy) ;;
  --observability) packages+=(prometheus python3) ;;
  --kubernetes) packages+=(prometheus python3 python3-venv) ;;
  --containers) packages+=(buildah debootstrap patchelf prometheus python3 python3-venv runc xz-utils) ;;
  *)
    echo "usage: $0 [--checks | --observability | --kubernetes | --containers]" >&2
    exit 2
    ;;
esac

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
  # Of a package for several architectures, dpkg-query prints one status after the other.
  case "$status" in
    *installed*)
      [[ "$status" == *not-installed* ]] && missing+=("$package") || true
      ;;
    *) missing+=("$package") ;;
  esac
done
if ((${#missing[@]} == 0)); then
  exit 0
fi

as_root=()
if [[ $(id -u) -ne 0 ]]; then
  if ! command -v sudo >/dev/null; then
    echo "$0: these packages are missing, and there is neither root nor sudo: ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

echo "Installing packages: ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install --yes -qq --no-install-recommends "${missing[@]}" >/dev/null
