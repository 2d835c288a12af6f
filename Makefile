# Each target sets up .venv by itself. PROFILE=smoke|laptop|… is merged into params.yaml first; without it params.yaml
# stays as it is.
PYTHON ?= python3
PORT ?= 5000
JOBS ?= 2
FAULTS ?= 50
VENV := .venv
BIN := $(VENV)/bin
PINS := requirements.lock requirements-nodeps.lock pyproject.toml
STAMP := $(VENV)/.installed-$(shell cat $(PINS) scripts/install-megablocks | cksum | cut -d' ' -f1)

.PHONY: help setup gpu reproduce test test-long coverage chaos lint up mlflow doctor clean

help:
	@echo "make reproduce [PROFILE=smoke|laptop]   run the whole recipe; again: only what changed"
	@echo "make test [JOBS=2]                      linter, types, tests, so many at once"
	@echo "make test-long                          every task of the larger worlds, about an hour"
	@echo "make coverage [JOBS=2]                  the same tests, and which lines they run, in child processes too"
	@echo "make chaos [FAULTS=50]                  kill a small reproduction in every stage and check what comes of it"
	@echo "make gpu                                MegaBlocks' CUDA extension, built for this machine, and a self-test"
	@echo "make lint | up | mlflow [PORT=5000] | doctor | clean"

setup: $(STAMP)

$(STAMP): $(PINS) scripts/setup-venv scripts/install-megablocks
	@PYTHON="$(PYTHON)" bash scripts/setup-venv "$(VENV)"
	@rm -f $(VENV)/.installed-* && touch $@

gpu: $(STAMP)
	@scripts/install-megablocks $(BIN)/python --cuda

reproduce: $(STAMP)
	@$(BIN)/python -m openhorizon reproduce $(if $(PROFILE),--profile $(PROFILE))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A thread a process: more only wait for cores that the other tests have. Stages set their own (openhorizon.process).
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n $(JOBS) --dist loadscope --no-loadscope-reorder

test-long: $(STAMP)
	$(BIN)/python -m pytest -m long

coverage: $(STAMP)
	$(BIN)/python -m coverage erase
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -m "not long" -n $(JOBS) --dist loadscope --no-loadscope-reorder
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

chaos: $(STAMP)
	@$(BIN)/python tests/chaos.py --faults $(FAULTS)

up: $(STAMP)
	@$(BIN)/python -m openhorizon up

mlflow: $(STAMP)
	@$(BIN)/python -m openhorizon mlflow --port $(PORT)

doctor: $(STAMP)
	@$(BIN)/python -m openhorizon doctor

clean:
	rm -rf artifacts reports mlruns.db* mlartifacts prefect.db* .openhorizon .dvc/cache .dvc/tmp .mypy_cache .ruff_cache .pytest_cache .coverage*
