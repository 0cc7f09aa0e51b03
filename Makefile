# Every target sets itself up: all it needs is a Python 3.11 or newer that can make a venv.
SHELL := /bin/bash
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
PACKAGES := ui workers service evals tricks
CODE := $(PACKAGES) benchmarks models tests
# Handed to pip, e.g. PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" for the small torch.
PIP_FLAGS ?=
# Handed to the command of a target, e.g. make test ARGS="-k plan".
ARGS ?=
TORCH ?= 2.13.0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONPATH := $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help setup browser demo test check bench-convert bench-plan bench-pages coverage bench-gpu bench-service space-check bench-detect bench-slim table-slim chaos fuzz up screenshots format pins clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv and install everything, pinned

# The stamp is what lets a second `make demo` start at once.
$(READY): pyproject.toml constraints.txt
	@bash .ci/venv "$(VENV)"
	@echo "Installing into $(VENV) (once; about two minutes)..." >&2
	@$(BIN)/python -m pip install -qq $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

browser: # Tests that need a browser skip where there is none and none can be installed.
	@bash .ci/browser

demo: $(READY) ## Convert, prove and publish the model in this repo, through the real queue
	@$(BIN)/python -m ui.demo $(ARGS)

test: $(READY) browser ## Run the tests
	@$(BIN)/python -m pytest $(ARGS)

check: $(READY) ## Lint, format check, types and import direction
	@failed=; for tool in "ruff check $(CODE)" "ruff format --check $(CODE)" mypy lint-imports; do \
	  echo "$$tool"; $(BIN)/$$tool || failed="$$failed $${tool%% *}"; \
	done; [ -z "$$failed" ] || { echo "make check failed:$$failed"; exit 1; }

format: $(READY) ## Format the code and mend what the linter can mend
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench-convert: $(READY) ## Measure conversion against cp and against flashify_repo on a 1 GB model
	@$(BIN)/python -m benchmarks.convert $(ARGS)

chaos: $(READY) ## Strike a deployment in every stage of a job; nothing may be lost
	@$(BIN)/python -m benchmarks.chaos.run $(ARGS)

fuzz: $(READY) ## Fuzz the header parser with atheris for a minute; ends at the first crash
	@$(BIN)/python -m pip install -qq '.[fuzz]' -c constraints.txt && \
	  $(BIN)/python -m tests.security.fuzz_headers -max_total_time=60 $(ARGS)

bench-pages: $(READY) browser ## Measure how soon the pages answer, and how fresh 200 open job pages stay
	@$(BIN)/python -m benchmarks.pages $(ARGS)

bench-service: $(READY) ## Measure 10,000 submits by 200 users, and 1,000 jobs drained to the end
	@$(BIN)/python -m benchmarks.service.run $(ARGS)

up: ## Start everything with Docker; writes the secrets' files where they are missing
	@install -d -m 700 deploy/secrets
	@for name in redis_password token_key; do \
	  test -s deploy/secrets/$$name || (umask 022; openssl rand -hex 32 > deploy/secrets/$$name); done
	@test -e deploy/secrets/webhook_secret || (umask 022; : > deploy/secrets/webhook_secret)
	@test -e deploy/secrets/hf_token || (umask 022; printf '%s' "$$HF_TOKEN" > deploy/secrets/hf_token)
	docker compose up --detach --build $(ARGS)
bench-plan: $(READY) ## Measure planning at full published sizes, without weights
	@$(BIN)/python -m benchmarks.planning $(ARGS)

coverage: $(READY) ## Try FlashNorm on every language-model type of transformers (about half an hour)
	@$(BIN)/python -m benchmarks.coverage $(ARGS)

bench-detect: $(READY) ## Plant damage in converted models, and see what verify catches and where it errs
	@$(BIN)/python -m benchmarks.detect $(ARGS)

bench-precompute: $(READY) ## Compute the precompute paper's table from configurations alone
	@$(BIN)/python -m benchmarks.precompute $(ARGS)

bench-matshrink: $(READY) ## Compute what MatShrink saves, and measure its precision, pivoted against naive
	@$(BIN)/python -m benchmarks.matshrink $(ARGS)

bench-approximate: $(READY) ## Measure what approximate attention loses, with the plot
	@$(BIN)/python -m benchmarks.approximate $(ARGS)

bench-slim: $(READY) ## Measure slim attention: its cache's bytes against what it loses, and its decoding
	@$(BIN)/python -m benchmarks.slim $(ARGS)

table-slim: $(READY) ## Compute what slim attention would save on public models, from their configs
	@$(BIN)/python -m benchmarks.slim_models $(ARGS)

bench-gpu: $(READY) ## Measure the kernels and whole models on this machine's CUDA card (about ten minutes)
	@$(BIN)/python -m benchmarks.gpu.run $(ARGS) && $(BIN)/python -m benchmarks.gpu.report

screenshots: $(READY) browser ## Take the screenshots of the README anew
	@$(BIN)/python -m ui.screenshots $(ARGS)

space-check: $(READY) browser ## Start what would be deployed from a clean venv, as a Space does, and convert in a browser
	@$(BIN)/python -m pytest tests/ui/space_check.py -s $(ARGS)

pins: ## Renew constraints.txt from what pip picks today in a clean venv; TORCH=... moves torch
	@rm -rf build/pins && bash .ci/venv build/pins
	@build/pins/bin/python -m pip install -qq $(PIP_FLAGS) -e '.[dev,flower,fuzz]' torch==$(TORCH)
	@{ sed -n '/^#/p' constraints.txt; \
	   build/pins/bin/python -m pip freeze --exclude tricksmith | sed 's/+[a-z0-9.]*$$//' \
	     | grep -viE '^(nvidia-|cuda-|triton)'; } > build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/pins

clean: ## Remove what was built and cached; .venv stays
	rm -rf build out data *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
