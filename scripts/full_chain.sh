#!/usr/bin/env bash
# From a teacher to a model that answers in llama.cpp, in one go: train at half width, convert, fine-tune on chats,
# score on benchmarks, write GGUF files and hold them against transformers.
#
#   scripts/full_chain.sh        SmolLM2-135M-Instruct at hidden size 288, on a CPU; a line when a stage begins, one when it ends
#
# Needs the extras data, demo, eval, export and sft. What it fetches comes from the Python package index alone.
# Settings, from the environment:
#   RUN=runs/full_chain          where everything goes; delete it to start anew
#   TEACHER, HIDDEN=288          another teacher (folder or hub id) and width
#   TRAIN_STEPS, TRAIN_ARGS      steps of the demo's recipe and more changes to it, section.key=value
#   SFT_STEPS=20, SFT_ARGS       steps on the chats and more changes
#   TASKS, EVAL_ITEMS=20         benchmarks (all sets of the wheel but SciQ, whose questions it was tuned on), items of each
#   MMLU_ITEMS=2                 items of each of MMLU's 57 subjects, which is how its limit counts; 0 leaves it out
#   GGUF_TYPES="f32 f16 q8_0"    files that are written
#   PROMPT                       what the last file is asked
#   PYTHON=.venv/bin/python
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
run=${RUN:-runs/full_chain}
teacher=${TEACHER:-embedded:smollm2-135m-instruct}
tasks=${TASKS:-arc_easy,arc_challenge,commonsense_qa,piqa,winogrande,hellaswag,boolq}
mmlu_items=${MMLU_ITEMS:-2}
read -ra types <<<"${GGUF_TYPES:-f32 f16 q8_0}"
read -ra train_args <<<"${TRAIN_STEPS:+train.max_steps=$TRAIN_STEPS} ${TRAIN_ARGS:-}"
read -ra sft_args <<<"${SFT_ARGS:-}"
recipe=configs/recipes/demo.yaml
logs=$run/logs
common=("run=$run" "teacher=$teacher" "student.hidden_size=${HIDDEN:-288}")
stages=$((5 + (mmlu_items > 0) + ${#types[@]} + 1))
number=0
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$logs"

# stage NAME COMMAND...: a line when it begins, and one with what it took and its last line; its output goes to a log.
stage() {
    local name=$1 began=$SECONDS
    shift
    number=$((number + 1))
    printf '[%d/%d] %-10s ...      %s\n' "$number" "$stages" "$name" "$logs/$name.log"
    if "$@" >"$logs/$name.log" 2>&1; then
        printf '[%d/%d] %-10s %5d s  %s\n' "$number" "$stages" "$name" $((SECONDS - began)) \
            "$(tail -n 1 "$logs/$name.log" | cut -c 1-80)"
    else
        printf '[%d/%d] %-10s failed after %d s; the end of %s:\n' \
            "$number" "$stages" "$name" $((SECONDS - began)) "$logs/$name.log" >&2
        tail -n 20 "$logs/$name.log" >&2
        exit 1
    fi
}

lrc() { "$python" -m lrc "$@"; }

stage train lrc train "$recipe" "${common[@]}" "${train_args[@]}" --overwrite
checkpoint=$(printf '%s\n' "$run"/train/checkpoint-* | sort --version-sort | tail -n 1)
stage convert lrc convert "$checkpoint" "$run/convert" --overwrite
stage chats "$python" scripts/sciq_chats.py "$run/chats"
stage sft lrc sft "$recipe" "${common[@]}" "sft.data=$run/chats/train.jsonl" \
    "sft.held_out=$run/chats/held_out.jsonl" sft.held_out_chats=16 sft.sequence_length=512 \
    sft.batch_size=2 sft.gradient_accumulation_steps=2 sft.teacher_kl=1.0 sft.log_steps=1 \
    "sft.max_steps=${SFT_STEPS:-20}" "${sft_args[@]}" --overwrite
stage evaluate lrc evaluate "$run/sft" --teacher "$teacher" --tasks "$tasks" --data-dir embedded:benchmarks \
    --limit "${EVAL_ITEMS:-20}" --out "$run/evaluate" --overwrite
scored=(evaluate)
if ((mmlu_items > 0)); then
    stage mmlu lrc evaluate "$run/sft" --teacher "$teacher" --tasks mmlu --data-dir embedded:benchmarks \
        --limit "$mmlu_items" --out "$run/mmlu" --overwrite
    scored+=(mmlu)
fi
for type in "${types[@]}"; do
    stage "gguf-$type" lrc export "$run/sft" "$run/gguf-$type" --as gguf --type "$type" --overwrite
done
stage answer "$python" scripts/ask_gguf.py "$run/gguf-${types[-1]}"/*.gguf "${PROMPT:-What is the capital of France?}"

echo
for name in "${scored[@]}"; do
    sed -n '/^tasks/,/^the student/{/^the student/d;p}' "$logs/$name.log"
done
for type in "${types[@]}"; do
    grep -h 'llama.cpp against' "$logs/gguf-$type.log" | sed "s/^/$type: /"
done
echo "in llama.cpp (${types[-1]}): $(cat "$logs/answer.log")"
