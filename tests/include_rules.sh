#!/usr/bin/env bash
# Fails where a folder includes what it may not, naming file, line and rule.
#
#   tests/include_rules.sh [ROOT]       checks a source tree; default: the one this script is in
#   tests/include_rules.sh --self-test  checks that every rule catches what it forbids
set -euo pipefail

# rule WHERE BUT FORBIDDEN WHY: no file whose path matches WHERE, save those that match BUT, may
# include a header that matches FORBIDDEN. Extended regular expressions; BUT may be empty.
wire='^(flashbias/v1/|grpc|google/protobuf|.*\.pb\.h$)'
# Of wire/, what shows gRPC or protobuf.
wire_grpc='^wire/(chunk|chunk_assembler|gather|message_reader|message_writer|slice_stream|tensor_reader|transport_options)'
cuda='^(cuda|cuda_[a-z0-9_]+|device_launch_parameters|mma|cooperative_groups)\.h$|^(cuda|cub|thrust)/'
check_tree() {
  found=0
  rule '^kernels/' '' "$wire|^(prometheus|proto|wire|server|client|tests|spdlog|nlohmann)/" \
    'kernels know nothing of wire, metrics, server or client'
  rule '^kernels/[^/]*\.h$' '' '^kernels/(cpu|cuda|reference)/' \
    'public headers of kernels/ know no backend'
  rule '^kernels/[^/]*\.cc$' '^kernels/backend_factory\.cc$' '^kernels/(cpu|cuda|reference)/' \
    'only the factory knows the backends'
  rule '^kernels/reference/' '' '^kernels/(cpu|cuda)/|^kernels/skip_table\.h' \
    'the reference shares no code with what it judges'
  rule '^(kernels/)' '^kernels/cpu/' '^(hwy|tbb|oneapi)/' 'SIMD and threads stay in kernels/cpu'
  rule '^(kernels|wire|server|client)/' '^kernels/cuda/' "$cuda" 'CUDA stays in kernels/cuda'
  rule '^kernels/cuda/' '' '^kernels/(cpu|reference)/' 'a backend knows no other'
  rule '^kernels/cpu/' '' '^kernels/(cuda|reference)/' 'a backend knows no other'
  rule '' '^kernels/cuda/.*\.cuh?$' '\.cuh$' 'device code stays in .cu and .cuh files'
  rule '^server/' '' '^(kernels/[^/]*/|client/|tests/|hwy/|tbb/|oneapi/)' \
    'the server sees kernels/*.h only'
  rule '^server/' '^server/(service|codec|attend_(call|reader|stream)|server|health|health_check|reflection)\.(h|cc)$' \
    "$wire|$wire_grpc" \
    'gRPC and protobuf stay in service, codec, attend_*, health_check and what wires the gRPC server'
  rule '^wire/' '' '^(kernels/|server/|client/|tests/|prometheus/|hwy/|tbb/|oneapi/)|\.pb\.h$' \
    'wire/ knows the contract, no generated class and nobody who uses it' '^kernels/dtype\.h$'
  rule '^wire/(tensor_field|contract|copy_pool|chunk_cutter|region_protocol|unique_fd)\.(h|cc)$' '' "$wire|$wire_grpc" \
    'what the gRPC-free core includes is free of gRPC'
  rule '^server/' '^server/(metrics|process_metrics|metrics_endpoint)\.(h|cc)$' '^prometheus/' \
    'prometheus-cpp stays in metrics'
  rule '^server/' '^server/log\.(h|cc)$' '^spdlog/' 'spdlog stays in log'
  rule '^client/' '^client/load/' '^(kernels/|server/|tests/|prometheus/|hwy/|tbb/|oneapi/)' \
    'the client sees proto, wire, kernels/dtype.h and kernels/alibi.h only' \
    '^kernels/(dtype|alibi)\.h$'
  rule '^client/load/' '' '^(kernels/|server/|tests/|prometheus/|hwy/|tbb/|oneapi/)' \
    'the load generator sees the reference beside what the client sees' \
    '^kernels/((dtype|alibi|attention_problem)\.h$|reference/)'
  rule '^client/(attention_client|attention_types|cancellation|retry_policy|shared_region|device_region|tls_options)\.h$' '' \
    "$wire|^wire/|^client/(wire_codec|channel_pool|retrying_call|stream_call|tensor_loans|region_connection|region_map|region_placement)" \
    'public headers of the client show neither protobuf nor gRPC'
  rule '^client/' '^client/tls_validation\.cc$' '^openssl/' 'OpenSSL stays in client/tls_validation.cc'
  rule '^client/(call|examples|load|flags)/' '' "$wire|^wire/" 'the programs use the client library, not the wire'
  return "$found"
}

# The optional fifth argument: headers that are allowed although FORBIDDEN matches.
rule() {
  local where=$1 but=$2 forbidden=$3 why=$4 allowed=${5:-^$}
  local file line header
  while IFS=: read -r file line header; do
    [[ $file =~ $where ]] || continue
    if [[ -n $but && $file =~ $but ]]; then continue; fi
    if [[ $header =~ $forbidden && ! $header =~ $allowed ]]; then
      echo "$file:$line: includes $header: $why"
      found=1
    fi
  done <<<"$includes"
}

# file:line:header of every include below the current folder.
list_includes() {
  grep -rnE --include='*.h' --include='*.cc' --include='*.cu' --include='*.cuh' \
    '^[[:space:]]*#[[:space:]]*include[[:space:]]*["<]' kernels wire server client 2>/dev/null |
    sed -E 's/^([^:]*):([0-9]+):[^"<]*["<]([^">]*)[">].*$/\1:\2:\3/'
}

