# One command per task; each makes the environment in .venv first where it is missing or out of date.

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2

PY := .venv/bin/python
STAMP := .venv/.installed
TOO_OLD := Python 3.11 or newer is needed, and $(PYTHON) is not: name another one, as in "make train PYTHON=python3.12".

.DEFAULT_GOAL := help
.PHONY: help train test lint install

help: ## this list
	@echo 'usage: make TARGET [ARGS="..."] [PYTHON=python3.12] [WORKERS=2]'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' Makefile

train: $(STAMP) ## distil a draft and measure it: python train.py ARGS, e.g. ARGS="draft=depth8 seed=1"
	@$(PY) train.py $(ARGS)

# A worker takes whole files, so that what the tests of one share is made once; each computes with one thread.
test: $(STAMP) ## run the tests: pytest ARGS, e.g. ARGS="-k decode", in WORKERS processes (2)
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(STAMP) ## ruff's checks and its formatting, changing nothing
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

install: $(STAMP) ## make .venv, and nothing more

# The stamp is the marker written at the start, renamed at the end: an interrupted installation leaves none, so the next
# run goes on with it, and a file edited meanwhile is newer than the stamp. An environment that is there is only ever
# added to, never deleted, for something may be running in it. The lock lives in file descriptor 9, so it goes with the
# processes that hold it, however they end. torch comes first, so that nothing else can choose its version.
$(STAMP): pyproject.toml constraints.txt
	@set -eu; \
	recent='import sys; sys.exit(sys.version_info < (3, 11))'; \
	py=$(PY); $$py -c "$$recent" 2>/dev/null || py='$(PYTHON)'; \
	$$py -c "$$recent" 2>/dev/null || { echo '$(TOO_OLD)' >&2; exit 1; }; \
	mkdir -p .venv; exec 9>.venv/.lock; \
	if ! $$py -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; then \
	  echo 'Another make is installing into .venv: waiting for it'; \
	  $$py -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'; \
	  if [ $(STAMP) -nt pyproject.toml ] && [ $(STAMP) -nt constraints.txt ]; then exit 0; fi; \
	fi; \
	touch .venv/.installing; \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  echo 'Making the environment in .venv (once; the packages take some minutes)'; \
	  $(PYTHON) -m venv .venv; \
	fi; \
	if ! $(PY) -c "$$recent"; then \
	  echo '.venv was made with a Python older than 3.11: delete it and run make again.' >&2; exit 1; \
	fi; \
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt torch; \
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	mv .venv/.installing $(STAMP)
