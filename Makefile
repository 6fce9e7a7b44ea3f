# make demo       a fresh clone to two denoised sample photos, on a CPU
# make test       format, lint, types and tests; none needs a GPU
# make test-slow  the minutes-long tests
# make tables     DATA=folder: the bundled models on the test sets below it, into docs/results.md
# make plugin     TensorRT's C++ plugin, into build/tensorrt_v3; needs nvcc, CMake and TensorRT's headers
# make dev        what training, export and the tests need, into .venv

PYTHON ?= python3
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-slow tables plugin dev check clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

demo: .venv/cpu.stamp
	.venv/bin/python runtime/demo.py

test: check
	.venv/bin/pytest

test-slow: .venv/dev.stamp
	.venv/bin/pytest -m slow

tables: .venv/dev.stamp
	$(if $(DATA),,$(error DATA: expected a folder with test sets, found none: make tables DATA=folder))
	.venv/bin/python train/tables.py --data '$(DATA)'

plugin:
	cmake --fresh -S plugins/tensorrt_v3 -B build/tensorrt_v3
	cmake --build build/tensorrt_v3 --parallel

dev: .venv/dev.stamp

check: .venv/dev.stamp
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/clang-format --dry-run --Werror $(shell find plugins examples tests -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.h')
	.venv/bin/mypy

clean:
	rm -rf .venv build demo *.egg-info

# One stamp for each set of extras; a change of pyproject.toml installs again.
.venv/%.stamp: pyproject.toml install.py
	@$(PYTHON) install.py $*
	@touch $@
