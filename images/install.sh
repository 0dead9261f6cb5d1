#!/usr/bin/env bash
# Lays the program and the overlay into a root file system: images/install.sh ROOT   (ROOT is / in an image build)
#
# The target needs Python 3.11 or newer at /usr/bin/python3; everything else goes to ROOT/usr/lib/kairos-p2p, pinned by
# uv.lock. Needs uv on PATH, or Python's venv module and a network.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: images/install.sh ROOT" >&2
    exit 2
fi
root=$(realpath -m "$1")
source=$(cd "$(dirname "$0")/.." && pwd)
target=$root/usr/lib/kairos-p2p
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    /usr/bin/python3 -m venv "$work/uv" || { echo "install.sh: put uv on PATH, or install Python's venv module" >&2; exit 1; }
    "$work/uv/bin/pip" install --quiet --disable-pip-version-check uv
    uv=$work/uv/bin/uv
fi

rm -rf "$target"
mkdir -p "$(dirname "$target")"
# relocatable: it is built under ROOT and runs under /
"$uv" venv --quiet --relocatable --python /usr/bin/python3 "$target"
cd "$source"
UV_PROJECT_ENVIRONMENT=$target "$uv" sync --quiet --locked --no-dev --no-editable --compile-bytecode --link-mode copy

cp -a "$source/overlay/." "$root/"
echo "kairos-p2p is in $target; the plugin is $root/system/providers/agent-provider-kairos-p2p"
