# make demo and make test need only Python 3.11-3.13 and make: each builds .venv
# and installs what it needs from the package registry.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := keras_lightnets heads tasks tools tests benchmarks
# Two processes keep two cores busy: building networks is Python's work.
PARALLEL ?= --numprocesses 2 --dist worksteal
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test test-full lint types check format readme clean

demo: $(VENV)/all.stamp
	$(BIN)/keras-lightnets demo --out runs/demo

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest $(PARALLEL)

# Every variant, exports and trainings; takes long.
test-full: $(VENV)/dev.stamp
	$(BIN)/python -m pytest $(PARALLEL) -m "full or export or train"

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

# heads/, tasks/ and tools/ are sub-packages once installed: mypy reads them so.
types: $(VENV)/dev.stamp
	rm -rf build/types && mkdir -p build/types
	cp -r keras_lightnets build/types/
	cp -r heads tasks tools build/types/keras_lightnets/
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p keras_lightnets

check: lint types test

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Regenerate the tables of README.md from the registry.
readme: $(VENV)/dev.stamp
	$(BIN)/python tools/convert/make_readme.py

$(VENV)/pip.stamp:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/all.stamp: setup.cfg pyproject.toml $(VENV)/pip.stamp
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	touch $@

$(VENV)/dev.stamp: setup.cfg pyproject.toml $(VENV)/pip.stamp
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/all.stamp

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
