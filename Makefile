# Two commands matter: `make demo` and `make test`. Both make the environment first, if it is absent or out of date.
VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.installed
BENCH := $(VENV)/.installed-bench
RUN := PATH="$(BIN):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help demo test export readme lint site docs bench

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): settings.ini setup.py
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing daedalus_etl and its development tools into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(BENCH): $(READY)
	@$(BIN)/python -m pip install --quiet --editable '.[dev,bench]'
	@touch $@

demo: $(READY)  ## run the main job on data_samples, results below data/demo
	@$(BIN)/daedalus demo

test: $(READY)  ## run the tests, notebooks included (ARGS="tests/test_floors.py -x" for some of them)
	@$(RUN) python -m pytest $(ARGS)

export: $(READY)  ## notebooks -> package, and clean notebooks
	@$(RUN) nbdev_export
	@$(RUN) nbdev_clean

readme: $(READY)  ## nbs/index.ipynb -> README.md
	@$(RUN) python tools/readme.py

lint: $(READY)  ## ruff over package, notebooks, tests and tools
	@$(RUN) ruff check .

site: $(READY)  ## faults of the site that show without quarto (ARGS=--quick: without nbdev's preprocessing)
	@$(RUN) python tools/site.py --check $(ARGS)

docs: $(READY)  ## the site, in _docs (needs quarto)
	@command -v quarto >/dev/null || { echo "make docs needs quarto on the PATH (https://quarto.org)"; exit 2; }
	@$(RUN) nbdev_export
	@$(RUN) python tools/readme.py && touch README.md    # nbdev_docs writes an older README.md anew, in quarto's form
	@$(RUN) nbdev_docs

bench: $(BENCH)  ## all cases beside peers and the I/O floor (ARGS="--case bars*", ARGS=--quick, ARGS="--out benchmarks --page")
	@$(RUN) python -m benchmarks $(ARGS)
