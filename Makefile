# Everything starts here: each target sets up what it needs, and a second call reuses it.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
export TORCH_EXTENSIONS_DIR ?= $(abspath $(VENV))/torch_extensions

.PHONY: demo test cluster env torchvision-environment lint format kernels tensorboard clean

demo: env
	$(VENV)/bin/python -m unimo_ds.demo

test: env lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

lint: env
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: env
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# base.sh and large.sh on a real Slurm of five and nine nodes on this machine (root, Debian; installs Slurm where it is missing),
# and a run that is killed 200 times.
cluster: env
	tests/cluster/mini-slurm.sh install
	$(VENV)/bin/python -m tests.cluster.rehearsal
	$(VENV)/bin/python -m tests.cluster.kills --kills 200 --run-dir runs/kills

env: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# make kernels ARCH=sm_70,sm_90
ARCH ?= sm_90
kernels: env
	$(VENV)/bin/python -m unimo_ds kernels build --arch $(ARCH)

# An environment with torchvision beside the torch it was built for: tests/data/detectors runs its networks there.
torchvision-environment:
	test -x .venv-torchvision/bin/python || $(PYTHON) -m venv .venv-torchvision
	.venv-torchvision/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-torchvision.txt

tensorboard: env
	$(VENV)/bin/tensorboard --logdir runs

clean:
	rm -rf $(VENV) runs demo_data build *.egg-info .pytest_cache .mypy_cache .ruff_cache
