#!/usr/bin/env bash
# Turn working copies txt/NAME.py into notebooks, export them, run them keeping their outputs, and clean.
# Usage: bash tools/nb.sh 02_catalog [06_data ...]
set -euo pipefail
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"   # idle threads sleep, so that several runs share the processors
cd "$(dirname "$0")/.."
for name in "$@"; do
    jupytext --to ipynb --update "txt/$name.py" -o "nbs/$name.ipynb" -q
    nbdev-export --path "nbs/$name.ipynb"
    nbdev-test "nbs/$name.ipynb" --save --n-workers 1
    nbdev-clean --fname "nbs/$name.ipynb"
done
ruff check -q --select F821,F811 visionlab
