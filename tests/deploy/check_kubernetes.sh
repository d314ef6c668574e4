#!/usr/bin/env bash
# Holds deploy/kubernetes against kustomize, the schemas of its objects, promtool and a real server; no cluster.
#
#   tests/deploy/check_kubernetes.sh [--venv FOLDER] [BUILD_FOLDER]               default: build/release
#   tests/deploy/check_kubernetes.sh [--venv FOLDER] --self-test [BUILD_FOLDER]   breaks the manifests one by one:
#                                                                                 each fault must be seen
#
# BUILD_FOLDER holds bin/flashbias-server. The packages of requirements.txt come from PyPI into a temporary
# folder, or into FOLDER and stay there. deploy/install_packages.sh --kubernetes installs the rest.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)

say() { echo "==> $*"; }
fail() {
  echo "check_kubernetes.sh: $*" >&2
  exit 1
}

venv=
self_test=()
build=
while (($# > 0)); do
  case "$1" in
    --venv)
      venv=${2:?--venv needs a folder}
      shift
      ;;
    --self-test) self_test=(--self-test) ;;
    -*)
      echo "usage: $0 [--venv FOLDER] [--self-test] [BUILD_FOLDER]" >&2
      exit 2
      ;;
    *) build=$1 ;;
  esac
  shift
done

for tool in promtool python3; do
  command -v "$tool" >/dev/null || fail "$tool is missing: deploy/install_packages.sh --kubernetes"
done
server=${build:-$repo/build/release}/bin/flashbias-server
[[ -x $server ]] || fail "there is no $server: build it, or name its build folder"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

venv=${venv:-$work/venv}
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
  say "Python packages"
  python3 -m venv "$venv" || fail "no venv: deploy/install_packages.sh --kubernetes"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/requirements.txt"
fi

if ((${#self_test[@]} == 0)); then
  say "prometheus_rules.yaml is current"
  "$repo/deploy/kubernetes/components/monitoring/generate.sh" --check
fi
say "Manifests"
export PATH=$venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1
python "$here/check_kubernetes.py" "${self_test[@]}" "$repo" "$server"
