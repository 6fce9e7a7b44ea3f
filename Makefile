# make demo       a fresh clone to a denoised sample photo, on a CPU
# make test       format, lint, types and all tests that need no GPU
# make test-slow  the minutes-long tests
# make dev        what training, export and the tests need, into .venv

PYTHON ?= python3
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-slow dev check clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

demo: .venv/cpu.stamp
	.venv/bin/python runtime/demo.py

test: check
	.venv/bin/pytest

test-slow: .venv/dev.stamp
	.venv/bin/pytest -m slow

dev: .venv/dev.stamp

check: .venv/dev.stamp
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

clean:
	rm -rf .venv build demo *.egg-info

# One stamp for each set of extras; a change of pyproject.toml installs again.
.venv/%.stamp: pyproject.toml install.py
	@$(PYTHON) install.py $*
	@touch $@
