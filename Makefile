# Two commands are all the set-up there is: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test viewer check format schema bench clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(STAMP) ## Synthetic slides to labels, heatmaps and a report (SEED=1 for other slides)
	$(BIN)/wsi-ips demo --seed $(or $(SEED),0) --output runs/demo-$(or $(SEED),0)

test: $(STAMP) ## Run all tests
	$(BIN)/python -m pytest -n auto --dist loadfile

viewer: ## Install OpenSeadragon for `wsi-ips view` (needs npm)
	cd wsi_ips/viewer && npm ci --ignore-scripts --no-audit --no-fund

check: $(STAMP) ## Lint, formatting, types, import rule, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(STAMP) ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

schema: $(STAMP) ## Write slides_manifest/manifest.schema.json anew
	$(BIN)/python -c "from wsi_ips.manifest.slide_record import write_schema; write_schema('slides_manifest/manifest.schema.json')"

bench: $(STAMP) ## Run every benchmark, short
	@for script in $(wildcard benchmarks/*.py); do echo "== $$script"; $(BIN)/python $$script --quick || exit 1; done

clean: ## Remove the environment and all runs
	rm -rf $(VENV) runs

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV) (a few minutes, several GB with PyTorch) ..."
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
