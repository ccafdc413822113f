# `make check` is what has to pass before a change lands: format, lint, types, import contract, tests.
python := .venv/bin/python

.PHONY: check format quick start

check:
	scripts/test

start:
	scripts/start

format:
	$(python) -m ruff format .
	$(python) -m ruff check --fix .

quick:
	$(python) -m ruff format --check .
	$(python) -m ruff check .
	$(python) -m mypy
	$(python) -m pytest tests/unit
