# Every target is self-sufficient: it creates the virtual environment that it needs (.venv), from only Python >= 3.10.
#
#   Everyday:
#     make test               run the tests, two to three minutes on two cores
#     make lint               check format, style, wording, types, compiler warnings and machine code
#     make format             format the Python and the C++
#     make docs               build the documentation site with the API reference: build/docs/index.html
#     make demo               train on handwritten digits with onepass and with textbook NumPy, and compare
#     make test-integrations  run the tests with other libraries, which it installs (PyTorch, optax, Lightning and more)
#     make bench              run all benchmarks, write images and tables; make bench CASE=small runs one benchmark
#   Before a release:
#     make wheel              build, check and test a wheel for each installed Python, with the oldest and newest NumPy
#     make sanitize           run the core's own tests and the Python tests under AddressSanitizer and other sanitizers
#     make cross              run the core's own tests on other processors, emulated, 32-bit x86 and WebAssembly
#     make platforms          build for other platforms, run as much as possible (hours); write the table; ARGS="TARGET ..."
#     make toolchains         check that every installed compiler, optimising or not, and the oldest CMake give equal bits
#     make mutants            break the sources in one place at a time; check that a test fails; SAMPLE=100, ONLY=adam
#     make fuzz-api           compare random sequences of calls with the reference; EXAMPLES=1000 is their number
#     make soak               step a billion elements with every rule and storage on every instruction set (hours); fewer: ELEMENTS=1e7
#     make rehearse-release   tag a release in a temporary clone, build its files, install them from a local package index
#     make coverage           measure the lines and branches of python/onepass that the tests reach
#     make coverage-cpp       measure the lines and branches of the core that its own tests reach
#     make comparison         compare five optimizers as in the Adam paper; write the tables and figure into docs/
#     make choosing           compare six optimizers, tuned alike; write the table and figure into docs/
#     make low-precision      train with state and weights in fewer bits; write the tables and figure into docs/
#     make fine-tuning        fine-tune a GPT-2 in float32 and with fewer bits; write the table and figure into docs/
#     make bench-mpi          run the benchmarks of several processes and of state on disk; write their tables
#   Parts of these commands, and rarely used commands:
#     make test-spacy         run the tests with spaCy and its version of thinc (part of test-integrations)
#     make test-mpi           run the tests of training on several processes, with pip's MPI (part of test-integrations)
#     make bench-guard        count the instructions of the hot loops; fail if there are more than recorded
#     make fuzz               run make fuzz-step and make fuzz-checkpoint, each for SECONDS=60
#     make fuzz-step          compare random steps of the core with a model that updates one element at a time
#     make fuzz-checkpoint    load random checkpoints
#     make valgrind           run the core's own tests under valgrind
#     make golden             write the expected results of the core's own tests

PYTHON ?= python3
# make lint uses the installed ones of these compilers; without clang++, clang-tidy reports Clang's warnings.
CXXS ?= $(shell for cxx in g++ clang++; do command -v $$cxx; done)

venv := .venv
python := $(venv)/bin/python
# The file that marks a target's packages as installed.
installed = $(venv)/.installed-$(1)

.PHONY: help demo comparison choosing low-precision fine-tuning test test-integrations test-spacy test-mpi bench bench-mpi bench-guard docs lint format mutants toolchains platforms wheel clean install
.PHONY: fuzz fuzz-checkpoint fuzz-api soak coverage rehearse-release

help:
	@sed -n 's/^#   //p' Makefile

demo: install $(call installed,examples)
	$(python) examples/train_digits.py $(ARGS)

comparison: install $(call installed,examples)
	$(python) examples/comparison/run.py $(or $(ARGS),--out docs/images/comparison.png --page docs/comparison.md)

choosing: install $(call installed,low-precision)
	$(python) examples/choosing.py $(or $(ARGS),--out docs/images/choosing.png --page docs/choosing.md)

