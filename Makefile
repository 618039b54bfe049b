# LLM=cpu (default) or LLM=gpu chooses the vLLM build. PYTHON makes the environment.
PYTHON ?= python3
LLM ?= cpu
STAMP := .venv/.installed-$(LLM)
LOCKS := requirements/core.txt requirements/llm-$(LLM).txt requirements/dev.txt

.PHONY: install quickstart test test-fast coverage lint lock
install: $(STAMP)

# The lock files are complete, so nothing is resolved (--no-deps). torch comes first and with its
# dependencies, because those differ between its CPU and CUDA builds; so do those of vLLM for GPUs.
$(STAMP): $(LOCKS) pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q $$(grep -h '^torch==' requirements/core.txt)
	.venv/bin/python -m pip install -q --no-deps $(addprefix -r ,$(filter-out %/llm-gpu.txt,$(LOCKS)))
ifeq ($(LLM),gpu)
	.venv/bin/python -m pip install -q -c requirements/core.txt -r requirements/llm-gpu.txt
endif
	.venv/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

quickstart: $(STAMP)
	.venv/bin/raysys assets fetch
	.venv/bin/raysys run configs/quickstart.toml

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# Without Ray and the language model, two at a time: for between two edits.
test-fast: $(STAMP)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 -m "not ray and not engine"

# Those that start Ray or the language model have the machine for themselves.
test: $(STAMP) lint
	.venv/bin/raysys assets fetch
	$(MAKE) test-fast
	.venv/bin/python -m pytest -m "ray or engine"

# Which lines of raysys/ the tests run, workers of Ray included.
coverage: $(STAMP)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 -m "not ray and not engine" --cov --cov-report=
	.venv/bin/python -m pytest -m "ray or engine" --cov --cov-append --cov-report=
	.venv/bin/python -m coverage report --skip-covered --sort=cover

# Writes requirements/ from what .venv holds, after a change of pyproject.toml.
lock:
	.venv/bin/python requirements/lock.py
