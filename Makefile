# Each target works as the first command after a clone, with python3, pip, gcc and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := media,plot,train,hf,eval,onnx,espeak,parquet,ray,web,serve,dev
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: setup demo check test test-all peers bench docs release-check clean

setup: $(VENV)/.installed

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e ".[plot]"
	touch $@

$(VENV)/.installed: $(VENV)/.core
	$(PIP) --upgrade pip
	$(PIP) -e ".[$(EXTRAS)]"
	touch $@

demo: $(VENV)/.core  ## the core and matplotlib alone: encode and decode a real sample, and say a sentence, with what is embedded
	$(BIN)/vokens demo

check: setup  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

test: check  ## what CI runs
	$(BIN)/python -m pytest -n 2

test-all: check peers  ## with the long checks, the evaluator models of docs/jobs/metrics.md and parity with the published packages
	$(BIN)/python -m pytest -n 2 -m ""

peers: setup  ## the published packages, without the dependencies they wrongly ask for
	$(PIP) --no-deps --group peers
	test -d $(VENV)/peers-s3gen/chatterbox || $(PIP) --no-deps --target $(VENV)/peers-s3gen --group peers-s3gen

bench: setup peers  ## the rows of docs/systems/benchmarks.md, for this machine: hours
	for name in speechtokenizer s3tokenizer s3gen socodec learnable; do \
	  $(BIN)/python benchmarks/$$name.py --json build/benchmarks/$$name.json || exit 1; \
	done

docs: setup  ## the site, in build/site; any warning is an error
	$(PIP) --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

release-check: setup  ## build sdist and wheel, and try the wheel where nothing else is installed
	.ci/release-check $(BIN)/python

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
