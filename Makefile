# The commands of the project: `make demo`, `make test`, `make lint`, `make format`, `make wheel`. Each makes the virtual
# environment it needs, once: .venv for development, .venv-demo for what a user of the runtime gets.

PYTHON ?= python3
VIDEO ?=
BENCH ?=
TEST_JOBS ?= 2

# pip reads these in its isolated builds too, where `-c` does not reach; newer versions of pip want the second name there.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# What the installed package is made of. The editable one in .venv reads Python files where they stand.
BUILT := pyproject.toml CMakeLists.txt constraints.txt $(wildcard cpp_ext/*)
COPIED := $(shell find onedva export runtime -type f -not -name '*.pyc' -not -name '*.so')
CXX_FILES := $(wildcard cpp_ext/*)

.PHONY: bench demo gpu test lint format wheel constraints clean

demo: .venv-demo/ready
	.venv-demo/bin/onedva demo $(if $(VIDEO),--video "$(VIDEO)") -o demo -f

# In TEST_JOBS processes, one thread each for PyTorch: most of it is Python that exports graphs and parses files.
test: .venv/ready
	ONEDVA_REQUIRE=$${ONEDVA_REQUIRE:-slow} OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(TEST_JOBS) --dist loadgroup

# Every row of the speed bars, written to docs/benchmarks.md: about 20 minutes, on a machine that does nothing else.
# BENCH=--quick shows in a few minutes that it works.
bench: .venv/ready
	.venv/bin/python -c 'import diffusers' 2>/dev/null || .venv/bin/pip install --quiet --editable '.[dev,peers]'
	.venv/bin/python bench/run.py $(BENCH)

# On a machine with a GPU, for the Python that has PyTorch for it (PYTHON): builds the package with its kernels, runs the
# tests that need the GPU, then measures and writes docs/benchmarks-gpu.json. Nothing is downloaded: what that Python lacks
# comes from a folder of wheels (WHEELS), of `constriction` at least. docs/tensorrt.md says more.
WHEELS ?=
GPU ?=
GPU_SITE := $(CURDIR)/build/gpu-site
WITH_GPU := PYTHONPATH=$(GPU_SITE):$(CURDIR)/bench ONEDVA_CACHE=$${ONEDVA_CACHE:-$(CURDIR)/build/gpu-cache}
gpu:
	rm -rf $(GPU_SITE)
	$(PYTHON) -m pip install --quiet --no-index --no-deps --no-build-isolation --no-compile --target $(GPU_SITE) \
	  --config-settings=cmake.define.ONEDVA_CUDA=ON .
	$(if $(WHEELS),$(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target $(GPU_SITE) $(WHEELS)/*.whl)
	$(WITH_GPU) ONEDVA_REQUIRE=gpu $(PYTHON) -m pytest tests/gpu
	! command -v compute-sanitizer || $(WITH_GPU) compute-sanitizer --error-exitcode 1 \
	  $(PYTHON) -m pytest --quiet -m gpu -o timeout=900 tests/gpu/test_kernels.py
	$(WITH_GPU) $(PYTHON) bench/gpu.py -o docs/benchmarks-gpu.json $(GPU)

lint: .venv/ready
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/clang-format --dry-run --Werror $(CXX_FILES)
	.venv/bin/pyright --pythonpath .venv/bin/python

format: .venv/ready
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .
	.venv/bin/clang-format -i $(CXX_FILES)

wheel: .venv/ready
	.venv/bin/pip wheel --no-deps --wheel-dir dist .

# Pins everything that `.[dev,peers]` and a build bring, from an environment that nothing else has touched. Local versions such
# as +cpu are cut off: which build of a package there is depends on where it comes from.
constraints:
	rm -rf .venv-pins
	$(PYTHON) -m venv .venv-pins
	env -u PIP_CONSTRAINT -u PIP_BUILD_CONSTRAINT .venv-pins/bin/pip install --quiet '.[dev,peers]' torch==2.13.0
	{ echo '# Pins what CI installs. Written by `make constraints`.'; \
	  .venv-pins/bin/pip freeze --all --exclude pip --exclude onedva | sed 's/+[a-z0-9.]*$$//'; } > constraints.txt
	rm -rf .venv-pins

clean:
	rm -rf .venv .venv-demo build dist demo

.venv/ready: $(BUILT)
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable '.[dev]'
	$(MAKE) --no-print-directory .venv/bindings/ready
	touch $@

# The real Python bindings of TensorRT and CUDA, without the libraries behind them, in folders of their own: what
# tests/fake_gpu is compared with. They exist for Linux only.
TENSORRT_BINDINGS := 10.16.1.11 11.4.0.106
.venv/bindings/ready:
	if [ "$$(uname -s)" = Linux ]; then \
	  for version in $(TENSORRT_BINDINGS); do \
	    .venv/bin/pip install --quiet --no-deps --upgrade --target .venv/bindings/tensorrt-$$version \
	      tensorrt-cu13-bindings==$$version || exit 1; done; \
	  .venv/bin/pip install --quiet --no-deps --upgrade --target .venv/bindings/cuda \
	    cuda-bindings==13.0.3 cuda-pathfinder==1.9.1 || exit 1; fi
	mkdir -p .venv/bindings && touch $@

.venv-demo/ready: $(BUILT) $(COPIED)
	test -x .venv-demo/bin/python || $(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet '.[cpu,plot]'
	touch $@
