# `make help` lists the targets.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
PRESET ?= tiny
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NOTEBOOKS := $(notdir $(wildcard notebooks/*.ipynb))
BUILD ?= _build
SOURCE := $(BUILD)/source
EXECUTED := $(addprefix $(SOURCE)/notebooks/,$(NOTEBOOKS))
CODE := $(wildcard catome/*.py catome/study/*.py catome/tiny/*.py) $(wildcard data/tiny-sd/*/*)
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.DELETE_ON_ERROR:
.PHONY: help setup book test lint format notebooks clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14
	@echo "Settings: PYTHON=$(PYTHON), PRESET=$(PRESET) (a file in data/presets)"

setup: $(STAMP) ## install everything into .venv

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python found: install Python 3.11 or later, or set PYTHON="; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[dev]
	touch $@

book: $(STAMP) $(EXECUTED) ## run the notebooks on the embedded model and render the book to _build/html
	mkdir -p $(SOURCE)/book
	cp _config.yml _toc.yml $(SOURCE)/
	cp -R book/. $(SOURCE)/book/
	cp -R book/_static $(SOURCE)/
	cp $(BUILD)/output/cover.svg $(SOURCE)/book/
	cp data/tiny-sd/README.md $(SOURCE)/book/model_card.md
	$(BIN)/jupyter-book build $(SOURCE) --path-output $(dir $(BUILD)) --warningiserror --keep-going --quiet
	@echo "the book: $(BUILD)/html/index.html"

notebooks: $(EXECUTED) ## run the notebooks only, with the preset PRESET

$(SOURCE)/notebooks/%.ipynb: notebooks/%.ipynb data/presets/$(PRESET).yaml $(CODE) | $(STAMP)
	@mkdir -p $(@D)
	$(BIN)/papermill $< $@ -f data/presets/$(PRESET).yaml -p output $(BUILD)/output -k python3 --no-progress-bar

test: $(STAMP) ## run all tests: library, notebooks, and the book in a headless browser
	$(BIN)/python -m pytest

lint: $(STAMP) ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## put the code into the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built; keeps .venv
	rm -rf _build
