#!/usr/bin/env bash
# Starts the director with the settings of director.yaml; further arguments win over them (--help lists them).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
exec "$here/../.venv/bin/python" -m federation.director --config "$here/director.yaml" "$@"