low-precision: install $(call installed,examples) $(call installed,low-precision)
	$(python) examples/low_precision/run.py $(or $(ARGS),--out docs/images/low_precision.png --page docs/low-precision.md)

fine-tuning: install $(call installed,examples) $(call installed,clients)
	$(python) examples/low_precision/fine_tuning.py $(or $(ARGS),--out docs/images/fine_tuning.png --page docs/low-precision.md)

test: install $(call installed,test) $(call installed,types) $(call installed,examples)
	$(python) -m pytest $(ARGS)

test-integrations: install $(call installed,test) $(call installed,integrations) $(call installed,clients) $(call installed,mpi)
	$(MAKE) venv=.venv-spacy test-spacy
	$(python) -m pytest tests/integrations $(ARGS)

test-spacy: install $(call installed,test) $(call installed,spacy)
	$(python) -m pytest tests/integrations/test_spacy.py tests/integrations/test_thinc.py $(ARGS)

test-mpi: install $(call installed,test) $(call installed,examples) $(call installed,mpi)
	$(python) -m pytest tests/integrations/mpi $(ARGS)

bench: install $(call installed,bench) $(call installed,peers)
	$(python) -m bench $(if $(CASE),--case $(CASE)) $(ARGS)
	$(if $(CASE)$(ARGS),,$(python) -m bench.readme)

bench-mpi: install $(call installed,bench) $(call installed,mpi)
	$(python) -m bench --case ranks --case disk $(ARGS)
	$(if $(ARGS),,$(python) -m bench.readme)

bench-guard: install $(call installed,lint)
	@$(MAKE) --no-print-directory lint-build CXX=g++
	$(python) -m tools.guard_instructions build/lint-g++ $(ARGS)

docs: install $(call installed,docs)
	$(venv)/bin/sphinx-build -W --keep-going -n -q -d build/doctrees docs build/docs $(ARGS)
	@echo "build/docs/index.html"

mutants: install $(call installed,test)
	$(python) -m tools.mutants $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED)) $(ONLY) $(ARGS)

toolchains: install $(call installed,build) $(call installed,test)
	$(python) -m tools.toolchains $(ARGS)

