PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-cluster install check base clean

## demo: the main job on the embedded base and the shipped television pictures
demo: install
	$(BIN)/dovetail run examples/televisions --run demo

# What a test may use of the processor at most, told to PyTorch, oneDNN, MKL and our own C: `make test CPU=avx2` on any machine
CPUS := avx2 avx512 avx512_bf16 amx
of_avx2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
of_avx512 := ATEN_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE MKL_ENABLE_INSTRUCTIONS=AVX512
of_avx512_bf16 := ATEN_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 MKL_ENABLE_INSTRUCTIONS=AVX512_E3
of_amx := ATEN_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE_AMX MKL_ENABLE_INSTRUCTIONS=AVX512_E4
ifneq ($(CPU),)
ifeq ($(filter $(CPU),$(CPUS)),)
$(error CPU is $(CPU); take one of $(CPUS), or leave it)
endif
AS_CPU := DOVETAIL_CPU=$(CPU) $(of_$(CPU))
endif

## test: the whole suite, two files at a time; CPU=avx2, avx512, avx512_bf16 or amx: as on such a processor
test: install
	$(AS_CPU) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not cluster"

## test-cluster: what Ray is slow to start: lost workers, several processes behind one address; two minutes more
test-cluster: install
	$(AS_CPU) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m cluster

## install: .venv with all that demo and test need; .venv/bin/dovetail is the command
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "open_clip_torch==3.3.0" # for CLIP's words
	touch $@

## check: style, types and the direction of imports
check: install
	$(BIN)/ruff check src tests recipes benchmarks
	$(BIN)/ruff format --check src tests recipes benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

## base: train the embedded base again from named packages (hours on two cores; resumable)
base: install
	$(BIN)/python -m recipes.embedded_base

clean:
	rm -rf demo runs build
