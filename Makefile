# make demo: train DLRM on generated clicks and compare its NE with the best possible one
# make test: run the tests
# Both create .venv and install into it first; PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test faults check docs clean

demo: .venv/.demo
	$(BIN)/recloom fit --config configs/dlrm/synthetic.yaml

test: .venv/.test
	$(BIN)/python -m pytest -q

# kills, full disks and damaged files, bounded by a limit for each test: not a part of `make test`
faults: .venv/.test
	$(BIN)/python -m pytest -q -n 2 tests/faults

check: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.test
	$(BIN)/python -m sphinx -W -q -b html docs build/docs

.venv/.demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	touch $@

.venv/.test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[test]"
	touch $@

clean:
	rm -rf .venv build
