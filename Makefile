# make demo | make test | make lint; everything lives in .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint format clean peers bench-demo bench-codec bench-dp
.PHONY: bench-codec-utility bench-transport bench-sites soak fuzz proto

help:
	@echo "make demo       run a whole federation on this machine's own Python documentation"
	@echo "make test       run the tests, and what README shows"
	@echo "make test-fast  the tests that take seconds"
	@echo "make lint       ruff, ruff format, mypy --strict"
	@echo "make bench-demo what the demo reaches over three seeds (about half an hour)"
	@echo "make bench-codec, make fuzz: the codec against its peers, and against hostile bytes"
	@echo "make bench-dp   a step with DP beside one without, and beside Opacus (half an hour)"
	@echo "make bench-codec-utility  what chains cost in recovery (about half an hour)"
	@echo "make bench-transport  1 GB and 10 GB beside a bare gRPC stream, Flower and NVFlare"
	@echo "make bench-sites  a hundred sites in one run of fifty rounds (two minutes)"
	@echo "make soak       128 GB through an upload, then half an hour of kills (3/4 of an hour)"
	@echo "make clean      remove .venv and caches (keeps runs/)"

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "fedot needs Python 3.11 or newer; this is %d.%d. Use: make PYTHON=/path/to/python3.11" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the packages of constraints.txt into $(VENV) (once, some minutes)"
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) -e '.[test,dev]'
	@touch $@

demo: $(VENV)/.base
	$(BIN)/fedot demo $(ARGS)

# Two processes: much of the time tests wait for processes, disks and slow links of their own.
test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-fast: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What benchmarks are measured against, in an environment of its own.
.venv-peers/.done: benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	@touch $@

peers: .venv-peers/.done

bench-demo: $(VENV)/.base
	$(BIN)/python benchmarks/demo.py $(ARGS)

# One thread: two of them on a small model measure the scheduler.
bench-dp: $(VENV)/.base
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/dp.py $(ARGS)

runs/codec-inputs: $(VENV)/.base
	$(BIN)/python benchmarks/codec_inputs.py $@

bench-codec: runs/codec-inputs peers
	$(BIN)/python benchmarks/codec.py runs/codec-inputs --peers .venv-peers/bin/python $(ARGS)
	$(BIN)/python benchmarks/codec_memory.py --gb 4

# A folder with models/stories260k and data/ (Dolly, TinyStories); without it, the demo alone.
SHARED ?= ../shared

bench-codec-utility: $(VENV)/.base
	$(BIN)/python benchmarks/codec_utility.py $(if $(wildcard $(SHARED)/models),--shared $(SHARED)) $(ARGS)

bench-transport: $(VENV)/.base peers
	$(BIN)/python benchmarks/transport.py --peers .venv-peers/bin/python $(ARGS)

bench-sites: $(VENV)/.base
	$(BIN)/python benchmarks/many_sites.py $(ARGS)

soak: $(VENV)/.base
	$(BIN)/python benchmarks/soak.py $(ARGS)

fuzz: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python benchmarks/fuzz_codec.py -max_total_time=300 $(ARGS)

# What sites and server say to each other, as Python.
proto: $(VENV)/.dev
	$(BIN)/python -m grpc_tools.protoc -Ifedot/transport --python_out=fedot/transport --pyi_out=fedot/transport fedot.proto

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
