#!/usr/bin/env bash
# Load exported students in transformers 4.57.6 and compare their logits with those of the transformers here.
#
#   scripts/transformers4_check.sh [STUDENT...]   folders that lrc convert or lrc export wrote; without arguments a tiny
#                                                 random student of each of the 22 model types, five kinds of rope
#
# transformers 4 gets an environment of its own (370 MB, a minute) in
# $LRC_TRANSFORMERS4_VENV, by default ~/.cache/lrc/transformers4. torch is not installed again: the environment links to
# that of $PYTHON, so both have one Python and one torch.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${LRC_TRANSFORMERS4_VENV:-$HOME/.cache/lrc/transformers4}
python=${PYTHON:-.venv/bin/python}
check=scripts/transformers4_check.py

site_of() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

if [[ ! -e $venv/.ready ]]; then
    echo "making $venv" >&2
    "$python" -m venv --clear "$venv"
    # what torch imports comes after the link, so that pip sees a torch
    site=$(site_of "$venv/bin/python")
    for part in "$(site_of "$python")"/{torch,torch-*.dist-info,torchgen,functorch,nvidia,cuda,triton}; do
        [[ ! -e $part ]] || ln -s "$part" "$site/" # the last three are of CUDA builds
    done
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        "transformers==4.57.6" sympy networkx jinja2
    touch "$venv/.ready"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore
PYTHONPATH=. "$python" "$check" --make "$work" "$@"
"$venv/bin/python" "$check" "$work"
