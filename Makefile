# vdisk: "make" lists what there is to do. Each target sets up all that it needs.

VENV ?= .venv
PYTHON := $(VENV)/bin/python
VDISK := $(VENV)/bin/vdisk
JOBS ?= 2
# Further arguments for pytest: make test PYTEST_ARGS="-k qcow2 -x"
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup peers run test check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml scripts/setup-venv.sh
	@scripts/setup-venv.sh $(VENV)

setup: $(VENV)/.ready ## a virtual environment in .venv with vdisk and the tools of its tests

peers: ## the programs that vdisk is checked against (qemu-img, libyal, 7z, ...), by apt, as root or with sudo
	@scripts/setup-peers.sh

run: setup ## convert samples/hello.vmdk to qcow2, show what came out
	@rm -rf build/run && mkdir -p build/run
	$(VDISK) convert samples/hello.vmdk build/run/hello.qcow2
	$(VDISK) info build/run/hello.qcow2

check: setup ## ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

# With VDISK_REQUIRE_PEERS=1 (CI) a peer that is missing fails its tests; without, they skip and say so.
test: setup ## ruff, mypy and the whole test suite; installs the peers where it may
	@scripts/setup-peers.sh --if-allowed
	@$(MAKE) --no-print-directory check
	$(PYTHON) -m pytest -n $(JOBS) $(PYTEST_ARGS)

clean: ## remove the virtual environment and what was built here
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
