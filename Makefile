# `make demo` and `make test` are all that a newcomer needs; both set up .venv first, once.
.PHONY: demo test bench lint clean
.SUFFIXES:

READY := .venv/ready
PY := .venv/bin/python

demo: $(READY)  ## a whole federation on this machine; DATA=folder for real recordings, BASELINES=0 to leave them out
	@.venv/bin/kws demo

test: $(READY)  ## lint, types and every test
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest

bench: $(READY)  ## what a federation costs, beside Flower, NVIDIA FLARE, stock OpenFL and the limit; see docs/benchmarks.md
	@$(PY) benchmarks all

$(READY): pyproject.toml constraints.txt tools/setup.sh
	@tools/setup.sh

clean:
	rm -rf .venv
