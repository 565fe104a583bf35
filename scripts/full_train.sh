#!/usr/bin/env bash
# Train in full: a robot arm, a can, behavior cloning and 100,000 steps of PPO.
#     scripts/full_train.sh [key=value...]       MODEL= scripts/full_train.sh      with Qwen2-VL-2B, or MODEL=vlm_7b
set -euo pipefail
case " $* " in *" --help "* | *" -h "*) sed -n '2,3s/^# *//p' "$0"; exit ;; esac
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] && default=.venv/bin/python || default=python
exec "${PYTHON:-$default}" train_vlm.py ${MODEL-vlm_tiny} robosuite_can robosuite_full train.output_dir:=checkpoints/full \
    log.project:=vlm-robot-rl log.run_name:="full_$(date +%Y%m%d_%H%M%S)" "$@"
