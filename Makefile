# vdisk: "make" lists what there is to do. Each target sets up all that it needs.

VENV ?= .venv
PYTHON := $(VENV)/bin/python
VDISK := $(VENV)/bin/vdisk
JOBS ?= 2
# Further arguments for pytest: make test PYTEST_ARGS="-k qcow2 -x"
PYTEST_ARGS ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup peers run test check bench bench-quick fuzz fuzz-guided torture lab lab-quick lab-speed clean

# Where the lab, the Debian disks and their conversions are kept; about 8 GB when all of it has been used.
CACHE := $(or $(VDISK_CACHE),$(HOME)/.cache/vdisk)
LAB := $(PYTHON) scripts/lab/run.py --images $(CACHE)/lab-images
LAB_PYTEST := python3 -m pytest -v

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml scripts/setup-venv.sh
	@scripts/setup-venv.sh $(VENV)

setup: $(VENV)/.ready ## a virtual environment in .venv with vdisk and the tools of its tests

peers: ## the programs that vdisk is checked against (qemu-img, libyal, 7z, ...), by apt, as root or with sudo
	@scripts/setup-peers.sh

run: setup ## convert samples/hello.vmdk to qcow2, show what came out, boot it
	@rm -rf build/run && mkdir -p build/run
	$(VDISK) convert samples/hello.vmdk build/run/hello.qcow2
	$(VDISK) info build/run/hello.qcow2
	@test -w /dev/kvm || scripts/setup-peers.sh --if-allowed  # without KVM, QEMU boots it
	$(VDISK) boot --expect "Hello from vdisk" build/run/hello.qcow2

check: setup ## ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

# With VDISK_REQUIRE_PEERS=1 (CI) a peer that is missing fails its tests; without, they skip and say so.
test: setup ## ruff, mypy and the whole test suite; installs the peers where it may
	@scripts/setup-peers.sh --if-allowed
	@$(MAKE) --no-print-directory check
	$(PYTHON) -m pytest -n $(JOBS) $(PYTEST_ARGS)

bench: setup ## conversions beside qemu-img, in pairs, verified; results in bench/results (BENCH_ARGS for its options)
	@scripts/setup-peers.sh
	$(PYTHON) -m bench $(BENCH_ARGS)

bench-quick: setup ## the same, a few rows, in two minutes
	@scripts/setup-peers.sh
	$(PYTHON) -m bench --quick $(BENCH_ARGS)

FUZZ_ARGS ?= --seconds 600

fuzz: setup ## mutated images of every format for ten minutes (FUZZ_ARGS for time, seed, format); counts at the end
	$(PYTHON) -m tests.hostile.mutate $(FUZZ_ARGS)

fuzz-guided: setup ## the same, led by coverage: atheris (FUZZ_ARGS for time, seed, format)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	$(PYTHON) -m tests.hostile.guided $(FUZZ_ARGS)

TORTURE_ARGS ?=

torture: setup ## kills, signals, failing calls, full disks, losses of power, hostile images, with counts; half an hour
	$(PYTHON) -m tests.torture $(TORTURE_ARGS)

lab: setup ## Debian to login: from every format and controller on a complete KVM, in an emulated machine; two hours
	@scripts/setup-peers.sh
	$(PYTHON) scripts/lab/images.py $(CACHE)/lab-images
	$(LAB) --time-limit 10800 -- $(LAB_PYTEST) tests/lab tests/hv $(PYTEST_ARGS)

LAB_QUICK := (lacks_a_driver and ahci) or panics or nothing_to_boot or triple or (cloud_kernel and not vdi)

lab-quick: setup ## a part of it in under ten minutes
	@scripts/setup-peers.sh
	$(PYTHON) scripts/lab/images.py $(CACHE)/lab-images cloud-compressed.qcow2 cloud-stream.vmdk
	scripts/lab/insist.sh $(LAB) --time-limit 1200 -- $(LAB_PYTEST) tests/lab -k "$(LAB_QUICK)"

lab-speed: setup ## the hypervisor beside QEMU on the same KVM
	@scripts/setup-peers.sh
	$(PYTHON) scripts/lab/images.py $(CACHE)/lab-images cloud.raw
	$(LAB) --time-limit 1200 -- python3 scripts/lab/speed.py /images/cloud.raw

clean: ## remove the virtual environment and what was built here
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
