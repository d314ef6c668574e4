#!/usr/bin/env bash
# Runs the CUDA test programs beside this script; one line for each, logs in logs/.
#
#   run.sh [--family hopper|portable|fastest] [--logs FOLDER] [PROGRAM...]     default: as CTest does
#   run.sh --sanitizer memcheck|racecheck|synccheck|initcheck [...]    a small sweep of each under
#                                                                      compute-sanitizer
#   FILTER=PATTERN run.sh ...    gtest's filter, instead of everything or of the small sweep
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export FLASHBIAS_VECTORS=$here/vectors

families=()
sanitizer=
logs=$here/logs
while [[ ${1:-} == --* ]]; do
  if [[ $# -lt 2 ]]; then
    echo "$1 needs a value" >&2
    exit 2
  fi
  case $1 in
    --family) families=("$2") ;;
    --logs) logs=$2 ;;
    --sanitizer) sanitizer=$2 ;;
    *)
      echo "unknown option $1" >&2
      exit 2
      ;;
  esac
  shift 2
done
programs=("$@")
if [[ ${#programs[@]} -eq 0 ]]; then
  mapfile -t programs < <(ls "$here/bin")
fi
mkdir -p "$logs"

# Under a sanitizer a launch takes a hundred times longer: each kind of mask, bias, shape and
# packing once or twice.
small_sweep() {
  # The production backend's programs have the same tests.
  case ${1/cuda_production_backend/cuda_backend} in
    cuda_production_test) echo '*WhereTensorsLie*:*InParts*' ;;
    cuda_production_skip_promise_test) small_sweep cuda_skip_promise_test ;;
    cuda_backend_golden_test) echo '*EveryVector' ;;
    cuda_backend_oracle_test)
      echo 'Packed/*:Windows/*w64_*:Windows/*w100_*:RowsWithoutKeys/*:LowRank/*r3_*:Lengths/*n65_*:' \
        'HeadDims/*d33_*:HeadDims/*d128_*:ScalesAndInputs/*byte_offset_3_*:HeadGroups/*h8_kv2_*:' \
        'Slopes/*kind6_*:Offsets/*million*:UnequalLengths/*q5_kv1000*' | tr -d ' '
      ;;
    cuda_backend_gradient_test) echo '*PackedSequences:*RowsWithoutKeys:*NothingAtAll:*LowRank' ;;
    cuda_backend_edge_test) echo '*LowRankBiasThatHidesKeys:*RowsWithoutKeys*:*SteepestSlopes' ;;
    cuda_backend_equivalence_test) echo '*ABatchNeverChangesAnAnswer' ;;
    cuda_backend_gradient_equivalence_test) echo '*ShardsOfKeysAddUp' ;;
    cuda_skip_promise_test) echo 'SkipStats.MoreEpsSkipsMore:SkipPromise.HoldsForSixteenBitInputs' ;;
    cuda_lengths_test) echo '*DecodeInABatch/float16*:CudaSkipping.*' ;;
    *) echo '' ;;  # nothing of it runs on a device
  esac
}

status=0
# run NAME ARGUMENTS...: one line, status 1 when it failed.
run() {
  local name=$1 log=$logs/$1.log start=$SECONDS result rc
  shift
  "$@" >"$log" 2>&1
  rc=$?
  case $rc in
    0) result=passed ;;
    77) result=skipped ;;
    *)
      result="FAILED (exit $rc)"
      status=1
      ;;
  esac
  local tests
  tests=$(grep -cE '^\[       OK \]' "$log")
  printf '%-44s %s, %s tests, %s s\n' "$name" "$result" "$tests" "$((SECONDS - start))"
  if [[ $rc -ne 0 && $rc -ne 77 ]]; then
    grep -E '^\[  FAILED  \].*(\(|$)|ERROR SUMMARY|Invalid|Race reported' "$log" | sort -u | head -8
  fi
}

for program in "${programs[@]}"; do
  chosen=("${families[@]}")
  if [[ ${#chosen[@]} -eq 0 ]]; then
    chosen=(hopper portable)
    # Where a plan chooses, its batch must not.
    if [[ $program == cuda_backend_*equivalence_test || $program == cuda_production_* ]]; then
      chosen+=(fastest)
    fi
  fi
  for family in "${chosen[@]}"; do
    arguments=("--family=$family")
    name=$program.$family
    if [[ $program == cuda_*plan_test || $program == cuda_regions_test ]]; then  # know no family
      if [[ -n $sanitizer || $family != "${chosen[0]}" ]]; then continue; fi
      arguments=()
      name=$program
    fi
    if [[ -z $sanitizer ]]; then
      run "$name" "$here/bin/$program" "${arguments[@]}" "--gtest_filter=${FILTER:-*}"
    else
      run "$name.$sanitizer" compute-sanitizer --tool "$sanitizer" --error-exitcode 1 \
        "$here/bin/$program" "${arguments[@]}" "--gtest_filter=${FILTER:-$(small_sweep "$program")}"
    fi
  done
done
exit $status
