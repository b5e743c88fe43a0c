# Two commands do everything from a fresh clone: `make glue` runs the main experiment, `make test` runs the tests.
# Needs Python 3.11 or newer with pip, and make.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
DEV    := $(VENV)/.dev
BENCH  := $(VENV)/.harness
SITE   := $(VENV)/.site
EVERY  := $(VENV)/.every
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false
# pip leaves compiling to the first import, which is told here to keep what it has compiled, whatever the
# environment says: 13 s of a processor less for every process that imports what runs need.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help glue test test-notebooks test-units check format hooks readme lab bench execute verdict appendix clean

help:
	@echo "make glue      prune minilm to sparsity 0.8, fine-tune it on film reviews, compare with dense"
	@echo "               SPARSITY=0.5 TASK=sarcasm MODE=dense_frozen MODEL=mpnet SEED=42 ARGS='epochs=3 max_train=0'"
	@echo "               a second time it shows what it has found; FORCE=1 runs it again"
	@echo "make test      nbdev_test, pytest, and make check"
	@echo "make check     ruff, the measure of the notebooks, and that generated files are up to date"
	@echo "make format    ruff format and its safe repairs, then nbdev_export and nbdev_clean"
	@echo "make hooks     check style at every commit, merge notebooks cell by cell"
	@echo "make bench     ours against the anchors, written to benchmarks/results/ (not a test; half an hour; ONLY=scoring for one)"
	@echo "make verdict   render 07-09 and the README from the study's records and print the tables of verdicts"
	@echo "make appendix  render notebooks, records and reference as a web site, site/index.html"
	@echo "make lab       open the notebooks in JupyterLab"
	@echo "make readme    render README.md from nbs/index.ipynb"
	@echo "make execute   run the library notebooks and store their outputs (NB=23_pruning for one)"
	@echo "make clean     remove the environment; records and the cache of models and data stay"

# What runs need. Debian's python3 may lack ensurepip; then pip itself puts pip into the environment.
$(READY): settings.ini pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed and none was found (make PYTHON=/path/to/python)"; exit 1; }
	@test -x $(BIN)/python || { echo "creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || \
	  { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install -q -c constraints.txt pip; }; }
	@echo "installing pinned packages into $(VENV) (a minute or two the first time)"
	@$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e .
	@touch $@

# What tests and notebooks need beside it, the bridge to lm-evaluation-harness, and the site.
$(DEV): EXTRA = dev
$(BENCH): EXTRA = harness
$(SITE): EXTRA = site
$(EVERY): EXTRA = dev,harness,site
$(DEV) $(BENCH) $(SITE) $(EVERY): $(READY)
	@echo "installing packages for $(EXTRA) into $(VENV)"
	@$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[$(EXTRA)]'
	@touch $@

TASK_ARGS = $(if $(SPARSITY),sparsity=$(SPARSITY)) $(if $(TASK),task=$(TASK)) $(if $(MODE),mode=$(MODE)) $(if $(MODEL),model=$(MODEL)) $(if $(SEED),seed=$(SEED))
SPARSITY ?= 0.8

glue: $(READY)
	@$(BIN)/junkdna run 02_glue $(TASK_ARGS) $(ARGS) --own $(if $(FORCE),--force)

test: $(EVERY)
	@touch $(DEV) $(BENCH) $(SITE)
	@$(MAKE) --no-print-directory -j 2 test-notebooks test-units
	@$(MAKE) --no-print-directory check

# Both at once: many tests wait for processes, and the notebooks do not. pytest executes 07 to 09 and index, and
# compares what they show.
test-notebooks: $(EVERY)
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 1 --do_print --timing --skip_file_re '^([_.]|0[789]_|index)'

test-units: $(EVERY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 40

# README.md is index.ipynb as Markdown, with the links made relative to the root.
RENDER = $$BIN/jupyter-nbconvert --log-level ERROR --to markdown --no-input --stdout nbs/index.ipynb | sed -E 's|\]\(([0-9a-z_]+\.ipynb)|](nbs/\1|g; s|\]\(\.\./|](|g' | cat -s

# Style first; then export, clean and render again in a copy: nothing may change.
check: $(DEV)
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet . || { echo "error: run make format; what is left is for the hand"; exit 1; }
	@$(BIN)/python tests/measure_notebooks.py
	@rm -rf .tmp-check && mkdir .tmp-check && cp -r nbs junkdna_nb settings.ini README.md .tmp-check/
	@cd .tmp-check && ../$(BIN)/nbdev_export && ../$(BIN)/nbdev_clean && { BIN=../$(BIN); $(RENDER) > README.md; }
	@for f in nbs junkdna_nb README.md; do diff -r -q -x __pycache__ -x .ipynb_checkpoints -x .last_checked -x '_proc' $$f .tmp-check/$$f || bad=1; done; rm -rf .tmp-check; \
	  test -z "$$bad" && echo "generated files are up to date" || { echo "error: run nbdev_export, nbdev_clean and make readme, then commit"; exit 1; }

format: $(DEV)
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
	@$(BIN)/nbdev_export && $(BIN)/nbdev_clean

hooks: $(DEV)
	$(BIN)/pre-commit install
	$(BIN)/nbdev_install_hooks

readme: $(DEV)
	@BIN=$(BIN); $(RENDER) > README.md

NB ?= $(basename $(notdir $(wildcard nbs/[1-5]*.ipynb)))
execute: $(DEV)
	@for n in $(NB); do echo $$n; (cd nbs && ../$(BIN)/jupyter-nbconvert --log-level ERROR --to notebook --execute --inplace $$n.ipynb) || exit 1; \
	  $(BIN)/python -c "import sys, nbformat; from junkdna_nb.machinery.runner import small_outputs; p = sys.argv[1]; nbformat.write(small_outputs(nbformat.read(p, 4)), p)" nbs/$$n.ipynb; done
	@$(BIN)/nbdev_export && $(BIN)/nbdev_clean

# The analysis notebooks and the landing page read records only; figures/ and README.md follow from them.
verdict: $(DEV)
	@for n in 07_true_gem 08_quantization 09_difficulty index; do echo $$n; (cd nbs && ../$(BIN)/jupyter-nbconvert --log-level ERROR --to notebook --execute --inplace $$n.ipynb) || exit 1; \
	  $(BIN)/python -c "import sys, nbformat; from junkdna_nb.machinery.runner import small_outputs; p = sys.argv[1]; nbformat.write(small_outputs(nbformat.read(p, 4)), p)" nbs/$$n.ipynb; done
	@$(BIN)/nbdev_clean
	@BIN=$(BIN); $(RENDER) > README.md
	@$(BIN)/junkdna verdict

# The notebooks as they are stored, as a web site.
appendix: $(SITE)
	@$(BIN)/junkdna appendix

bench: $(READY) $(BENCH)
	@$(BIN)/python benchmarks/run.py $(ONLY)

lab: $(DEV)
	$(BIN)/jupyter-lab nbs

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache
