PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Versions to install; another file, or /dev/null for the newest of all, in its place.
CONSTRAINTS ?= constraints.txt
# Libraries of models and peers to test against. Their own requirements would bring a CUDA build of torch.
PEERS  := mup torch-lr-finder prodigyopt schedulefree timm torchvision peft accelerate lightning lightning-utilities \
          torchmetrics wandb GitPython gitdb smmap sentry-sdk platformdirs xxhash opentelemetry-api \
          skorch trl datasets dill multiprocess pandas

.PHONY: help demo test fuzz lint docs evidence dist release-check soak zoo bench clean
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --no-deps $(PEERS)
	@touch $@

demo: $(READY)  ## the main job on embedded data: one table, one picture in out/
	$(BIN)/dagscale demo

test: $(READY)  ## every test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

SECONDS := 60
fuzz: $(READY)  ## hostile input to the command line, new each time; SECONDS=600 a surface
	FUZZ_SECONDS=$(SECONDS) OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_fuzz.py

MINUTES := 360
soak: $(READY)  ## plans, searches and sweeps under random faults; MINUTES=30 for so long
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --minutes $(MINUTES)

lint: $(READY)  ## ruff and mypy --strict
	$(BIN)/ruff check src tests benchmarks docs/*.py
	$(BIN)/ruff format --check src tests benchmarks docs/*.py
	$(BIN)/mypy

docs: $(READY)  ## the documentation site in docs/_build/html; warnings are errors
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html

evidence: $(READY)  ## every table and picture of docs/evidence anew from the results that are kept there
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/picture.py

dist: $(READY)  ## a wheel and a source archive in dist/
	rm -rf dist
	$(BIN)/python -m build

release-check: dist  ## install the wheel and the source archive into fresh environments, and run the README's lines
	$(BIN)/python tests/release.py dist --constraint $(CONSTRAINTS)

zoo: $(READY)  ## trace every model of timm, torchvision and transformers (hours; resumable)
	$(BIN)/python benchmarks/zoo.py run

bench: $(READY)  ## the benchmarks that the documentation quotes
	$(BIN)/python benchmarks/paths.py
	$(BIN)/python benchmarks/nas_paths.py
	$(BIN)/python benchmarks/laws.py
	$(BIN)/python benchmarks/tracing.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/base_free.py
	$(BIN)/python benchmarks/moments.py run --limit 200 && $(BIN)/python benchmarks/moments.py report
	$(BIN)/python benchmarks/kernels.py run && $(BIN)/python benchmarks/kernels.py report
	$(BIN)/python benchmarks/search.py

clean:  ## remove the environment and what commands wrote
	rm -rf $(VENV) out docs/_build dist
