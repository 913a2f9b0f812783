# Targets that test the core without Python, or Python with tools that inspect the core. The Makefile includes this file.

sanitize_flags := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer

# Fail if a program is missing, and name its Debian package.
need = @command -v $(1) > /dev/null || { echo "$(1) is missing: apt-get install $(2)"; exit 1; }

# Builds the core and its tests in build/core-NAME with these options of CMake, and runs them with these of CTest.
define core_build
@mkdir -p build
@$(venv)/bin/cmake -S . -B build/core-$(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(venv))/bin/ninja -DCMAKE_BUILD_TYPE=Debug \
  -DONEPASS_TESTS=ON -DONEPASS_WERROR=ON $(2) > build/core-$(1).log || { cat build/core-$(1).log; exit 1; }
@$(venv)/bin/cmake --build build/core-$(1) --target all > build/core-$(1).log || { cat build/core-$(1).log; exit 1; }
endef
define core_test
$(call core_build,$(1),$(2))
$(venv)/bin/ctest --test-dir build/core-$(1) --output-on-failure --no-tests=error $(3)
endef

.PHONY: golden sanitize sanitize-core sanitize-python valgrind cross fuzz fuzz-step coverage-cpp

# The golden files, written again from the executable specification.
golden: install
	$(python) tests/cpp/golden.py

sanitize: sanitize-core sanitize-python

sanitize-core: $(call installed,build)
	$(call need,g++,g++)
	$(call need,clang++,clang libclang-rt-dev)
	$(call core_test,plain-g++,-DCMAKE_CXX_COMPILER=g++)
	$(call core_test,address-g++,-DCMAKE_CXX_COMPILER=g++ -DONEPASS_TOOL=address -DONEPASS_FLAGS="$(sanitize_flags)")
	$(call core_test,address-clang++,-DCMAKE_CXX_COMPILER=clang++ -DONEPASS_TOOL=address -DONEPASS_FLAGS="$(sanitize_flags)")
	$(call core_test,thread-g++,-DCMAKE_CXX_COMPILER=g++ -DONEPASS_TOOL=thread -DONEPASS_FLAGS=-fsanitize=thread,-LE fork)

# A vector that is read partly beyond its array is an error here; operators new and delete of ours are not replaced. Leaks
# are AddressSanitizer's: a forked child gives up its parent's pool, which valgrind would call one.
memcheck := valgrind;-q;--error-exitcode=9;--partial-loads-ok=no;--soname-synonyms=somalloc=nouserintercepts
valgrind: $(call installed,build)
	$(call need,valgrind,valgrind)
	$(call core_build,valgrind,-DONEPASS_TOOL=valgrind "-DCMAKE_TEST_LAUNCHER=$(memcheck)")
	ONEPASS_TEST_FLUSH=0 $(venv)/bin/ctest --test-dir build/core-valgrind --output-on-failure --no-tests=error $(ARGS)

# Other processors, emulated, but 32-bit x86 runs here: it needs only its libraries. FLAGS: further flags of the compiler.
cross_processors := aarch64 s390x riscv64 powerpc64le arm i686
triple = $(or $(triple_$(1)),$(1)-linux-gnu)
triple_arm := arm-linux-gnueabihf
qemu = qemu-$(or $(qemu_$(1)),$(1))
qemu_powerpc64le := ppc64le
emulator = $(qemu);-L;/usr/$(triple)
emulator_i686 := /usr/i686-linux-gnu/lib/ld-linux.so.2;--library-path;/usr/i686-linux-gnu/lib
cross: $(addprefix cross-,$(cross_processors) wasm32)
cross-%: $(call installed,build)
	$(call need,$(call triple,$*)-g++,g++-$(call triple,$*))
	$(if $(emulator_$*),,$(call need,$(call qemu,$*),qemu-user))
	$(call core_test,cross-$*,-DONEPASS_FLAGS="$(FLAGS)" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$* -DCMAKE_CXX_COMPILER=$(call triple,$*)-g++ "-DCMAKE_CROSSCOMPILING_EMULATOR=$(or $(emulator_$*),$(call emulator,$*))",-LE fork $(ARGS))

# WebAssembly under Node.js, without threads, as Python in a browser (Pyodide) has it.
emscripten := /usr/share/emscripten/cmake/Modules/Platform/Emscripten.cmake
cross-wasm32: $(call installed,build)
	$(call need,em++,emscripten)
	$(call core_test,cross-wasm32,-DONEPASS_FLAGS="-fexceptions $(FLAGS)" -DCMAKE_TOOLCHAIN_FILE=$(emscripten) "-DCMAKE_CROSSCOMPILING_EMULATOR=node;--no-experimental-fetch" "-DCMAKE_EXE_LINKER_FLAGS=-sNODERAWFS=1 -sALLOW_MEMORY_GROWTH=1 -sASSERTIONS=0",-E "fork|threads" $(ARGS))

# musl and a C++ library of LLVM, linked statically. ZIG: the compiler, which tools/platforms provides. A system without
# a name has no shared libraries.
cross-musl: $(call installed,build)
	$(call need,qemu-aarch64,qemu-user)
	$(call core_test,cross-musl,-DONEPASS_FLAGS="$(FLAGS)" -DCMAKE_SYSTEM_NAME=Generic -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ZIG) -DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64,-LE fork $(ARGS))

# SECONDS=1800 make fuzz is the long run. What is found is kept in build/fuzz-step; the corpus is read, not changed.
SECONDS ?= 60
fuzz: fuzz-step
fuzz-step: $(call installed,build)
	$(call need,clang++,clang libclang-rt-dev)
	$(call core_build,fuzz,-DCMAKE_CXX_COMPILER=clang++ -DONEPASS_FUZZER=ON -DONEPASS_FLAGS="$(sanitize_flags)")
	@mkdir -p build/fuzz-step
	build/core-fuzz/tests/cpp/fuzz_step -max_total_time=$(SECONDS) -max_len=400 -print_final_stats=1 -artifact_prefix=build/fuzz-step/ build/fuzz-step tests/cpp/corpus/step $(ARGS)

# Lines and branches of the core that its tests reach, by every instruction set that this machine has.
coverage-cpp: $(call installed,build) $(call installed,coverage-cpp)
	$(call need,g++,g++)
	$(call need,gcov,gcc)
	@find build/core-coverage -name '*.gcda' -delete 2> /dev/null || true
	$(call core_build,coverage,-DCMAKE_CXX_COMPILER=g++ -DONEPASS_FLAGS="-O0 --coverage -fprofile-update=atomic")
	for isa in baseline avx2 avx512; do ONEPASS_ISA=$$isa $(venv)/bin/ctest --test-dir build/core-coverage -Q --output-on-failure || exit 1; done
	$(venv)/bin/gcovr --root . --filter src/ --exclude-throw-branches --print-summary --txt build/coverage-cpp.txt --html-details build/coverage-cpp.html build/core-coverage
	@cat build/coverage-cpp.txt

# The Python tests, with a module that AddressSanitizer and UndefinedBehaviorSanitizer look into. CPython's own leaks are
# not looked for.
sanitize-python:
	$(call need,g++,g++)
	SKBUILD_CMAKE_DEFINE="ONEPASS_FLAGS=$(sanitize_flags)" $(MAKE) venv=.venv-asan install .venv-asan/.installed-test .venv-asan/.installed-examples
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	  .venv-asan/bin/python -m pytest -p no:cacheprovider $(ARGS)
