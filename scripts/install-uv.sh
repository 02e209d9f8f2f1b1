#!/bin/sh
# Put uv into a folder of the project, with nothing but a Python: install-uv.sh PYTHON FOLDER
set -eu
python=$1
folder=$2

fail() {
    echo "continuum: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "no $python: install Python 3.11 or newer (or set PYTHON=...)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old: Python 3.11 or newer is needed (set PYTHON=...)"

echo "installing uv into $folder"
if "$python" -m venv "$folder" >/dev/null 2>&1; then
    "$folder/bin/python" -m pip install --quiet uv
elif "$python" -m pip --version >/dev/null 2>&1; then
    # Debian's python3 without python3-venv
    rm -rf "$folder"
    "$python" -m pip install --quiet --target "$folder/lib" uv
    mkdir -p "$folder/bin"
    ln -sf ../lib/bin/uv "$folder/bin/uv"
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3-venv >/dev/null
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet uv
else
    fail "neither uv nor pip nor venv: install uv (https://docs.astral.sh/uv/) or your system's python3-venv"
fi
