#!/usr/bin/env bash
# Edit notebooks as text: txt/NAME.py is the working copy of nbs/NAME.ipynb, and is not committed.
#   bash tools/nb.sh --open catalog/05_folders [...]    notebook → text
#   bash tools/nb.sh catalog/05_folders [...]           text → notebook, exported, run keeping its outputs, and cleaned
set -euo pipefail
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"   # idle threads sleep, so that several runs share the processors
cd "$(dirname "$0")/.."

open() {
    if [ "txt/$1.py" -nt "nbs/$1.ipynb" ]; then
        echo "txt/$1.py is newer than its notebook: save it with 'bash tools/nb.sh $1', or delete it" >&2
        return 1
    fi
    mkdir -p "$(dirname "txt/$1")"
    jupytext --to py:percent "nbs/$1.ipynb" -o "txt/$1.py" -q
    touch -r "nbs/$1.ipynb" "txt/$1.py"         # newer again once edited
}

save() {
    jupytext --to ipynb --update "txt/$1.py" -o "nbs/$1.ipynb" -q      # --update keeps ids and outputs of cells that did not change
    nbdev-export --path "nbs/$1.ipynb"
    nbdev-test "nbs/$1.ipynb" --save --n-workers 1
    nbdev-clean --fname "nbs/$1.ipynb"
}

action=save
if [ "${1-}" = --open ]; then action=open; shift; fi
for name in "$@"; do "$action" "$name"; done
[ "$action" = open ] || ruff check -q --select F821,F811 visionlab
