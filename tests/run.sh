#!/usr/bin/env bash
# Builds everything and runs all tests; ends with CTest's summary.
#
#   tests/run.sh [--preset NAME] [CTEST ARGUMENTS...]
#
#   --preset NAME   a preset of CMakePresets.json; default: release
#
#   tests/run.sh                          everything
#   tests/run.sh -R Scheduler             the tests whose name contains Scheduler
#   tests/run.sh --preset asan -LE slow   under AddressSanitizer, without the slow ones
#
# Installs the packages that are missing (as root or with sudo) and needs no network when there are
# none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=release
if [[ "${1:-}" == --preset ]]; then
  if [[ -z "${2:-}" ]]; then
    echo "usage: $0 [--preset NAME] [CTEST ARGUMENTS...]" >&2
    exit 2
  fi
  preset=$2
  shift 2
fi

deploy/install_packages.sh
jobs=$(nproc)
cmake --preset "$preset"
cmake --build --preset "$preset" --parallel "$jobs"
ctest --preset "$preset" --parallel "$jobs" --no-tests=error "$@"
