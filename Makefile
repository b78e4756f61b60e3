# Each target works as the first command after a clone, with python3, pip, gcc and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := media,plot,train,hf,eval,onnx,voice,parquet,ray,web,serve,dev

.PHONY: setup demo check test test-all peers bench docs clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

demo: setup  ## encode and decode a real sample with the embedded codec
	$(BIN)/vokens demo

check: setup  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

test: check  ## what CI runs
	$(BIN)/python -m pytest -n 2

test-all: check peers  ## with the long checks and parity with the published packages
	$(BIN)/python -m pytest -n 2 -m ""

peers: setup  ## the published packages, without the dependencies they wrongly ask for
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt --group peers
	test -d $(VENV)/peers-s3gen/chatterbox || $(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/peers-s3gen --group peers-s3gen

bench: setup peers  ## the tables of docs/benchmarks.md
	$(BIN)/python benchmarks/speechtokenizer.py

docs: setup  ## the site, in build/site; any warning is an error
	$(BIN)/python -m pip install --quiet -c constraints.txt --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
