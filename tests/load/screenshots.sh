#!/usr/bin/env bash
# Pictures of an HTML report of flashbias-load, to be looked at: light and dark, wide and narrow.
#
#   tests/load/screenshots.sh REPORT.html OUTPUT_FOLDER
#
# Writes NAME-{light,dark}-{1280,420}.png, each of the whole page. Needs chromium (the package of
# that name) and python3.
set -euo pipefail

if [[ $# -ne 2 || ! -r $1 ]]; then
  echo "usage: $0 REPORT.html OUTPUT_FOLDER" >&2
  exit 2
fi
if ! chromium=$(command -v chromium || command -v chromium-browser); then
  echo "$0: needs chromium; Debian has it in the package chromium" >&2
  exit 2
fi
report=$(realpath "$1")
folder=$2
name=$(basename "$report" .html)
mkdir -p "$folder"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

browse() {
  "$chromium" --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$scratch" \
    "$@" 2>"$scratch/log" || {
    cat "$scratch/log" >&2
    return 1
  }
}

# The height of the page at a width. Headless Chromium makes no window narrower than 500 pixels, so
# the page is looked at in a frame of that width.
frame() {
  cat <<EOF >"$scratch/frame.html"
<!DOCTYPE html><meta charset="utf-8"/><style>html,body{margin:0}iframe{border:0;display:block}</style>
<iframe id="f" src="file://$report" width="$1" height="${2:-100}"></iframe>
<script>f.onload = () => { document.title = f.contentDocument.documentElement.scrollHeight + " " +
  f.contentDocument.documentElement.scrollWidth; }</script>
EOF
}

for width in 1280 420; do
  frame "$width"
  size=$(browse --allow-file-access-from-files --virtual-time-budget=3000 --window-size="$width,100" \
    --dump-dom "file://$scratch/frame.html" | sed -n 's/.*<title>\([0-9 ]*\)<.*/\1/p')
  read -r height needed <<<"$size"
  if [[ $needed -gt $width ]]; then
    echo "$name: $needed pixels wide on a screen of $width" >&2
    exit 1
  fi
  frame "$width" "$height"
  # Blink numbers the colour schemes that a reader may prefer.
  for scheme in dark:0 light:1; do
    picture=$folder/$name-${scheme%:*}-$width.png
    browse --allow-file-access-from-files --virtual-time-budget=3000 --window-size="$width,$height" \
      --blink-settings=preferredColorScheme="${scheme#*:}" \
      --screenshot="$picture" "file://$scratch/frame.html" >/dev/null
    echo "$picture"
  done
done
