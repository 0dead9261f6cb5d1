# Every target works from a bare clone: `make setup` brings what is missing by itself.
#
#   make demo    three boxes become one Kubernetes cluster on this machine
#   make test    every test that this machine can run; names what it cannot
#   make interop the recordings of EdgeVPN, and a live matrix beside it: EDGEVPN_BIN=... EDGEVPN_OLD_BIN=... make interop
#   make check   formatting, lint, types
#   make bench   figures beside their peers
#   make fuzz    10 000 malformed inputs for every protocol that the daemon serves
#   make soak    ten minutes, three nodes, a token that rotates every 30 s

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test interop go-programs check format bench fuzz soak clean

PYTHON ?= $(shell command -v /usr/bin/python3 || command -v python3)
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
RUN := .venv/bin
WORKERS ?= $(shell echo $$(( $$(nproc) * 2 )))

help:
	@sed -n 's/^#   //p' Makefile

# uv is taken from PATH; where it is missing a private virtual environment gets it from the package index.
.tools/bin/uv:
	@if [ -z "$(PYTHON)" ]; then echo "make: Python 3.11 or newer is missing: install it (Debian: apt-get install python3 python3-venv)" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11: install a newer Python or pass PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv .tools 2>/dev/null || { rm -rf .tools; echo "make: $(PYTHON) cannot make virtual environments: install its venv package (Debian: apt-get install python3-venv) or uv" >&2; exit 1; }
	@.tools/bin/pip install --quiet --disable-pip-version-check uv || { rm -rf .tools; echo "make: uv could not be installed from the package index: check the network, or install uv and put it on PATH" >&2; exit 1; }

ifeq ($(UV),.tools/bin/uv)
UV_DEP := .tools/bin/uv
endif

.venv/.synced: pyproject.toml uv.lock $(UV_DEP)
	@$(UV) sync --locked --quiet --python "$(PYTHON)"
	@touch .venv/.synced

setup: .venv/.synced

demo: setup
	@$(RUN)/kairos-p2p lab demo

# The Go peer and plugin host of tests/interop/go; nothing is done when they are newer than their sources. `make test`
# builds them too, beside the tests that do not need them.
go-programs: setup
	@$(RUN)/python tests/interop/go/build.py || [ $$? -eq 3 ] # 3: this machine cannot, which the tests then say

# Most tests wait for processes and clocks, so twice as many workers as cores; a file stays with one worker.
test: setup
	@$(RUN)/python -m pytest -n $(WORKERS) --dist loadfile

# What the given binaries did not allow is named at the end (EDGEVPN_BIN: EdgeVPN v0.35, EDGEVPN_OLD_BIN: v0.30.2). The
# tables go into the documentation when every row ran.
interop: go-programs
	@KAIROS_P2P_API_DIFFERENCES=docs/reference/api-differences.md \
		KAIROS_P2P_INTEROP_MATRIX=docs/reference/interop-matrix.md \
		$(RUN)/python -m pytest -n $$(nproc) --dist loadfile tests/interop tests/net/test_mesh_go.py

check: setup
	@$(RUN)/ruff format --check .
	@$(RUN)/ruff check .
	@$(RUN)/mypy

format: setup
	@$(RUN)/ruff format .
	@$(RUN)/ruff check --fix .

bench: setup
	@$(RUN)/python -m bench

fuzz: setup
	@KAIROS_P2P_FUZZ=10000 $(RUN)/python -m pytest tests/net -k fuzz

soak: setup
	@$(RUN)/python -m bench.soak --minutes 10

clean:
	rm -rf .venv .tools .mypy_cache .ruff_cache .hypothesis dist build
