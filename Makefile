# make demo       set everything up and run the main job on a drawn sample set
# make test       set everything up, check the code and run the tests
# make test-slow  run the tests that take minutes: real photographs, large networks, clusters
# make check      lint, format, import rules, types, known vulnerabilities
# make test-gpu   run the tests that need CUDA
# make test-consumers  open the exports in OpenVINO, OpenCV, onnxruntime-web and plain PyTorch, and
#                 compare (minutes); CONSUMERS='--runs runs/cnn' adds options
# make benchmark  compare with other tools and with the limits (45 minutes); BENCHMARK=... adds
#                 options, such as BENCHMARK='--images FOLDER --only limits'
# make clean      remove what these targets made, except the environments

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS := $(VENV)-peers
RUNTIMES := $(VENV)-consumers
ONNXRUNTIME_WEB := 1.30.0
TLTOOLS := $(abspath $(BIN)/tltools)
# VGG16's weights for the demo: imagenet (torchvision downloads them), or a local file.
WEIGHTS ?= imagenet
WEIGHTS_PATH := $(if $(filter imagenet,$(WEIGHTS)),imagenet,$(abspath $(WEIGHTS)))
CLASSES := non-emergency,emergency

.PHONY: demo test test-slow check test-gpu test-consumers benchmark clean
.DELETE_ON_ERROR:

# Reinstalled when a dependency changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 15) else "tltools needs Python 3.11 to 3.14, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip uninstall -qq --yes tltools  # our old name, and another project's
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Runs each command as a user would type it, in the folder demo/.
demo: $(VENV)/.installed
	rm -rf demo && mkdir demo
	cd demo && $(TLTOOLS) sample
	cd demo && $(TLTOOLS) train sample --class-names $(CLASSES) --model cnn --batch-size 32
	cd demo && $(TLTOOLS) train sample --class-names $(CLASSES) --model vgg16 --weights $(WEIGHTS_PATH) \
	  || echo "VGG16 is left out and the demo continues (make demo WEIGHTS=FILE adds it)"
	cd demo && $(TLTOOLS) export --format all --precision all
	cd demo && $(TLTOOLS) classify sample/images
	cd demo && $(TLTOOLS) bench --rounds 1 --iterations 10 --batch-sizes 1,8
	cd demo && $(TLTOOLS) report --images sample/images
	@echo
	@echo "Results in demo/:"
	@echo "  sample/          300 drawn vehicles and their labels"
	@echo "  runs/            trained models: checkpoint, card, history, curves, confusion matrix"
	@echo "  exports/         verified ONNX, PT2 and TorchScript files, and the bench results (bench-*.md)"
	@echo "  predictions.csv  one row per image"
	@echo "  report.html      all results on one page, for any browser"
	@echo "Next, with your own images (a CSV, or a folder of class folders):"
	@echo "  . $(VENV)/bin/activate && tltools inspect DATA && tltools train DATA"

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python tests/audit.py

# A process for each core, each on one thread: threads of several would wait for each other's cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto \
	  --dist loadfile --no-loadscope-reorder

test: check
	$(PYTEST) -m 'not slow and not gpu'

test-slow: $(VENV)/.installed
	$(PYTEST) -m 'slow and not gpu'

test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu

# The peers have their own environment, so that tltools cannot depend on their packages.
$(PEERS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	@touch $@

benchmark: $(VENV)/.installed $(PEERS)/.installed
	$(PEERS)/bin/python benchmarks/run.py --python $(abspath $(BIN)/python) $(BENCHMARK)

# Without tltools: what opens its exports there knows nothing of it. Node comes from PyPI too.
$(RUNTIMES)/.installed: Makefile benchmarks/consumers.txt
	$(PYTHON) -m venv $(RUNTIMES)
	$(RUNTIMES)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/consumers.txt
	PATH="$(abspath $(RUNTIMES)/bin):$$PATH" npm install --prefix $(RUNTIMES) --silent --no-audit \
	  --no-fund --ignore-scripts onnxruntime-web@$(ONNXRUNTIME_WEB)
	@touch $@

test-consumers: $(VENV)/.installed $(RUNTIMES)/.installed
	$(BIN)/python benchmarks/consumers.py --venv $(RUNTIMES) $(CONSUMERS)

clean:
	rm -rf demo runs sample build dist .pytest_cache .ruff_cache
