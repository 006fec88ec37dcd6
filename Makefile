# Two commands set themselves up: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_RUN := runs/demo

.PHONY: demo test check soak clean

# Python's own message for a version that is too old is long; this one says what to do.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "leanfront needs Python 3.11 or newer, this is %s; give another with make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps onnx2torch  # without torchvision: see pyproject.toml
	@touch $@

# The main job on scikit-learn's digits: search, front, report, pick with export and verification.
demo: $(VENV)/ready
	rm -rf $(DEMO_RUN)
	$(BIN)/leanfront search examples/digits/search.toml --run $(DEMO_RUN)
	$(BIN)/leanfront front $(DEMO_RUN)
	$(BIN)/leanfront report $(DEMO_RUN)
	$(BIN)/leanfront pick $(DEMO_RUN)

# Two at a time with one thread each (more would wait for each other), each file's tests together: they share
# what they make.
test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not slow' -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Minutes to hours: what is too long for every change.
soak: $(VENV)/ready
	$(BIN)/python -m pytest -q -m slow

clean:
	rm -rf $(VENV) runs/demo build *.egg-info
