# One command for everything; CI calls the same ones. `make help` lists them.
SHELL := /bin/sh
.DEFAULT_GOAL := help

BUILD_DIR ?= $(CURDIR)/.build
export BERTH_BUILD_DIR := $(BUILD_DIR)
# A test that fails says why by itself; a stack of the runtime's internals hides it.
export RUST_LIB_BACKTRACE := 0
# Of the machine that `make vm` starts; several at once have different names.
NAME ?= vm
MUSL := $(shell uname -m)-unknown-linux-musl
SHIMS := -p berth-shim -p berth-worker

.PHONY: help deps build check fmt clippy deny doc test unit fuzz integration crash-points critest difftest demo bench tools deb test-upgrade vagrant vm vm-shell vm-down vm-tests vm-smoke test-vm clean

help: ## lists what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

deps: ## installs what is missing from the distribution
	@hack/install-deps.sh test

build: ## berth, berth-shim and berth-worker in target/release
	cargo build --locked --release -p berth
	cargo build --locked --profile shim --target $(MUSL) $(SHIMS)
	install -m 755 target/$(MUSL)/shim/berth-shim target/$(MUSL)/shim/berth-worker target/release/

deb: build ## a Debian package in target/debian
	hack/tools.sh cargo-deb
	mkdir -p target/release/package
	target/release/berth config default >target/release/package/config.toml
	for shell in bash zsh fish; do target/release/berth completions $$shell >target/release/package/berth.$$shell || exit 1; done
	PATH="$(BUILD_DIR)/bin:$$PATH" cargo deb --locked --no-build --no-strip $(DEB_FLAGS) -p berth

check: fmt clippy deny doc vagrant ## format, lints, licences and bans, documentation, Vagrantfile

fmt:
	cargo fmt --all --check

clippy:
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --workspace --test integration -- -D warnings

# The advisory database is not asked: it cannot be reached everywhere where this must pass.
deny:
	hack/tools.sh cargo-deny
	$(BUILD_DIR)/bin/cargo-deny --locked check bans licenses sources

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

# Without a provider: what runs machines is not needed to read the file, and is not on every machine.
vagrant: export VAGRANT_CWD := $(CURDIR)/vagrant
vagrant: export VAGRANT_DOTFILE_PATH := $(BUILD_DIR)/vagrant
vagrant:
	@command -v vagrant >/dev/null || { echo "vagrant is missing: run hack/install-deps.sh, which says how to get it" >&2; exit 1; }
	vagrant validate --ignore-provider
	BERTH_NODES=3 KUBEADM=1 vagrant validate --ignore-provider

test: build tools $(if $(BERTH_TEST_VM),vm-tests) ## everything: unit, integration, critest, difftest (as root)
	hack/test.sh

unit: ## unit, snapshot and property tests
	cargo test --locked --workspace

# The time is for all targets together. FUZZ_SEED repeats a run, FUZZ_KEEP=1 adds to the corpus.
fuzz: export FUZZ_SECONDS ?= 60
fuzz: ## new hostile bytes for what reads them, for FUZZ_SECONDS (60)
	cargo test --locked -p berth --test fuzz -- --nocapture --test-threads 1

integration: build tools ## real daemon, registry, networks and containers (as root)
	cargo test --locked -q --workspace --test integration -- $(ARGS)

# Ten minutes the first time. Under systemd, with the packages: `make test-vm PARTS=upgrade`.
test-upgrade: build tools ## pods of the last version with other records, built from the history, go on under this one (as root)
	@hack/old.sh known
	old=$$(hack/old.sh) && BERTH_TEST_OLD=$$old cargo test --locked -q --workspace --test integration -- upgrade:: $(ARGS)

crash-points: ## the places at which the tests of crashes have the daemon die
	@cargo test --locked -q --workspace --test integration -- --crash-points

critest: build tools ## the CRI conformance suite (as root)
	cargo build --locked -q --workspace --bin critest-run
	target/debug/critest-run $(ARGS)

difftest: build tools ## generated pods on Berth and containerd, compared from inside (as root)
	cargo build --locked -q --workspace --bin difftest
	target/debug/difftest $(ARGS)

tools:
	hack/tools.sh busybox nginx cni crictl critest containerd runc

vm: ## a machine with systemd, cgroup v2 and AppArmor: builds its disk and boots it (as root)
	hack/install-deps.sh vm
	hack/vm/vm.sh up $(NAME)

vm-shell: ## a shell in it
	@hack/vm/vm.sh shell $(NAME)

vm-down: ## ends it and deletes its disk
	@hack/vm/vm.sh down $(NAME)

# A package that is installed once need not be small.
vm-tests: DEB_FLAGS := --fast
vm-tests: deb tools
	cargo build --locked --workspace --bins
	cargo test --locked -q --workspace --test integration --no-run

vm-smoke: vm-tests ## a short test of the package in such a machine (as root)
	hack/vm/test.sh smoke

test-vm: vm-tests ## everything in such a machine: the package, upgrade, power cuts, integration, critest; or PARTS of it (as root)
	hack/vm/test.sh $(or $(PARTS),full)

demo: ## shows Berth at work on this machine (as root)
	@hack/demo.sh

bench: build ## measures Berth beside containerd, writes .build/bench.md (as root)
	hack/tools.sh busybox nginx cni containerd runc
	cargo run --locked --release -q -p berth-tests --bin berth-bench -- $(ARGS)

clean: ## removes what was built; the tools in .build stay
	cargo clean
