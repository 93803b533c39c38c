# make demo   two nodes, six pods, every path measured: the whole of terway on one machine
# make test   everything that proves it works; needs root, installs what it needs
# make test-kubernetes  what needs Kubernetes' own programs: a cluster, its API server; builds them once, in ten minutes
# make check  formatting, lint, types, layering
# make bench  against the Go plugins of containernetworking-plugins

# Debian's own, for which it has python3-venv, and which is faster than one that was built without profiles.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
BIN    := .venv/bin
# Compiled once: every start of the daemon and of the command line gains from it.
export PYTHONDONTWRITEBYTECODE =

# Debian packages: what a node needs, with what compiles its plugin, and what the tests drive besides.
APT_NODE := python3-venv libnftables1 gcc musl-tools
APT_TEST := busybox-static containerd containernetworking-plugins iproute2 iptables libc6-dev nftables runc
APT_KUBE := dpkg-dev procps
APT_BENCH := iperf3
# A second kernel, for what the machine's own may lack; there is none for other architectures.
APT_UML  := $(if $(filter x86_64,$(shell uname -m)),iproute2 kmod user-mode-linux)

.PHONY: demo test test-kubernetes check bench format constraints clean apt-node apt-test apt-kube apt-bench apt-uml

demo: apt-node apt-uml .venv/installed
	$(BIN)/terway lab demo

test: apt-node apt-test apt-uml .venv/installed
ifdef TESTS
	$(BIN)/pytest $(TESTS)
else
	$(BIN)/pytest -m "not kernel and not e2e" --numprocesses auto --dist loadfile
# One by one: each looks whether it left the machine as it found it.
	$(BIN)/pytest -m "(kernel or e2e) and not kubernetes"
endif

test-kubernetes: apt-node apt-test apt-kube .venv/installed
	programs=$$($(BIN)/python tests/kubernetes/build.py) \
	&& KUBEBUILDER_ASSETS=$$programs $(BIN)/pytest $(or $(TESTS),-m kubernetes tests/kubernetes tests/e2e)

check: apt-node .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p terway_core $(addprefix -p terway_driver_,$(notdir $(wildcard drivers/*)))
	$(BIN)/lint-imports --no-cache

bench: apt-node apt-test apt-bench .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m tests.bench

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Editable, so that a change is there at once; tests/e2e/test_install.py proves the wheels.
.venv/installed: pyproject.toml constraints.txt hatch_build.py terway_core/cni/plugin.c $(wildcard drivers/*/pyproject.toml)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' $(addprefix -e ,$(wildcard drivers/*))
	touch $@

# What CI ran: versions only.
constraints: .venv/installed
	$(BIN)/pip freeze --exclude-editable > constraints.txt

apt-node:
	@$(call apt-install,$(APT_NODE))

apt-test:
	@$(call apt-install,$(APT_TEST))

apt-bench:
	@$(call apt-install,$(APT_BENCH))

apt-kube:
	@$(call apt-install,$(APT_KUBE))

apt-uml:
	@$(call apt-install,$(APT_UML))

clean:
	rm -rf .venv build dist bench-results .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Only what is missing, and only where there is an apt; elsewhere the tests say what they miss.
define apt-install
missing=; for package in $(1); do \
	dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
done; \
if [ -n "$$missing" ] && command -v apt-get >/dev/null; then \
	apt-get install -y --no-install-recommends -qq $$missing >/dev/null 2>&1 \
	|| { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -qq $$missing >/dev/null; }; \
fi
endef
