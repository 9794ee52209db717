# `make help` lists the targets.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
PRESET ?= tiny
REMOTE ?= origin
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
GPU_PYTHON ?= .venv/bin/python
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LAB := $(VENV)/share/jupyter/labextensions/catome-book/package.json
# a preset of a model that not every chapter can have names the notebooks that it is for
CHOSEN := $(wildcard data/presets/$(PRESET)/notebooks.txt)
NOTEBOOKS := $(if $(CHOSEN),$(shell cat $(CHOSEN)),$(notdir $(wildcard notebooks/*.ipynb)))
BUILD ?= _build
SOURCE := $(BUILD)/source
EXECUTED := $(addprefix $(SOURCE)/notebooks/,$(NOTEBOOKS))
CODE := $(wildcard catome/*.py catome/*/*.py catome/*/*/*.py) $(wildcard data/tiny-sd/*/*) $(wildcard data/tiny-pixart/*) $(wildcard data/tiny-lcm/*)
GPU_STAMP := $(if $(filter $(BIN)/%,$(GPU_PYTHON)),$(STAMP))
export PYDEVD_DISABLE_FILE_VALIDATION := 1

ifneq ($(and $(CHOSEN),$(filter book publish,$(MAKECMDGOALS))),)
$(error PRESET=$(PRESET) is for some chapters only, which make no book: make notebooks PRESET=$(PRESET) BUILD=folder)
endif

.DELETE_ON_ERROR:
.PHONY: help setup book test check slow commands mutations torture lint format notebooks slides record bench leaderboard gpu-test gpu-bench clean publish publishable audit check-book pdf

# parameters of a notebook: the preset's, then those that the preset has for this notebook alone
PARAMETERS = -f data/presets/$(1).yaml $(addprefix -f ,$(wildcard data/presets/$(1)/$(2).yaml))

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14
	@echo "Settings: PYTHON=$(PYTHON), PRESET=$(PRESET) (a file in data/presets), RECOMPUTE=1 (nothing from data/results), REFERENCE=folder (of real images)"

setup: $(STAMP) $(LAB) ## install everything into .venv

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python found: install Python 3.11 or later, or set PYTHON="; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[dev]
	touch $@

$(LAB): $(wildcard book/jupyterlab/*) book/references.bib | $(STAMP)
	$(BIN)/python book/jupyterlab/install.py

book: $(STAMP) $(EXECUTED) ## run the notebooks on the embedded model and render the book to _build/html
	mkdir -p $(SOURCE)/book
	cp _config.yml _toc.yml $(SOURCE)/
	cp -R book/. $(SOURCE)/book/
	cp -R notebooks/exercises $(SOURCE)/notebooks/
	cp -R book/_static $(SOURCE)/
	cp $(BUILD)/output/cover.svg $(BUILD)/output/animation.html $(SOURCE)/book/
	cp data/tiny-sd/README.md $(SOURCE)/book/model_card.md
	cp data/tiny-pixart/README.md $(SOURCE)/book/transformer_card.md
	cp data/tiny-lcm/README.md $(SOURCE)/book/lcm_card.md
	rm -rf $(BUILD)/html/_modules
	$(BIN)/jupyter-book build $(SOURCE) --path-output $(dir $(BUILD)) --warningiserror --keep-going --quiet
	$(BIN)/python book/slides.py $(SOURCE)/notebooks $(BUILD)/html/slides
	@echo "the book: $(BUILD)/html/index.html"

publish: publishable book ## build the book and push it to the branch gh-pages of REMOTE (where there is no Actions)
	.ci/publish $(REMOTE) $(BUILD)/html

publishable: # asked before the book is built, which takes minutes
	@.ci/publish $(REMOTE)

slides: $(EXECUTED) ## make the slides of the lectures in _build/html/slides (make book does, too)
	$(BIN)/python book/slides.py $(SOURCE)/notebooks $(BUILD)/html/slides

notebooks: $(EXECUTED) ## run the notebooks only, with the preset PRESET

# without progress bars, which would be kept among the outputs
$(SOURCE)/notebooks/%.ipynb: notebooks/%.ipynb data/presets/$(PRESET).yaml $(wildcard data/presets/*/*.yaml) $(wildcard data/results/*.parquet) $(CODE) | $(STAMP)
	@mkdir -p $(@D)
	TQDM_DISABLE=1 $(BIN)/papermill $< $@ $(call PARAMETERS,$(PRESET),$*) -p output $(BUILD)/output \
	    $(if $(RECOMPUTE),$(if $(shell grep -l '"recompute = ' $<),-p recompute True)) \
	    $(if $(REFERENCE),$(if $(shell grep -l '"reference = ' $<),-r reference "$(REFERENCE)")) -k python3 --no-progress-bar

record: $(STAMP) ## compute what is missing from data/results (hours; go on any time; DEVICE=cuda BATCH=96 on a GPU)
	for study in drift sweep schedules headline weights short; do \
	    notebook=$$($(BIN)/python -c "from catome.study.studies import STUDIES; print(STUDIES['$$study'].NOTEBOOK)"); \
	    $(BIN)/python -m catome.study $$study -f data/presets/tiny.yaml -f data/presets/record/$$notebook.yaml \
	        --output data/results $(if $(DEVICE),--device $(DEVICE)) $(if $(BATCH),--batch-size $(BATCH)) || exit 1; \
	done
	for length in "" "--steps 8 --sampler DPM++" "--steps 20 --sampler DPM++"; do \
	    $(BIN)/python -m catome.study curves --timed --images 480 $$length --output data/results \
	        $(if $(DEVICE),--device $(DEVICE)) $(if $(BATCH),--batch-size $(BATCH)) || exit 1; \
	done
	$(BIN)/python -m catome.study distilled --timed --images 480 --output data/results \
	    $(if $(DEVICE),--device $(DEVICE)) $(if $(BATCH),--batch-size $(BATCH))
	$(BIN)/python -m catome.study transformer --timed -f data/presets/tiny.yaml -f data/presets/record/10_a_transformer.yaml \
	    --output data/results $(if $(DEVICE),--device $(DEVICE)) $(if $(BATCH),--batch-size $(BATCH))

bench: $(STAMP) ## time catome against its peers on the CPU (under 10 minutes)
	$(BIN)/python -m catome.bench --output $(BUILD)/output

leaderboard: $(STAMP) ## judge the entries in ENTRIES=folder on images of a seed that nobody has seen (SEED=... repeats one; IMAGES=...)
	$(BIN)/python -m catome.study.leaderboard "$(or $(ENTRIES),notebooks/exercises/leaderboard)" \
	    $(if $(SEED),--seed $(SEED)) $(if $(IMAGES),--images $(IMAGES)) --output $(BUILD)/leaderboard

gpu-test: $(GPU_STAMP) ## test the kernels on a GPU (GPU_PYTHON=python3: with that Python instead of .venv's)
	@$(GPU_PYTHON) -c "import sys, torch; torch.cuda.is_available() or sys.exit('gpu-test needs a CUDA device, and torch %s sees \
	none; make test runs the same tests on the interpreter' % torch.__version__)"
	$(GPU_PYTHON) -m pytest tests/core/test_kernels.py

gpu-bench: $(GPU_STAMP) ## time catome against its peers on a GPU and keep the rows in data/results (under 10 minutes)
	$(GPU_PYTHON) -m catome.bench --device cuda --record

test: $(STAMP) ## run the tests of the library, the contracts and the studies, and a chapter from end to end (minutes)
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

check: test slow ## run all tests: those of make test, then those that take long

slow: $(STAMP) ## run the tests that take long: notebooks, recorded results, and the book in a headless browser
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow and not typed"

commands: $(STAMP) ## type every command of the pages, as it is written, in a clone with small presets (a quarter of an hour)
	$(BIN)/python -m pytest -n $(WORKERS) -m typed tests/book/test_commands_of_pages.py

mutations: $(STAMP) ## try small wrong changes to the code, each of which some test must notice (minutes)
	$(BIN)/python tests/mutations.py

audit: $(STAMP) ## look the pinned versions up in the database of known advisories (needs a network)
	$(BIN)/python -m pytest --noconftest -rs tests/repository/test_advisories.py

check-book: $(STAMP) ## check every page of _build/html: links, sizes, light and dark, accessibility, print, spelling (minutes)
	BOOK=$(BUILD)/html $(BIN)/python -m pytest -n $(WORKERS) tests/book/test_book_pages.py tests/book/test_spelling.py

pdf: $(STAMP) ## print each page of _build/html to _build/pdf (SOLUTIONS=1: with the solutions of the exercises)
	$(BIN)/python book/pdf.py $(BUILD)/html $(BUILD)/pdf $(if $(SOLUTIONS),--solutions)

torture: $(STAMP) ## kill a small study 200 times (KILLS=...) and compare the bytes
	KILLS=$(or $(KILLS),200) $(BIN)/python -m pytest -o faulthandler_timeout=0 tests/study/test_long_runs.py tests/study/test_work.py tests/study/test_results.py

lint: $(STAMP) ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

format: $(STAMP) ## put the code into the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built; keeps .venv
	rm -rf _build
