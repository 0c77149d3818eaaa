#!/usr/bin/env bash
# Makes .venv with the pinned packages. Finds a Python 3.11 also where it is not the default one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usable() { "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python \
        /usr/bin/python3.11 /usr/local/bin/python3.11 /opt/homebrew/bin/python3.11 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.11*/bin/python3.11 \
        "$HOME"/.local/share/uv/python/cpython-3.11*/bin/python3.11 \
        "$HOME"/{miniconda3,anaconda3,miniforge3}/envs/*/bin/python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 && usable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

if ! python="$(find_python)"; then
    echo "This project needs Python 3.11 with its venv module and found none; README.md says how to get it (or set PYTHON=/path/to/python3.11)." >&2
    exit 1
fi

rm -f .venv/ready
if ! usable .venv/bin/python 2>/dev/null; then
    echo "Setting up .venv with $("$python" --version) ($python)"
    "$python" -m venv --clear .venv
fi
echo "Installing the packages of constraints.txt; this is done once and takes some minutes"
.venv/bin/python -m pip install --quiet --disable-pip-version-check "pip==25.3"
.venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar "${PIP_PROGRESS:-on}" \
    --constraint constraints.txt --editable ".[dev,onnx]" |
    awk -v tty="$([ -t 1 ] && echo 1 || echo 0)" '
        /^Collecting /   { n++; if (tty) printf "\r  %d packages looked up: %-40s", n, $2; else if (n % 50 == 0) print "  " n " packages looked up" }
        /^Installing /   { printf "%s  installing %d packages\n", tty ? "\n" : "", n }
        /^Successfully installed / { print "  done" }
        { fflush() }'
touch .venv/ready
