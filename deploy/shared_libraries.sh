#!/usr/bin/env bash
# Prints the paths of the shared libraries that programs load, save those of the C library: they, the
# loader and the driver must be those of the machine where a program runs.
#
#   deploy/shared_libraries.sh PROGRAM...
set -euo pipefail
if [[ $# -eq 0 ]]; then
  echo "usage: $0 PROGRAM..." >&2
  exit 2
fi
loaded=$(ldd "$@")
if missing=$(grep 'not found' <<<"$loaded"); then
  echo "$0: $missing" >&2
  exit 1
fi
awk '$2 == "=>" && $3 ~ /^\// {print $3}' <<<"$loaded" | sort -u |
  grep -vE '/(libc|libm|libpthread|libdl|librt|libresolv|libutil|libanl|libcuda)\.so'
