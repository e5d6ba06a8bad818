# make demo   text from the shipped checkpoint      make test   the whole suite, in WORKERS processes
# make lint   ruff, mypy and clang-format           make clean  forget what was built
# make test-fast  the tests that are not marked slow, operators with few of their shapes
# make test-transformers VERSION=…  what runs on transformers, with that release of it, oldest or newest
# make peer-tests  transformers' own tests on this project's classes; PEER=… takes another release of it
# make fuzz   open COUNT mutated checkpoints, and call the compiled operators CALLS times with random arguments
# make soak   many clients at a server of the demo for ten minutes, whose answers must be the ones that they get alone
# make bench       measure in under five minutes, on two cores, and rewrite the figures and plots of README and docs
# make bench-full  measure all of it, which takes an hour or more
# make step        build/step, which times a decode step and its operators on a GPU (build/step --help)
# make gpu-build   that and the extension, for one architecture, on a machine that needs no GPU
# make gpu-check   test and time the CUDA kernels on this machine's GPU, with what gpu-build made for it
# make gpu-baselines  time what other runtimes make of the same step and prompts on this machine's GPU
#
# WORKERS    processes that share the tests, of one thread each
# PYTHON     the interpreter to start from; a torch that it has is used as it is
# TORCH      what to install where it has none; without an NVIDIA driver the CPU's release
# ARCH       what step and gpu-build are built for, such as 90; by default the GPU that is here
# ARGS       options of gpu-check, such as --sanitize --minutes 9, of fuzz, such as --seed 1, or of bench, such as --python llama.cpp=PATH
PYTHON ?= python3
TORCH ?= $(if $(shell command -v nvidia-smi),torch,torch==2.13.0)
VENV ?= .venv

BIN := $(VENV)/bin
# A Debian python3 may have pip and not what gives a new environment its own.
PIP = $(shell test -x $(BIN)/pip && echo $(BIN)/python -m pip || echo $(PYTHON) -m pip --python $(BIN)/python)
INSTALL = $(PIP) install --quiet --progress-bar off --disable-pip-version-check

.PHONY: demo test test-fast test-transformers peer-tests fuzz soak lint bench bench-full step gpu-build gpu-check gpu-baselines clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	@$(BIN)/adept-fast generate --chat --prompt "What is the capital of France?"

# A file is one process's, so what a module makes for its tests is made once; in order, as short files come last.
# A test that runs several threads must not have them spin for a core that another process has.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed-test
	$(PYTEST) $(ARGS)

test-fast: $(VENV)/installed-test
	ADEPT_FAST_TESTS=thin $(PYTEST) -m 'not slow' $(ARGS)

# Where the release of transformers that is tested stands before the packages of $(VENV).
VERSION ?= oldest
OTHER := $(VENV)-transformers-$(VERSION)
TESTS_WITH_TRANSFORMERS := $(wildcard tests/integrations/test_integration_transformers*.py) tests/modeling
REQUIREMENT = $(if $(filter oldest,$(VERSION)),transformers==$(OLDEST_TRANSFORMERS).*,$(if $(filter \
	newest,$(VERSION)),--upgrade transformers,transformers==$(VERSION)))
OLDEST_TRANSFORMERS := $(shell sed -n 's/^transformers = \["transformers>=\([0-9.]*\)"\]/\1/p' pyproject.toml)

test-transformers: $(OTHER)/installed
	$(OTHER)/bin/python -m pytest -p no:cacheprovider $(TESTS_WITH_TRANSFORMERS)

# With what transformers' tests need besides, in an environment of that release.
PEER ?= $(shell $(BIN)/python -c 'from importlib.metadata import version; print(version("transformers"))')
peer-tests: $(VENV)/installed-test
	@$(MAKE) --no-print-directory VERSION=$(PEER) $(VENV)-transformers-$(PEER)/installed-peer build/peer/$(PEER)/transformers-$(PEER).tar.gz
	@$(VENV)-transformers-$(PEER)/bin/python -m tools.peer_tests build/peer/$(PEER)/transformers-$(PEER).tar.gz --workers $(WORKERS)

