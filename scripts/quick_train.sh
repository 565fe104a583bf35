#!/usr/bin/env bash
# Check that training runs: a robot arm, a can, a little behavior cloning and 2,000 steps of PPO. Ten minutes on two cores.
#     scripts/quick_train.sh [key=value...]       MODEL= scripts/quick_train.sh      with Qwen2-VL-2B, or MODEL=vlm_7b
set -euo pipefail
case " $* " in *" --help "* | *" -h "*) sed -n '2,3s/^# *//p' "$0"; exit ;; esac
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] && default=.venv/bin/python || default=python
exec "${PYTHON:-$default}" train_vlm.py ${MODEL-vlm_tiny} robosuite_can robosuite_quick train.output_dir:=checkpoints/quick \
    log.project:=vlm-robot-rl-test log.run_name:="quick_test_$(date +%Y%m%d_%H%M%S)" "$@"
