# Every target sets up what it needs: Python 3.11 or newer with venv, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-peers

.PHONY: demo serve test check crash fuzz published bench bench-engine bench-server bench-sims \
  format clean

demo: $(READY)
	$(BIN)/banditctl demo

serve: $(READY)
	$(BIN)/banditctl serve

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_generated.py

# Servers killed under load, again and again, and loaded ten times over: some minutes.
crash: $(READY)
	$(BIN)/python -m benchmarks.overload
	$(BIN)/python -m tests.crash.rounds --backend sqlite --rounds 20
	$(BIN)/python -m tests.crash.rounds --backend postgresql --rounds 10

# A hundred thousand requests and files that nobody should send: some minutes.
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --inputs 100000

# Results from papers, run again: some minutes; needs the data sets.
published: $(READY)
	$(BIN)/python -m sims.published

bench: $(READY)
	$(BIN)/python -m benchmarks

# The server alone: unary, batches named and packed, rewards, the fold; ratios to empty handlers.
bench-server: $(READY)
	$(BIN)/python -m benchmarks.server
	$(BIN)/python -m benchmarks.workers

# Rollouts and off-policy evaluation; ratios to plain loops.
bench-sims: $(READY)
	$(BIN)/python -m benchmarks.sims
	$(BIN)/python -m benchmarks.ope
	$(BIN)/python -m benchmarks.large_log

# Beside other engines: needs the benchmark harness next to the project, and their packages.
bench-engine: $(READY)
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	PYTHONPATH=. $(PEERS)/bin/python -m benchmarks.peers

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: needs Python 3.11 or newer; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,postgresql]'
	@echo "compiling kernels (once)"
	@$(BIN)/python -m sims.warm_up & sims=$$!; \
	  $(BIN)/python -c 'from bandit.warm_up import warm_up; warm_up()' && wait $$sims
	@touch $(READY)