COUNT ?= 5000
CALLS ?= 100000
fuzz: $(VENV)/installed-test
	$(BIN)/python tests/fuzz_checkpoints.py --count $(COUNT) $(ARGS)
	$(BIN)/python tests/fuzz_operators.py --calls $(CALLS) $(ARGS)
	$(BIN)/python tests/fuzz_operators.py --calls $(CALLS) --emulated $(ARGS)

soak: $(VENV)/installed-test
	$(BIN)/python tests/soak.py --seconds 600 $(ARGS)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc benchmarks/step -name '*.h' -o -name '*.cpp' -o -name '*.cu*')

bench: $(VENV)/installed-test
	$(BIN)/python -m benchmarks suite $(ARGS)

bench-full: $(VENV)/installed-test
	$(BIN)/python -m benchmarks suite --full $(ARGS)

# With what the caller has, where no environment was made yet: a machine with a GPU may have no network.
gpu-check:
	@$(if $(wildcard $(VENV)/installed-test),$(BIN)/python,$(PYTHON)) -m benchmarks gpu-check $(ARGS)

gpu-baselines:
	@$(if $(wildcard $(VENV)/installed-test),$(BIN)/python,$(PYTHON)) -m benchmarks gpu-check --baselines $(ARGS)

step:
	@$(if $(wildcard $(VENV)/installed-test),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu_check.build --step --architecture '$(ARCH)'

gpu-build:
	@$(if $(wildcard $(VENV)/installed-test),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu_check.build --architecture '$(ARCH)'

clean:
	rm -rf $(VENV) $(VENV)-transformers-* build dist adept_fast.egg-info adept_fast/_C.*

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || $(PYTHON) -m venv --without-pip --clear $(VENV)

# The sources in csrc are no prerequisites: whichever of them changed, the next import builds.
BUILD := pyproject.toml setup.py

# Where the caller has torch, its packages are seen from the environment too, after those installed here.
CALLERS_PATHS = import sys, torch; print(*filter(lambda path: path.endswith("-packages"), sys.path), sep="\n")
SITE_PACKAGES = import sysconfig; print(sysconfig.get_path("purelib"))

$(VENV)/torch: | $(BIN)/python
	@if $(PYTHON) -c '$(CALLERS_PATHS)' >$(VENV)/caller.pth 2>/dev/null; \
	then cp $(VENV)/caller.pth "$$($(BIN)/python -c '$(SITE_PACKAGES)')"; \
	else echo 'installing $(TORCH) into $(VENV)' >&2 && $(INSTALL) '$(TORCH)'; fi
	@touch $@

$(VENV)/installed: $(BUILD) $(VENV)/torch
	@echo 'installing adept-fast into $(VENV)' >&2
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-test: $(BUILD) $(VENV)/torch
	@echo 'installing adept-fast and what its tests need into $(VENV)' >&2
	@$(INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/installed

# The packages of $(VENV) are seen after its own.
OTHER_PIP = $(shell test -x $(BIN)/pip && echo $(BIN)/python || echo $(PYTHON)) -m pip --python $(OTHER)/bin/python
$(OTHER)/installed: $(VENV)/installed-test
	@echo 'installing transformers ($(VERSION)) into $(OTHER)' >&2
	@$(BIN)/python -m venv --without-pip --clear $(OTHER)
	@$(BIN)/python -c '$(CALLERS_PATHS)' >"$$($(OTHER)/bin/python -c '$(SITE_PACKAGES)')/others.pth"
	@$(OTHER_PIP) install --quiet --progress-bar off --disable-pip-version-check $(REQUIREMENT)
	@touch $@

$(OTHER)/installed-peer: $(OTHER)/installed
	@$(OTHER_PIP) install --quiet --progress-bar off --disable-pip-version-check parameterized
	@touch $@

build/peer/$(VERSION)/transformers-$(VERSION).tar.gz: | $(OTHER)/installed
	@mkdir -p $(@D)
	@$(OTHER_PIP) download --quiet --disable-pip-version-check --no-deps --no-binary transformers --dest $(@D) transformers==$(VERSION)
