#!/usr/bin/env bash
# Collects the CUDA test programs and what they need into a folder that runs on another machine.
#
#   tests/cuda_bundle.sh OUTPUT [BUILD]   BUILD: a build folder; default: build/release
#
# Builds nothing. OUTPUT gets the test programs (stripped) in bin/, the server and its clients in
# tools/, the shared libraries that they load, save those of the C library, the golden vectors, and
# run.sh, which needs a driver and nothing else. For tools/, set LD_LIBRARY_PATH to lib/.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ $# -lt 1 || $# -gt 2 ]]; then
  echo "usage: $0 OUTPUT [BUILD]" >&2
  exit 2
fi
out=$1
build=${2:-$root/build/release}
programs=(cuda_plan_test cuda_backward_plan_test cuda_backend_golden_test cuda_backend_edge_test
  cuda_backend_oracle_test cuda_backend_gradient_test cuda_skip_promise_test
  cuda_backend_equivalence_test cuda_backend_gradient_equivalence_test cuda_lengths_test
  cuda_gradient_lengths_test
  cuda_production_test cuda_production_backend_golden_test cuda_production_backend_edge_test
  cuda_production_backend_oracle_test cuda_production_backend_gradient_test
  cuda_production_backend_equivalence_test cuda_production_backend_gradient_equivalence_test
  cuda_production_skip_promise_test cuda_regions_test)
# Run by hand: a server and what loads it, and tests that start the server beside them.
# cuda_regions_test starts it too.
tools=(flashbias-server flashbias-load flashbias-call killed_callers_test killed_caller
  large_stream_test)

for program in "${programs[@]}" "${tools[@]}"; do
  if [[ ! -x $build/bin/$program ]]; then
    echo "no $build/bin/$program: build the target first" >&2
    exit 1
  fi
done
mkdir -p "$out/bin" "$out/tools" "$out/lib" "$out/vectors"
for program in "${programs[@]}"; do
  strip -o "$out/bin/$program" "$build/bin/$program"
done
for program in "${tools[@]}"; do
  strip -o "$out/tools/$program" "$build/bin/$program"
done
"$root/deploy/shared_libraries.sh" "${programs[@]/#/$build/bin/}" "${tools[@]/#/$build/bin/}" |
  while read -r library; do
    strip -o "$out/lib/$(basename "$library")" "$library"
  done
cp "$root"/tests/vectors/* "$out/vectors/"
install -m 755 "$root/tests/cuda_bundle_run.sh" "$out/run.sh"
du -sh "$out" | cut -f1