check() {
  cd "$1"
  includes=$(list_includes)
  if [[ -z $includes ]]; then
    echo "no sources under $1" >&2
    return 1
  fi
  check_tree
}

self_test() {
  local failures=0
  tree=$(mktemp -d)
  trap 'rm -rf "$tree"' EXIT
  expect() {  # expect pass|fail FILE HEADER
    rm -rf "$tree"/*
    mkdir -p "$tree/kernels" "$tree/wire" "$tree/server" "$tree/client" "$tree/$(dirname "$2")"
    echo '#include <vector>' >"$tree/kernels/plain.h"
    echo "#include \"$3\"" >>"$tree/$2"
    local result=pass
    (check "$tree") >/dev/null || result=fail
    if [[ $result != "$1" ]]; then
      echo "self-test: $2 including $3 should $1"
      failures=$((failures + 1))
    fi
  }
  expect pass kernels/a.cc absl/status/status.h
  expect fail kernels/a.cc flashbias/v1/attention.pb.h
  expect fail kernels/cpu/a.cc grpcpp/grpcpp.h
  expect fail kernels/a.h prometheus/counter.h
  expect fail kernels/a.cc server/batch.h
  expect fail kernels/a.h kernels/cpu/cpu_backend.h
  expect fail kernels/a.cc kernels/cpu/cpu_backend.h
  expect pass kernels/backend_factory.cc kernels/cpu/cpu_backend.h
  expect fail kernels/reference/a.cc kernels/skip_table.h
  expect fail kernels/a.cc oneapi/tbb/parallel_for.h
  expect pass kernels/cpu/a.cc oneapi/tbb/parallel_for.h
  expect pass kernels/cuda/a.cc cuda_runtime_api.h
  expect pass kernels/cuda/hopper/a.cuh cuda_fp16.h
  expect fail kernels/cpu/a.cc cuda_runtime_api.h
  expect fail kernels/a.h cuda.h
  expect fail server/a.cc cuda_runtime.h
  expect fail kernels/cuda/a.cc kernels/cpu/cpu_backend.h
  expect fail kernels/cpu/a.cc kernels/cuda/attention_plan.h
  expect pass kernels/cuda/hopper/a.cu kernels/cuda/hopper/ptx.cuh
  expect fail kernels/cuda/a.cc kernels/cuda/hopper/ptx.cuh
  expect fail kernels/cuda/a.h kernels/cuda/hopper/ptx.cuh
  expect pass server/batch.h kernels/attention_backend.h
  expect fail server/batch.h kernels/cpu/cpu_backend.h
  expect fail server/batch.h kernels/reference/reference_attention.h
  expect fail server/batch.h client/attention_client.h
  expect fail server/scheduler.cc flashbias/v1/attention.pb.h
  expect fail server/scheduler.cc grpcpp/grpcpp.h
  expect pass server/codec.cc flashbias/v1/attention.pb.h
  expect pass server/service.h grpcpp/grpcpp.h
  expect fail server/scheduler.cc prometheus/counter.h
  expect pass server/metrics.cc prometheus/counter.h
  expect pass server/process_metrics.cc prometheus/collectable.h
  expect fail server/scheduler.cc spdlog/spdlog.h
  expect pass server/attend_reader.cc wire/message_reader.h
  expect fail server/scheduler.cc wire/gather.h
  expect pass server/attend_validation.cc wire/contract.h
  expect pass server/attend_stream.cc grpcpp/grpcpp.h
  expect pass server/health_check.cc grpcpp/grpcpp.h
  expect fail server/stream_budget.h grpcpp/grpcpp.h
  expect fail server/attend_fields.h wire/chunk.h
  expect fail wire/chunk_cutter.h grpcpp/support/slice.h
  expect fail kernels/a.cc wire/contract.h
  expect pass wire/message_reader.h grpcpp/support/slice.h
  expect fail wire/tensor_field.h grpcpp/support/slice.h
  expect fail wire/a.cc flashbias/v1/attention.pb.h
  expect fail wire/a.cc kernels/attention_problem.h
  expect fail wire/a.cc server/batch.h
  expect fail client/attention_types.h wire/contract.h
  expect fail client/load/a.cc wire/contract.h
  expect pass client/wire_codec.h flashbias/v1/attention.pb.h
  expect pass client/attention_types.h kernels/dtype.h
  expect fail client/attention_types.h kernels/attention_problem.h
  expect fail client/attention_client.h flashbias/v1/attention.pb.h
  expect fail client/attention_client.h grpcpp/grpcpp.h
  expect fail client/a.cc server/batch.h
  expect fail client/tls_options.h grpcpp/grpcpp.h
  expect fail client/channel_pool.cc openssl/pem.h
  expect pass client/tls_validation.cc openssl/pem.h
  expect fail client/shared_region.h wire/unique_fd.h
  expect fail wire/region_protocol.h grpcpp/grpcpp.h
  expect pass client/load/verifier.h kernels/reference/reference_attention.h
  expect fail client/call/a.cc kernels/reference/reference_attention.h
  expect fail client/examples/train_alibi_layer/a.cc kernels/reference/reference_attention.h
  expect fail client/examples/train_alibi_layer/a.cc wire/contract.h
  expect pass client/examples/train_alibi_layer/a.cc client/attention_client.h
  expect fail client/load/a.cc kernels/skip_table.h
  expect fail client/load/a.cc grpcpp/grpcpp.h
  return "$((failures > 0))"
}

if [[ ${1:-} == --self-test ]]; then
  self_test
else
  (check "${1:-$(dirname "${BASH_SOURCE[0]}")/..}")
fi
