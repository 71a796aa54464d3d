# Everything runs in .venv.  Variables: PYTHON (the interpreter, 3.10 to 3.13), PIP_FLAGS (added to pip install),
# DEMO_FLAGS, PYTEST_FLAGS, BENCH (which benchmarks).  CONTRIBUTING.md says more.
PYTHON ?= python3
PIP_FLAGS ?=
DEMO_FLAGS ?=
PYTEST_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
CXX_FILES = $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
BUILD_INPUTS := pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc -type f)
BENCH ?= $(filter-out benchmarks/_% benchmarks/baselines.py benchmarks/report.py benchmarks/tuning_study.py, $(wildcard benchmarks/*.py))

.DELETE_ON_ERROR:
.PHONY: help install demo test test-all lint bench clean

help:
	@echo "make demo      out/demo.mp4 and out/demo.png, sampled on this machine"
	@echo "make test      the fast tests            make test-all  with the long sweeps"
	@echo "make lint      style and import rules    make bench     every benchmark"
	@echo "make install   the package in $(VENV)      make clean     remove $(VENV), build and out"

install: $(VENV)/.installed

# Editable, so that the stamp need not know the Python files; C++ or packaging changes rebuild.
# python_tests/test_packaging.py builds and tests the wheel.
$(VENV)/.installed: $(BUILD_INPUTS) | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 13) or sys.exit("Python 3.10 to 3.13 is needed, $(PYTHON) is %d.%d: try make PYTHON=python3.12" % v)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "cannot make $(VENV): on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }

demo: install
	$(BIN)/vidsmooth-fast demo $(DEMO_FLAGS)

test: export OMP_WAIT_POLICY = passive
test: install
	$(BIN)/pytest -m "not slow" -n auto --dist worksteal $(PYTEST_FLAGS)

test-all: install
	$(BIN)/pytest $(PYTEST_FLAGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/lint-imports

bench: install
	@set -e; for file in $(BENCH); do echo "== $$file"; $(BIN)/python $$file; done

clean:
	rm -rf $(VENV) build out
