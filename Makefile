# make setup | demo | test | test-slow | check | bench     Each is complete by itself on a bare machine with Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test test-slow check bench clean

setup: $(STAMP)

# The venv module is a package of its own on Debian and Ubuntu: say so where it is missing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "upslope needs Python >= 3.11; give one with PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/upslope demo

# A process a core, a file of tests to each, in their order: the longest stand first.
test: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/python -m pytest -m slow --timeout 3600

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# make bench TRL=trl-env/bin/python VLLM=vllm-env/bin/python: with the peers, whose environments the scripts say how to make
ifdef TRL
BESIDE_TRL := --against trl --peer-python $(TRL)
endif
ifdef VLLM
BESIDE_VLLM := --against generate,vllm --vllm-python $(VLLM)
endif

bench: setup
	$(BIN)/python bench/grpo.py $(BESIDE_TRL)
	$(BIN)/python bench/sampling.py $(BESIDE_VLLM)
	$(BIN)/python bench/sft.py $(BESIDE_TRL)
	$(BIN)/python bench/ppo.py
	$(BIN)/python bench/scaling.py

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
