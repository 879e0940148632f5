#!/usr/bin/env bash
# LLaMA-Factory 0.9.5 in an environment of its own: it asks for transformers <= 5.6.0 and TRL <= 0.24, lrc sft for newer.
#   scripts/llamafactory_env.sh [FOLDER]     makes FOLDER (.venv-llamafactory), about 1.6 GB; then
#   .venv-llamafactory/bin/llamafactory-cli train configs/llama_factory/llama3-sft-full.yaml
# PYTHON=... names another Python 3.11 to 3.13.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.venv-llamafactory}

"${PYTHON:-python3.11}" -m venv --clear "$venv"
# torch first, with what its build for this machine needs: the lock names no CUDA package.
"$venv/bin/python" -m pip install --disable-pip-version-check --no-input --quiet \
    "$(grep '^torch==' requirements.llamafactory.lock)"
# The lock names all else, so nothing is resolved: LLaMA-Factory's own list has a web page, audio and video besides.
"$venv/bin/python" -m pip install --disable-pip-version-check --no-input --quiet --no-deps \
    -r requirements.llamafactory.lock

# It imports torchaudio at the start, also to train on text alone, and torchaudio has no release for this torch. This
# stands in its place and says so if anything wants to use it.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/torchaudio"
cat >"$site/torchaudio/__init__.py" <<'PYTHON'
"""Not torchaudio: an empty stand-in, since LLaMA-Factory imports it to train on text too. It can't read audio."""

__version__ = "0.0.0"


def __getattr__(name: str) -> object:
    raise AttributeError(f"torchaudio is a stand-in here (scripts/llamafactory_env.sh) and has no {name!r}")
PYTHON
"$venv/bin/llamafactory-cli" version
echo "LLaMA-Factory is in $venv/bin/llamafactory-cli"