lint: lint_dir = build/lint-$(notdir $(firstword $(CXXS)))
lint: install $(call installed,lint)
	$(venv)/bin/ruff format --check .
	$(venv)/bin/ruff check .
	$(python) -m tools.language
	$(venv)/bin/mypy
	$(venv)/bin/stubtest onepass._core --mypy-config-file pyproject.toml --allowlist tools/stubtest.txt
	$(venv)/bin/check-jsonschema --builtin-schema vendor.github-workflows $(workflows)
	$(venv)/bin/check-jsonschema --builtin-schema custom.github-workflows-require-timeout $(workflows)
	$(venv)/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(venv)/bin/check-jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(venv)/bin/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(venv)/bin/zizmor -q --offline .github
	$(python) -m tools.configured_wheels
	$(venv)/bin/clang-format --dry-run --Werror $(cxx_sources) $(cxx_tests)
	@for cxx in $(REQUIRE_CXXS); do command -v $$cxx > /dev/null || { echo "$$cxx is missing"; exit 1; }; done
	@for cxx in $(CXXS); do $(MAKE) --no-print-directory lint-build lint-run CXX=$$cxx || exit 1; done
	printf '%s\n' $(filter-out src/python/%,$(filter %.cpp,$(cxx_sources))) $(lint_dir)/CMakeFiles/_core.dir/Unity/*.cxx | xargs -n 1 -P 2 \
	  $(venv)/bin/clang-tidy --quiet --extra-arg=-Wno-ignored-optimization-argument --extra-arg=-Wno-unused-command-line-argument -p $(lint_dir)

# Build with each compiler, with warnings as errors, then check the machine code and the results.
.PHONY: lint-build lint-run
lint-build lint-run: build_dir = build/lint-$(notdir $(CXX))
lint-build:
	$(venv)/bin/cmake -S . -B $(build_dir) -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER=$(CXX) \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(venv))/bin/ninja -DPython_EXECUTABLE=$(abspath $(python)) \
	  -Dpybind11_DIR=$$($(python) -m pybind11 --cmakedir) -DONEPASS_WERROR=ON -DSKBUILD_PROJECT_VERSION=0 -DSKBUILD_PROJECT_VERSION_FULL=0 > $(build_dir).log 2>&1 || { cat $(build_dir).log; exit 1; }
	$(venv)/bin/cmake --build $(build_dir)
	$(python) -m tools.guards $(build_dir)

lint-run: lint-build
	@mkdir -p $(build_dir)/site && cp -r python/onepass $(build_dir)/site && cp $(build_dir)/_core.* $(build_dir)/site/onepass
	PYTHONPATH=$(build_dir)/site $(python) -m onepass

format: $(call installed,lint)
	$(venv)/bin/ruff format .
	$(venv)/bin/ruff check --fix .
	$(venv)/bin/clang-format -i $(cxx_sources) $(cxx_tests)

fuzz: fuzz-checkpoint

fuzz-checkpoint: install $(call installed,fuzz)
	mkdir -p build/fuzz-checkpoint
	PYTHONPATH=tests $(python) -m tools.fuzz_checkpoint -max_total_time=$(SECONDS) -max_len=4096 -timeout=10 -rss_limit_mb=1024 \
	  -artifact_prefix=build/fuzz-checkpoint- -print_final_stats=1 $(ARGS) build/fuzz-checkpoint tests/persistence/corpus

EXAMPLES ?= 1000
fuzz-api: install $(call installed,test)
	ONEPASS_EVERY_MOMENT=1 ONEPASS_API_EXAMPLES=$(EXAMPLES) $(python) -m pytest tests/robustness/test_state_machine.py \
	  tests/robustness/test_interrupts.py tests/robustness/test_out_of_memory.py $(ARGS)

ELEMENTS ?= 1e9
soak: install $(call installed,test) $(call installed,examples)
	ONEPASS_ALL_PATTERNS=1 $(python) -m pytest tests/numerics/test_reference_storage.py -k "split_loses or nearest_bfloat16"
	PYTHONPATH=tests $(python) -m tools.soak --elements $(ELEMENTS) $(ARGS)

coverage: install $(call installed,test) $(call installed,examples) $(call installed,coverage)
	$(venv)/bin/coverage run -m pytest $(ARGS)
	$(venv)/bin/coverage combine -q
	$(venv)/bin/coverage report
	$(venv)/bin/coverage json -q -o build/coverage.json

platforms: install $(call installed,platforms)
	$(python) -m tools.platforms $(ARGS)

wheel: $(call installed,wheel)
	$(python) -m tools.wheels $(ARGS)

rehearse-release: $(call installed,wheel)
	$(python) -m tools.rehearse_release $(ARGS)

clean:
	rm -rf $(venv) .venv-spacy .venv-asan build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis

include tests/cpp/core.mk

workflows := $(wildcard .github/workflows/*.yml)
cxx_sources := $(shell find src -name "*.?pp" -o -name "*.inl")
cxx_tests := $(wildcard tests/cpp/*.hpp tests/cpp/*.cpp tools/*.cpp)
sources := CMakeLists.txt pyproject.toml $(cxx_sources) $(shell find python -name '*.py*' -not -path '*/__pycache__/*')

# onepass itself, built again when a source has changed.
install: $(call installed,onepass)

$(call installed,onepass): $(sources) $(call installed,build)
	$(venv)/bin/pip install -q --no-build-isolation -C build-dir=build/wheel$(venv) .
	@touch $@

# One dependency group of pyproject.toml.
$(call installed,%): pyproject.toml | $(venv)/.made
	$(venv)/bin/pip install -q --group $*
	@touch $@

$(venv)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "onepass needs Python 3.10 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(venv)
	$(venv)/bin/pip install -q --upgrade 'pip>=25.1'
	@touch $@
