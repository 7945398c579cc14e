# `make train` and `make test` do everything from a fresh clone: their own environment first, once, then their job.

BIN := .venv/bin
READY := .venv/ready
TARGETS := .targets
# Python compiles what is imported, once, when it is first imported. pip would compile all of it, which takes most of its
# time. Containers often set the variable, and then every start would compile all of its imports again.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE

# Where Python is looked for: the first one that jaxlib's pinned version has wheels for, and that can make environments.
PYTHON = python3.13 python3.12 python3.14 python3 \
	"$$(pyenv root 2>/dev/null)"/versions/3.1[234].*/bin/python "$$(uv python find 3.13 2>/dev/null)"
PROBE := import sys, importlib.util as util; \
	whole = util.find_spec("ensurepip"); \
	print(sys.version.split()[0] + ("" if whole else ", without venv")); \
	sys.exit(not whole or not (3, 12) <= sys.version_info < (3, 15))

.DEFAULT_GOAL := help
.PHONY: help train test chromium test-browser test-accelerator test-instrument test-portable test-planted \
	test-evidence test-tpu-programs test-targets site lint lock clean

help:
	@echo 'make train   train a first network'
	@echo 'make test    ruff, mypy and the tests'
	@echo 'make test-browser  the tests of pages, in a real Chromium, installed by apt-get where there is none'
	@echo 'make test-accelerator  exactness and speed on a GPU or TPU, as one page; PYTHON=... uses that one as it is'
	@echo 'make test-instrument  20 pairs of equal benchmarks, and planted slow-downs: more than an hour of an idle machine; PAIRS=3 tries it'
	@echo 'make test-tpu-programs  what TPUs would run, compiled without one by libtpu: 586 MB, under Google Cloud terms'
	@echo 'make test-targets  what an H100, an H200 and a B200 would run, compiled without one: 400 MB of packages'
	@echo 'make test-portable  portable bits under every vector width, flag and number of threads, and op by op'
	@echo 'make test-planted  1,000 wrong primitives, each to be found and named: some minutes'
	@echo 'make test-evidence  100 runs with a wrong update, to be found by halving; 1,000 altered certificates'
	@echo 'make site    the documents and the reference of all public names, as pages that need no network'
	@echo 'make lint    ruff and mypy'
	@echo 'make lock    write requirements.lock for pyproject.toml; UPGRADE=1 takes the newest versions'
	@echo 'make clean   remove the environment and caches; runs and data stay'
	@echo 'PYTHON=/path/to/python chooses the interpreter.'

train: $(READY)
	$(BIN)/jaxmlp train quickstart
	@echo
	@echo 'What came out, as one HTML file:'
	@echo '  $(BIN)/jaxmlp report last'
	@echo 'The two experiments of the Keras tutorial, on MNIST (downloads 12 MB):'
	@echo '  $(BIN)/jaxmlp train relu_rmsprop'
	@echo '  $(BIN)/jaxmlp train tanh_sgd_nesterov'

# A worker takes whole files, whose tests share what is costly to make; in the alphabet's order, because the files with
# the fewest tests, which would otherwise come last, are among the longest.
test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# Chromium is Debian's, and playwright drives it: neither is needed for anything else, so neither is in the lock.
chromium:
	@command -v chromium google-chrome >/dev/null || { apt-get update -q && apt-get install -y -q chromium; } || \
		{ echo 'make test-browser needs Chromium: install it as root, apt-get install chromium.' >&2; exit 2; }

test-browser: $(TARGETS)/browser/ready chromium site
	PYTHONPATH=$(TARGETS)/browser $(BIN)/python -m pytest -m browser --numprocesses auto --maxprocesses 2 --dist loadfile tests/browser

# With PYTHON=..., that interpreter and its packages are used as they are, and no environment is made.
ifeq ($(origin PYTHON),command line)
test-accelerator:
	@PYTHONPATH="$(CURDIR):$$PYTHONPATH" $(PYTHON) tests/on_accelerator.py
else
test-accelerator: $(READY)
	@$(BIN)/python tests/on_accelerator.py
endif

# PAIRS=3 tries it.
test-instrument: $(READY)
	$(BIN)/python tests/on_instrument.py --pairs $(or $(PAIRS),20)

# PORTABLE_PYTHON="qemu-aarch64 -L SYSROOT PYTHON" compares another machine's Python too; PORTABLE_UPDATES=469, an epoch.
test-portable: $(READY) .targets/oldest/ready
	PORTABLE_POINTS=1000000 $(BIN)/python -m pytest -q tests/test_portable_functions.py
	PORTABLE_OLDEST=.targets/oldest $(BIN)/python tests/portable_everywhere.py

