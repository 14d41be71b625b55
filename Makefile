# Everything starts here: each target sets up what it needs, and a second call reuses it.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
export TORCH_EXTENSIONS_DIR ?= $(abspath $(VENV))/torch_extensions

.PHONY: demo test bench cluster env lint format kernels tensorboard clean

demo: env
	$(VENV)/bin/python -m unimo_ds.demo

test: env lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

# Every benchmark in its small version, beside its peers: rewrites benchmarks/rows/*.json and the pictures of docs/performance.md.
# About an hour on two free cores. The same scripts take --device cuda (docs/performance.md).
PEERS := .venv-peers
BENCH := OMP_NUM_THREADS=1 PYTHONPATH=.
bench: env $(PEERS)/.installed
	$(BENCH) $(VENV)/bin/python -m benchmarks.balance
	$(BENCH) $(VENV)/bin/python -m benchmarks.hard_negatives
	$(BENCH) $(VENV)/bin/torchrun --standalone --nproc-per-node 2 -m benchmarks.zero
	$(BENCH) $(PEERS)/bin/python -m benchmarks.loader --folder $(PEERS)/samples
	$(BENCH) $(VENV)/bin/python -m benchmarks.step
	$(BENCH) $(VENV)/bin/python -m benchmarks.plots

$(PEERS)/.installed: benchmarks/requirements.txt
	test -x $(PEERS)/bin/python || $(VENV)/bin/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements.txt
	$(VENV)/bin/python -c "import site; print(site.getsitepackages()[0])" > \
		$$($(PEERS)/bin/python -c "import site; print(site.getsitepackages()[0])")/project.pth
	touch $@

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

tensorboard: env
	$(VENV)/bin/tensorboard --logdir runs

clean:
	rm -rf $(VENV) $(PEERS) runs demo_data build *.egg-info .pytest_cache .mypy_cache .ruff_cache
