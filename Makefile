# `make demo` and `make test` are all that a newcomer needs; both set up .venv first, once.
.PHONY: demo test test-all bench clean
.SUFFIXES:

READY := .venv/ready
PY := .venv/bin/python

demo: $(READY)  ## a whole federation on this machine; DATA=folder for real recordings, MODEL=name or folder, PRESET=name, BASELINES=0
	@.venv/bin/kws demo

CHECK = $(PY) -m ruff format --check . && $(PY) -m ruff check . && $(PY) -m mypy && $(PY) -m pytest
test: $(READY)  ## lint, types and every test but those at true scale
	$(CHECK) -m "not slow"

test-all: $(READY)  ## lint, types and every test
	$(CHECK)

bench: $(READY)  ## what a federation costs, beside Flower, NVIDIA FLARE, stock OpenFL and the limit; see docs/benchmarks.md
	@$(PY) benchmarks all

$(READY): pyproject.toml constraints.txt tools/setup.sh
	@tools/setup.sh

clean:
	rm -rf .venv
