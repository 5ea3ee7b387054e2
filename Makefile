# make demo, make test: all set-up included, on a fresh Debian 12 machine, as root.

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
LAB := $(BIN)/python -m tests.lab
RELEASE ?= bookworm
RELEASES := bookworm bullseye trixie
SCENE ?= trio

PACKAGES := python3-venv python3-dev gcc libc6-dev make pkg-config libxen-dev git ca-certificates \
    debian-archive-keyring qemu-system-x86 qemu-utils mmdebstrap e2fsprogs busybox-static cpio \
    openssh-client util-linux zstd

.DEFAULT_GOAL := help
PARTS ?=

.PHONY: help demo test test-all soak bench lab try unit lint docs build packages venv ext lab-build \
    images clean
# one emulated machine at a time: two cores make two of them slower than one after the other
.NOTPARALLEL:

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: lab-build  ## put a real Xen host with its guests to sleep and wake it, and show it
	$(LAB) demo $(RELEASE)

test: images lint unit docs build  ## all but the long tests on Xen 4.17, the core on 4.14 and 4.20
	$(LAB) test bookworm tests/lab/selftest tests/xen
	$(BIN)/python -m pytest tests/host -m 'not soak'
	$(LAB) test bullseye --core
	$(LAB) test trixie --core
	$(LAB) check-install $(RELEASES)

test-all: images lint unit docs build  ## all but the long tests on all three releases
	for release in $(RELEASES); do $(LAB) test $$release tests/lab/selftest tests/xen || exit 1; done
	$(BIN)/python -m pytest tests/host -m 'not soak'
	$(LAB) check-install $(RELEASES)

soak: venv  ## the long tests, on all three releases
	$(BIN)/python -m pytest tests/host -m soak
	for release in $(RELEASES); do $(LAB) test $$release --soak || exit 1; done

bench: ext  ## measure on real Xen, beside xl and other bindings, for the manual (PARTS="cycle ...")
	$(BIN)/python -m tests.bench $(PARTS)

lab: lab-build  ## a shell in a running dom0, guests up (RELEASE=bookworm SCENE=trio)
	$(LAB) shell $(RELEASE) --scene $(SCENE)

try: venv  ## one test file on real Xen: make try T=tests/xen/test_cycle.py [RELEASE=...]
	$(LAB) test $(RELEASE) $(T)

unit: ext  ## the tests that need no Xen
	$(BIN)/python -m pytest

lint: ext  ## ruff, cython-lint, mypy --strict, stubtest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd xenpm/_ext && PATH=$(CURDIR)/$(BIN):$$PATH cython-lint .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest xenpm._ext.xenctrl xenpm._ext.xenstore \
	    xenpm._ext.xenlight

docs: ext  ## the manual, in docs/_build/html, and the page for man(1), in docs/_build/man
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	$(BIN)/sphinx-build -q -W --keep-going -b man docs docs/_build/man
	$(BIN)/sphinx-build -q -W --keep-going -b doctest docs docs/_build/doctest

build: venv  ## sdist and wheel, in dist/
	$(BIN)/python -m build

clean:  ## remove what was built here; the lab's cache stays ('python -m tests.lab clean')
	rm -rf $(VENV) build dist docs/_build *.egg-info xenpm/_ext/*.c xenpm/_ext/*.so

# -- what the above stand on

packages:
	@missing=; for package in $(PACKAGES); do \
	    dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' \
	    || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then \
	    echo "installing:$$missing"; \
	    export DEBIAN_FRONTEND=noninteractive; \
	    apt-get -q update && apt-get -q -y install --no-install-recommends $$missing; \
	fi

venv: $(VENV)/.done

$(VENV)/.done: pyproject.toml | packages
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --group dev
	touch $@

ext: venv
	$(BIN)/python setup.py -q build_ext --inplace

lab-build: ext
	$(LAB) build $(RELEASE) --scene $(SCENE)

# all images first: their building would disturb the machines
images: venv
	$(LAB) build $(RELEASES) --image-only