test-evidence: $(READY)
	JAXMLP_BISECTED=100 JAXMLP_ALTERATIONS=1000 $(BIN)/python -m pytest -q tests/test_reproduce.py \
		tests/test_certificates.py -k 'halving or alteration'

test-planted: $(READY)
	$(BIN)/python tests/planted_faults.py 1000

# The compilers for accelerators lie beside the environment, so that nothing else finds them. No device is needed.
ON_TARGETS = JAX_PLATFORMS=cpu PYTHONPATH=$(TARGETS)/$(1) JAXMLP_TEST_TARGETS=$(1) $(BIN)/python -m pytest -q -m targets \
	tests/targets

test-tpu-programs: $(READY) $(TARGETS)/tpu/ready
	$(call ON_TARGETS,tpu)

test-targets: $(READY) $(TARGETS)/gpu/ready
	$(call ON_TARGETS,gpu)

# The oldest JAX that the package takes.
OLDEST = $$(sed -n 's/.*"jax >=\(.*\)".*/\1/p' pyproject.toml)

$(TARGETS)/oldest/ready: pyproject.toml | $(READY)
	@rm -rf $(TARGETS)/oldest
	@$(INSTALL) --no-deps jax==$(OLDEST) jaxlib==$(OLDEST) --target $(TARGETS)/oldest
	@touch $@

$(TARGETS)/%/ready: requirements-%.lock | $(READY)
	@rm -rf $(TARGETS)/$*
	@$(INSTALL) --require-hashes --no-deps -r $< --target $(TARGETS)/$*
	@touch $@

# Copies keep their paths, so a link works in the site and on a code host. The list has what the documents link to.
PAGES = README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs $(wildcard experiments/*.py) jaxmlp/run/digest.py
SITE_EXTRA := import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["site"], sep="\n")

site: $(TARGETS)/site/ready
	@rm -rf .site
	@mkdir -p .site/pages
	@cp -r --parents $(PAGES) .site/pages
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(TARGETS)/site $(BIN)/python -m mkdocs build --strict \
		--config-file docs/site/mkdocs.yml
	@echo 'The site: .site/html/index.html'

$(TARGETS)/browser/ready: Makefile | $(READY)
	@rm -rf $(TARGETS)/browser
	@$(INSTALL) --target $(TARGETS)/browser playwright==1.65.2 axe-playwright-python==0.1.8
	@touch $@

$(TARGETS)/site/ready: pyproject.toml | $(READY)
	@rm -rf $(TARGETS)/site
	@$(BIN)/python -c '$(SITE_EXTRA)' | $(INSTALL) --requirement /dev/stdin --target $(TARGETS)/site
	@touch $@

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m mypy

EXTRAS := certificates report tensorboard keras onnx orbax dev

# uv writes hashes for every platform, and pip-tools only for this one.
LOCK = $(BIN)/python -m uv --no-config pip compile pyproject.toml --universal --python-version 3.12 --generate-hashes \
	--no-emit-index-url --custom-compile-command 'make lock' --quiet $(if $(UPGRADE),--upgrade)
APART = $$(sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' requirements.lock)

lock: $(READY)
	$(INSTALL) uv
	$(LOCK) $(EXTRAS:%=--extra %) --output-file requirements.lock
	$(LOCK) --extra tpu --constraint requirements.lock $(APART) --output-file requirements-tpu.lock
	echo 'jax[cuda13-local]' | $(LOCK:pyproject.toml=-) --constraint requirements.lock $(APART) \
		--output-file requirements-gpu.lock
	sed -i '/^$$/,$$d' requirements-tpu.lock requirements-gpu.lock  # the names of all packages that lie elsewhere

clean:
	rm -rf .venv .targets .site .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml requirements.lock
	@found= version=; \
	for python in $(PYTHON); do \
		command -v "$$python" >/dev/null || continue; \
		version=$$("$$python" -c '$(PROBE)' 2>/dev/null) && break; \
		found="$$found$${found:+,} $$python ($${version:-does not start})"; \
		version=; \
	done; \
	if [ -z "$$version" ]; then \
		echo "jaxmlp needs Python 3.12, 3.13 or 3.14 with its venv module; found:$${found:- none}." >&2; \
		echo 'Install one: uv python install 3.13, pyenv install 3.13, brew install python@3.13 or' \
			'apt install python3.13-venv. Or name yours: make PYTHON=/path/to/python3.13' >&2; \
		exit 2; \
	fi; \
	echo "Setting up .venv with Python $$version: a minute or two, once."; \
	"$$python" -m venv --clear .venv
	@$(INSTALL) --require-hashes --no-deps -r requirements.lock
	@$(INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@
