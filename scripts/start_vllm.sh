#!/usr/bin/env bash
# Serve a language model on http://localhost:8000/v1 for scripts/generate_training_data.py.
#
#     scripts/start_vllm.sh PRESET [--dry-run] [more arguments of `vllm serve`]
#
# Environment variables: PORT (default 8000), and TP, the number of GPUs that share the weights. The presets' own
# numbers are for GPUs with 80 GB.
set -euo pipefail

case ${1-} in
    qwen72b)  model=Qwen/Qwen2.5-72B-Instruct tp=4 ;;
    qwen32b)  model=Qwen/Qwen2.5-32B-Instruct tp=2 ;;
    qwen14b)  model=Qwen/Qwen2.5-14B-Instruct tp=1 ;;
    llama70b) model=meta-llama/Llama-3.3-70B-Instruct tp=4 ;;
    llama8b)  model=meta-llama/Llama-3.1-8B-Instruct tp=1 ;;
    qwen_vl)  model=Qwen/Qwen2-VL-7B-Instruct tp=1 ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit ;;
    *) echo "error: name a preset: qwen72b, qwen32b, qwen14b, llama70b, llama8b or qwen_vl" >&2; exit 2 ;;
esac
shift
dry_run=no
if [ "${1-}" = --dry-run ]; then dry_run=yes; shift; fi

# 8192 tokens: enough for the longest request, 50 instructions, and its answer
command=(vllm serve "$model" --port "${PORT:-8000}" --tensor-parallel-size "${TP:-$tp}" --max-model-len 8192 "$@")
if [ $dry_run = yes ]; then
    printf %q "${command[0]}"; printf ' %q' "${command[@]:1}"; echo
    exit
fi
if ! command -v vllm > /dev/null; then
    echo "error: vllm is not installed: pip install '.[vllm]'" >&2
    exit 2
fi
exec "${command[@]}"
