# Two commands set everything up on a machine that has Python 3.11 or later and make:
#   make digits   trains, evaluates and reports on real data, into runs/digits
#   make test     runs the tests
# Beyond them: `make chaos` (the long tests), `make mixture`, `make compare`, `make twins`,
# `make students` and `make tune` (docs/mixture.md, docs/digits.md, docs/students.md, docs/tuning.md),
# `make accelerator` (benchmarks/README.md), `make docs`, `make notebook`, `make lint`, `make format`.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUN := runs/digits
FLAGS :=
DIGITS := $(PY) main.py --config=configs/digits.py --workdir=$(RUN) $(FLAGS)
MIXTURE := runs/mixture
COMPARE := $(PY) main.py $(FLAGS) --config=configs/digits_compare.py

PEER :=

.PHONY: install install-dev browser digits compare twins students tune mixture accelerator test chaos docs notebook lint format clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev .compilers/.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $$($(PYTHON) --version) is too old: Python 3.11 or later is needed; name it with make PYTHON=python3.11." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

REQUIRED := requirements.txt requirements-core.txt requirements-train.txt
$(VENV)/.installed: $(REQUIRED) | $(VENV)/bin/python
	@echo "Installs into $(VENV), 2.6 GB, without a word for a minute or more."
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(REQUIRED) requirements-dev.txt | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@touch $@ $(VENV)/.installed

# Beside the environment: in it JAX would look for a TPU and a GPU whenever it starts.
.compilers/.installed: requirements-compilers.txt | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .compilers -r $< || \
	  echo "note: without the compilers of TPUs and GPUs --mode=describe --target and its tests do not run" >&2
	@mkdir -p .compilers && touch $@

# The pages of the reports are tested in a browser that is a package of the system.
browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do command -v $$name >/dev/null && exit 0; done; \
	{ [ $$(id -u) = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium >/dev/null; } || \
	  echo "note: without Chromium (apt-get install chromium) the pages of the reports are not tested" >&2

# Each part goes on where it was stopped; what is finished is skipped. The early checkpoint comes first, so that there is
# a report within minutes.
digits: install
	$(DIGITS) --mode=train --config.train.num_steps=300
	$(DIGITS) --mode=eval --config.eval.steps='(300,)'
	$(DIGITS) --mode=train
	$(DIGITS) --mode=eval
	$(DIGITS) --mode=report
	@echo "Open $(RUN)/report/index.html"

# Every guidance rule on three training seeds, one after the other.
compare: install
	$(PY) main.py --config=configs/digits_classifier.py --workdir=runs/digits_classifier --mode=train
	set -e; for seed in 0 1 2; do \
	  $(COMPARE) --workdir=runs/compare$$seed --config.seed=$$seed --mode=train; \
	  for part in rules steps samplers; do \
	    $(COMPARE):$$part --workdir=runs/compare$$seed --config.seed=$$seed --mode=eval; \
	  done; \
	done
	$(COMPARE) --workdir=runs/compare0 --config.seed=0 --mode=compare --config.report.workdirs="('runs/compare1', 'runs/compare2')"
	@echo "Open runs/compare0/compare/index.html"

# Every rule beside plain guidance as strong as it, on the models of `make compare`.
twins: install
	$(PY) main.py --config=configs/digits_classifier.py --workdir=runs/digits_classifier --mode=train
	set -e; for seed in 2 1 0; do \
	  $(COMPARE) --workdir=runs/compare$$seed --config.seed=$$seed --mode=train; \
	  $(COMPARE):twins --workdir=runs/compare$$seed --config.seed=$$seed --mode=compare; \
	done
	$(COMPARE):twins --workdir=runs/compare0 --config.seed=0 --mode=compare --config.report.workdirs="('runs/compare1', 'runs/compare2')"
	@echo "Open runs/compare0/compare/index.html"

# A guided model becomes a student of one pass a step, and then of fewer and fewer steps; each is swept.
students: install
	set -e; for part in teacher guided 32 16 8 4 2 1; do \
	  for mode in train eval; do \
	    $(PY) main.py --config=configs/digits_student.py:$$part --workdir=runs/students/$$part $(FLAGS) --mode=$$mode; \
	  done; \
	done
	set -e; for mode in report compare; do \
	  $(PY) main.py --config=configs/digits_student.py:teacher --workdir=runs/students/teacher $(FLAGS) --mode=$$mode \
	    --config.report.workdirs="('runs/students/guided', 'runs/students/32', 'runs/students/16', 'runs/students/8', 'runs/students/4', 'runs/students/2', 'runs/students/1')"; \
	done
	@echo "Open runs/students/teacher/report/index.html and runs/students/teacher/compare/index.html"

# The best setting of the early checkpoint of `make digits`, within a budget.
tune: install
	$(PY) main.py --config=configs/digits_tune.py --workdir=$(RUN) $(FLAGS) --mode=tune

mixture: install
	$(PY) main.py --config=configs/mixture.py --workdir=$(MIXTURE) --mode=report

# Measures what asks for a TPU or a GPU, in 9 minutes; make accelerator PEER=guided-diffusion times PyTorch beside it.
accelerator: install
	$(PY) benchmarks/accelerator.py --out=runs/accelerator --peer=$(PEER)

test: install-dev browser
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The long tests: real processes, killed and stopped again and again, and walks through whole pages and the tutorial.
chaos: install-dev
	$(PY) -m pytest -n 2 --dist loadgroup -m chaos

# The documentation as a site of pages, in site/; what is wrong in it is an error.
docs: install-dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build
	@echo "Open site/index.html"

# Runs the tutorial and puts the outputs into it, in two or three minutes.
notebook: install-dev
	$(PY) -m tests.tutorial

lint: install-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: install-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .compilers
