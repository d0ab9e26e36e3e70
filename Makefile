# fedsim's commands; `make` lists them. Plain POSIX shell and make: Linux and macOS alike.
#
#   PYTHON=python3.12 make demo        picks the interpreter that .venv is made with
#   PIP_FLAGS=... make demo            more flags for pip (a mirror, a folder of wheels)

VENV = .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
TOOLS = $(VENV)/.installed-dev
SITE = $(VENV)/.installed-docs
TRACKERS = $(VENV)/.installed-trackers
PIP = $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.PHONY: help demo test test-all data bench results docs clean

help:
	@echo 'make demo      set up .venv, run scenarios/quickstart.toml, show what came of it'
	@echo 'make test      lint, format, types, layers, tests (not the slow ones)'
	@echo 'make test-all  the same with the slow tests, and those of MLflow and TensorBoard, which it installs'
	@echo 'make data      bring Fashion-MNIST and MNIST to where fedsim looks (42 MB)'
	@echo 'make bench     measure fedsim beside bare PyTorch, Flower, scipy and Opacus (BENCH_FLAGS=--quick: without Flower and Opacus)'
	@echo 'make results   run the published benchmark in runs/published and write docs/results/leaderboard; resumable'
	@echo 'make docs      write the documentation as a site to build/site; every link is checked'
	@echo 'make clean     remove .venv and caches; runs/ and data sets stay'

demo: $(INSTALLED)
	@rm -rf runs/quickstart
	@$(BIN)/fedsim run quickstart --out runs/quickstart

test: $(TOOLS)
	@$(MAKE) -s check
	@$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

test-all: $(TOOLS) $(TRACKERS)
	@$(MAKE) -s check
	@$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal
	@$(BIN)/python -m pytest -m slow

.PHONY: check
check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(INSTALLED)
	@$(BIN)/python benchmarks/run.py $(BENCH_FLAGS)

results: $(INSTALLED)
	@$(BIN)/fedsim bench bench/published --out runs/published $(RESULTS_FLAGS)
	@$(BIN)/fedsim leaderboard runs/published --out docs/results/leaderboard

docs: $(SITE)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'build/site/index.html is the first page; its search needs a server: $(BIN)/python -m http.server -d build/site'

data: $(INSTALLED)
	@$(BIN)/python -m fedsim.data.fetch

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist

$(BIN)/python:
	@python=''; for most in 13 99; do for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
		if [ -z "$$python" ] && \
			$$candidate -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $$most))" 2>/dev/null; \
		then python=$$candidate; fi; \
	done; done; \
	if [ -z "$$python" ]; then \
		echo 'fedsim needs Python 3.11 or later; found none on PATH.' >&2; \
		echo 'Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.12;' >&2; \
		echo 'elsewhere: PYTHON=/path/to/python make demo' >&2; exit 1; \
	fi; \
	if ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
		echo "$$python cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; \
	fi; \
	echo "Making .venv with $$($$python --version)"; \
	$$python -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt $(BIN)/python
	@[ -e $@ ] || $(MAKE) -s say-download
	$(PIP) -e .
	@touch $@

$(TOOLS): pyproject.toml constraints.txt $(BIN)/python
	@[ -e $(INSTALLED) ] || $(MAKE) -s say-download
	$(PIP) -e '.[dev]'
	@touch $(INSTALLED) $(SITE) $@

$(SITE): pyproject.toml constraints.txt $(BIN)/python
	@[ -e $(INSTALLED) ] || $(MAKE) -s say-download
	$(PIP) -e '.[docs]'
	@touch $(INSTALLED) $@

$(TRACKERS): pyproject.toml constraints.txt $(BIN)/python
	@[ -e $(INSTALLED) ] || $(MAKE) -s say-download
	$(PIP) -e '.[trackers]'
	@touch $(INSTALLED) $@

.PHONY: say-download
say-download:
	@echo 'Installing into .venv, this once: downloads about 600 MB with a CPU build of PyTorch, 2.3 GB on disk.'
	@echo "(Linux's default PyTorch brings its CUDA libraries: 2.5 GB more. A CPU build that pip finds, say through"
	@echo 'PIP_FLAGS="--find-links FOLDER", is taken instead.)'
