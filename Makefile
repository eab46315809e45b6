# Everything works from a bare machine with Python >= 3.10; the first target to run makes .venv.
PYTHON ?= python3
BIN := .venv/bin
# Most tests keep one core busy: a process for each core, of one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8 --no-loadscope-reorder
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Inputs that Atheris gives each entrance, and the seed that they follow from; 0 draws one.
RUNS ?= 10000
SEED ?= 0

.PHONY: demo test test-slow mutate fuzz fuzz-atheris lint docs audit clean

demo: .venv/.core
	@mkdir -p build
	$(BIN)/fastdef demo --json build/demo.json --figure build/demo.png

test: .venv/.dev
	$(PYTEST) --dist loadfile -m "not slow and not gpu"

test-slow: .venv/.dev .venv/.triton-server .venv/.ray .venv/.attacks
	$(PYTEST) --dist loadfile -m "slow and not gpu"

# Hours; goes on where it was. Words narrow it down: make mutate WORDS=attacks/_losses
mutate: .venv/.mutate
	$(BIN)/python -m tools.mutate $(WORDS)
	$(BIN)/python -m tools.mutate --report

fuzz: .venv/.fuzz
	$(PYTEST) --dist worksteal tests/fuzz --hypothesis-profile nightly
	$(MAKE) fuzz-atheris

fuzz-atheris: .venv/.fuzz
	$(BIN)/python -m tests.fuzz.targets -runs=$(RUNS) -seed=$(SEED)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, into build/site; a broken link or reference ends it.
docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.core: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable .
	@touch $@

.venv/.dev: .venv/.core
	$(INSTALL) --editable ".[export,eval,serve,test,docs,dev]"
	@touch $@

# The wheel has the server itself. It asks for an older numpy than ours, which the server does without.
.venv/.triton-server: .venv/.dev
	$(INSTALL) --no-deps --target .venv/triton-server nvidia-pytriton
	@touch $@

# torchattacks asks for a requests of 2021, which its attacks do without.
.venv/.attacks: .venv/.dev
	$(INSTALL) --editable ".[attacks]"
	$(INSTALL) --no-deps torchattacks
	@touch $@

# 410 MB.
.venv/.ray: .venv/.dev
	$(INSTALL) --editable ".[ray]"
	@touch $@

# Fails too where the database does not answer: what could not be looked up has not been audited.
audit: .venv/.dev
	$(BIN)/pip-audit --strict --progress-spinner off --disable-pip --no-deps --requirement constraints.txt

.venv/.fuzz: .venv/.dev
	$(INSTALL) --editable ".[fuzz]"
	@touch $@

.venv/.mutate: .venv/.dev
	$(INSTALL) --editable ".[mutate]"
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
