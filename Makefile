# Everything needs only make and a Python 3.11+; the rest installs itself into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test test-slow check bench docs lock clean
.DEFAULT_GOAL := install
# Where it is set, every start compiles torch and timm anew: 20 s in place of 5.
unexport PYTHONDONTWRITEBYTECODE

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("vitdistill needs Python 3.11 or newer; found %s. Set PYTHON=..." % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $(STAMP)

demo: install
	$(BIN)/vitdistill demo maskedkd --out runs/demo --overwrite

# Two processes, one thread each: the models in the tests are too small to share threads.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Those on bundled data; masked_teacher_fashion needs benchmarks/fashion_mnist.py first.
STUDIES := $(filter-out %_fashion,$(patsubst benchmarks/studies/%.yaml,%,$(wildcard benchmarks/studies/*.yaml)))

bench: install
	$(BIN)/python benchmarks/maskedkd_step.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/tinymim_step.py
	$(BIN)/python benchmarks/mvd_step.py
	$(BIN)/python benchmarks/video_decode.py
	@for study in $(STUDIES); do \
		$(BIN)/vitdistill sweep benchmarks/studies/$$study.yaml --out runs/studies/$$study --jobs 2 \
			--report benchmarks/results/$$study.md || exit; \
	done

docs: install
	$(BIN)/python docs/build.py

lock:
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --all-extras \
		--python-version 3.11 pyproject.toml -o requirements.lock

clean:
	rm -rf .venv build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis src/*.egg-info
