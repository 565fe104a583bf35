# One virtual environment, made once for each folder and each state of the dependency files.
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed-$(shell (pwd; cat pyproject.toml requirements.txt) | cksum | cut -d' ' -f1)
ARM := $(STAMP)-arm-$(shell cksum < requirements-robosuite.txt | cut -d' ' -f1)
# torch's idle OpenMP threads spin by default, which slows down everything else on the machine
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup robosuite train test test-slow lint bench gpu clean

setup: $(STAMP)

$(STAMP):
	python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r requirements.txt
	$(PY) -m pip install --quiet --no-deps -e .
	rm -f $(VENV)/.installed-*
	touch $(STAMP)

robosuite: $(ARM)

$(ARM): $(STAMP)
	$(PY) -m pip install --quiet -r requirements-robosuite.txt
	$(PY) -m simulator.robosuite.rendering
	touch $(ARM)

train: setup
	$(PY) train_vlm.py vlm_tiny
	$(PY) inference.py --goal "입자들을 왼쪽으로 이동시켜" --model checkpoints/vlm_best.pt --seed 1 --output checkpoints/rollout.gif

test: setup
	$(PY) -m pytest

test-slow: setup
	$(PY) -m pytest -m slow

lint: setup
	$(PY) -m ruff check .

bench: setup
	$(PY) scripts/benchmark.py simulator
	$(PY) scripts/benchmark.py policy
	$(PY) scripts/benchmark.py ppo

# on a bare machine without a network: make gpu WHEELS=folder installs what lies there first
gpu: PY := $(or $(wildcard $(PY)),python3)
gpu:
	$(if $(WHEELS),$(PY) -m pip install --quiet --no-index --no-deps $(WHEELS)/*.whl)
	PYTHONPATH=. $(PY) scripts/measure_gpu.py --json gpu.json

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
