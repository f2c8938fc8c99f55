# make sweep [ARGS="--regularizers l2,ssim"]   run the main job
# make test                                    everything CI runs
# make check                                   lint, types and the fast tests
PYTHON ?= python3
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
	.venv/bin/python -m pytest -m slow

check: .venv/test.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(FAST)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run.done: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	touch $@

.venv/test.done: .venv/run.done
	$(PIP) install -q -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf .venv *.egg-info
