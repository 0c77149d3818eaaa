#!/usr/bin/env bash
# Starts the envoy with the settings of envoy.yaml; further arguments win over them (--help lists them).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
exec "$here/../.venv/bin/python" -m federation.envoy --config "$here/envoy.yaml" "$@"
