# `make help` lists the commands. Every target is self-sufficient: it creates the virtual environment (.venv)
# and needs only Python >= 3.10.

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
	@sed -n 's/^| `\(make [^`]*\)` | \(.*\) |$$/\1: \2/p' CONTRIBUTING.md | sed 's/\[\([^]]*\)\]([^)]*)/\1/g; s/`//g' 

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
