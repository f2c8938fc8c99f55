# make sweep [ARGS="--regularizers l2,ssim"]   run the main job
# make test                                    everything CI runs
# make check                                   lint, types and the fast tests

# The interpreter: PYTHON=…, or the first of these that runs and is 3.11 to 3.14.
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
NAMES = python3 python3.14 python3.13 python3.12 python3.11
PYTHON ?= $(or $(firstword $(foreach name,$(NAMES),$(shell $(name) -c '$(SUPPORTED)' 2>/dev/null && echo $(name)))),python3)

FAST = .venv/bin/python -m pytest -m "not slow" -n auto --dist loadfile
PIP = .venv/bin/python -m pip --disable-pip-version-check

.PHONY: sweep test check clean

sweep: .venv/run.done
	.venv/bin/python sweeps/all_regularizers.py $(ARGS)

test: .venv/test.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(FAST)
	.venv/bin/python -m pytest -m slow -n auto tests/trainer tests/regularizers
	.venv/bin/python -m pytest -m slow --ignore=tests/trainer --ignore=tests/regularizers

check: .venv/test.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(FAST)

.venv/bin/python:
	@python='$(PYTHON)'; "$$python" -c '$(SUPPORTED)' 2>/dev/null || { \
	  echo "error: $$python is $$("$$python" -V 2>&1 | grep ^Python || echo not there); 3.11 to 3.14 is needed:" \
	    "make PYTHON=/path/to/python3.12" >&2; exit 2; }
	'$(PYTHON)' -m venv .venv || { rm -rf .venv; exit 2; }

.venv/run.done: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	touch $@

.venv/test.done: .venv/run.done
	$(PIP) install -q -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf .venv *.egg-info
