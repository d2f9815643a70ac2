# make quickstart    train and show a noise hypernetwork on the embedded generator (minutes on two cores)
# make test          lint, types and all tests
#
# Both set up .venv first. CONSTRAINTS= (empty) takes the newest dependencies. Tests run in a process per core; WORKERS=0
# takes one for all.

PYTHON ?= python3
CONSTRAINTS ?= constraints-cpu.txt
ARGS ?=
WORKERS ?= auto
INSTALLED := .venv/.installed

.PHONY: quickstart test clean

quickstart: $(INSTALLED)
	.venv/bin/hypernoise quickstart $(ARGS)

test: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	.venv/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hypernoise needs Python 3.11 or newer; say make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -e '.[dev]' $(addprefix -c ,$(CONSTRAINTS))
	touch $@

clean:
	rm -rf .venv runs build dist
