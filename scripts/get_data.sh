#!/usr/bin/env bash
# Fetches public data sets into data/, which git ignores, at pinned commits and with checksums:
#   scripts/get_data.sh bccd|bccd_coco|bccd_voc|tiny_coco|aerial_cars|all …
# Needs Python with Pillow: that of `make setup`, or PYTHON=…
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" > /dev/null || python=python3
exec "$python" "$root/scripts/get_data.py" "$@"
