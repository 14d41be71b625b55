# Everything starts here: each target sets up what it needs, and a second call reuses it.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
export TORCH_EXTENSIONS_DIR ?= $(abspath $(VENV))/torch_extensions

# An environment of packages that the project's own must not hold: what it lacks is found there. Recipe: $(call ...,FOLDER).
define environment_over_the_projects
	test -x $(1)/bin/python || $(VENV)/bin/python -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	$(VENV)/bin/python -c "import site; print(site.getsitepackages()[0])" > \
		$$($(1)/bin/python -c "import site; print(site.getsitepackages()[0])")/project.pth
	touch $@
endef

.PHONY: demo test bench cluster stores trackers env torchvision-environment lint format kernels apex tensorboard clean

demo: env
	$(VENV)/bin/python -m unimo_ds.demo

# Files go whole to one of two processes: what a file sets up is made once.
test: env lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile

# Every benchmark in its small version, beside its peers: rewrites benchmarks/rows/*.json and the pictures of docs/performance.md.
# A quarter of an hour on two free cores, 10 GB of memory. The same scripts take --device cuda (docs/performance.md).
PEERS := .venv-peers
BENCH := OMP_NUM_THREADS=1 PYTHONPATH=.
bench: env $(PEERS)/.installed
	$(BENCH) $(VENV)/bin/python -m benchmarks.balance
	$(BENCH) $(VENV)/bin/python -m benchmarks.hard_negatives
	$(BENCH) $(VENV)/bin/torchrun --standalone --nproc-per-node 2 -m benchmarks.zero
	$(BENCH) $(PEERS)/bin/python -m benchmarks.loader --folder $(PEERS)/samples
	$(BENCH) $(VENV)/bin/python -m benchmarks.step --layers 2
	$(BENCH) $(VENV)/bin/python -m benchmarks.plots

$(PEERS)/.installed: benchmarks/requirements.txt
	$(call environment_over_the_projects,$(PEERS))

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
	rm -rf runs/kills
	$(VENV)/bin/python -m tests.cluster.kills --kills 200 --run-dir runs/kills

# Data in object stores, by the clients of users from servers of the protocols on this machine.
STORES := .venv-stores
stores: $(STORES)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=. $(STORES)/bin/python -m pytest tests/data/stores

$(STORES)/.installed: requirements-stores.txt | env
	$(call environment_over_the_projects,$(STORES))

# Weights & Biases (offline) and trackio: real runs, read back by the libraries' own means.
TRACKERS := .venv-trackers
trackers: $(TRACKERS)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=. $(TRACKERS)/bin/python -m pytest tests/engine/trackers

$(TRACKERS)/.installed: requirements-trackers.txt | env
	$(call environment_over_the_projects,$(TRACKERS))

env: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing torch, DeepSpeed and the other packages of requirements.txt into $(VENV): some minutes"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# make kernels ARCH=sm_70,sm_90
ARCH ?= sm_90
kernels: env
	$(VENV)/bin/python -m unimo_ds kernels build --arch $(ARCH)

# An environment with torchvision beside the torch it was built for: tests/data/vision/detectors runs its networks there.
torchvision-environment:
	test -x .venv-torchvision/bin/python || $(PYTHON) -m venv .venv-torchvision
	.venv-torchvision/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-torchvision.txt

# NVIDIA's apex, for optimizer.name=apex_adam or apex_lamb: make apex APEX=FOLDER, a clone of https://github.com/NVIDIA/apex at
# APEX_COMMIT. Needs nvcc of the CUDA version that torch was built with.
APEX ?= apex
APEX_COMMIT := 6424da3b4faa6c8f062da4a48c424fff3f02d42d
apex: env
	@test -f "$(APEX)/apex/optimizers/fused_lamb.py" || { echo "error: '$(APEX)' holds no source of NVIDIA's apex; clone \
	https://github.com/NVIDIA/apex and name its folder: make apex APEX=FOLDER"; exit 2; }
	@test "$$(git -C "$(APEX)" rev-parse HEAD)" = $(APEX_COMMIT) || { echo "error: '$(APEX)' is not at the commit that is known to fit; \
	git -C '$(APEX)' checkout $(APEX_COMMIT), or name another one: make apex APEX=FOLDER APEX_COMMIT=HASH"; exit 2; }
	@$(VENV)/bin/python -c "import sys, torch; sys.exit(torch.version.cuda is None)" || { echo "error: torch here is built without \
	CUDA; install a CUDA build of it first (docs/install.md)"; exit 2; }
	APEX_CPP_EXT=1 APEX_CUDA_EXT=1 $(VENV)/bin/python -m pip install -v --no-build-isolation --no-deps "$(APEX)"

tensorboard: env
	$(VENV)/bin/tensorboard --logdir runs

clean:
	rm -rf $(VENV) $(PEERS) $(STORES) $(TRACKERS) .venv-torchvision runs demo_data build *.egg-info .pytest_cache .mypy_cache .ruff_cache
