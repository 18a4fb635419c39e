# All the set-up there is. `make` alone explains the targets.
#
# Paths are relative to this folder, so that a checkout in a folder with spaces in its name works too.
# Only pip and venv are used, and PyTorch is installed first and pinned: see docs/decisions.md.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint weights venv clean

# An interpreter to use instead of the first one that fits: make demo PYTHON=/path/to/python3.12
PYTHON ?=
# -qq: errors are shown, warnings about the order of somebody's indexes are not
PIP := .venv/bin/python -m pip install --no-input --progress-bar off -qq -c constraints.txt
say := @printf '\n== %s\n'

help:
	@echo "leadline: how many bits push a frozen language model into a behaviour?"
	@echo
	@echo "  make demo     set up, fetch the weights (93 MB), run the main job, print the table, write the page"
	@echo "  make test     set up with the development tools, fetch the weights, run every check and test"
	@echo
	@echo "  make lint     ruff, mypy and the import rules alone"
	@echo "  make weights  fetch and check the weights of the embedded model alone"
	@echo "  make venv     make .venv and install leadline alone"
	@echo "  make clean    remove .venv and the tools' caches (weights and runs stay)"
	@echo
	@echo "Needed: Python 3.11 or newer with its venv module, and a package index that pip reaches."
	@echo "Nothing is installed outside .venv; nothing is installed twice."

demo: .venv/.installed weights
	$(say) 'Measuring how far a reply lies from SmolLM2. 14 to 27 minutes on two cores; Ctrl-C is safe, and the same command continues.'
	@.venv/bin/leadline measure

test: .venv/.development weights lint
	$(say) 'Tests: about 15 minutes on two cores, a file at a time on each.'
	@.venv/bin/python -m pytest --cov -n 2 --dist loadfile

lint: .venv/.development
	$(say) 'Style: ruff (seconds).'
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	$(say) 'Types: mypy, strict (under a minute).'
	@.venv/bin/mypy
	$(say) 'Who may import whom: import-linter (seconds).'
	@.venv/bin/lint-imports

weights: .venv/.installed
	$(say) 'Weights of SmolLM2-135M-Instruct: 93 MB on the first call (a minute or two), then taken from the cache and checked.'
	@.venv/bin/python -m leadline.smollm2

venv: .venv/.installed

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage .coverage.*

# The stamps below hold the set-up: a step runs again only when what it depends on has changed.

.venv/.made:
	$(say) 'Making .venv (seconds).'
	@found=; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3); do \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    found=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "No Python of version 3.11 or newer with its venv module was found (tried: $(or $(PYTHON),python3.11 python3.12 python3.13 python3))."; \
	  echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name one: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.12"; \
	  exit 2; \
	fi; \
	"$$found" -c 'import sys; print("Using", sys.executable, "- Python", sys.version.split()[0])' && \
	"$$found" -m venv .venv
	@touch $@

.venv/.installed: .venv/.made pyproject.toml constraints.txt
	$(say) 'Installing PyTorch, the pinned version (one to several minutes: 190 MB where pip finds a CPU build, more where it does not).'
	@$(PIP) torch
	$(say) 'Installing leadline and what it runs on (about two minutes).'
	@$(PIP) -e .
	@touch $@

.venv/.development: .venv/.installed
	$(say) 'Installing the development tools (about a minute).'
	@$(PIP) -e '.[dev]'
	@# An oracle of the tests. It works with our transformers and asks for an older one, so it comes alone.
	@$(PIP) --no-deps nanogcg
	@touch $@
