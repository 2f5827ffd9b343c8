# `make help` lists the targets.

PREFIX ?= /usr/local
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
VMM := $(TARGET)/release/vmm

# Where rustup puts cargo, for a shell that does not know it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: all debug install run test soak fuzz bench bench-cpu guests linux small-linux cloud-linux initramfs packages clean help rust test-programs

all: rust ## the program, release build: target/release/vmm (the default)
	$(CARGO) build --release -p vmm

debug: rust ## the same with symbols and without fat LTO: target/profiling/vmm
	$(CARGO) build --profile profiling -p vmm

# Not a prerequisite of `all`: what was built as a user is installed as root, who may have no cargo.
$(VMM):
	$(MAKE) all

install: | $(VMM) ## program, man page, shell completions to PREFIX (/usr/local), under DESTDIR
	install -Dm755 $(VMM) $(DESTDIR)$(PREFIX)/bin/vmm
	scripts/install-generated.sh $(VMM) $(DESTDIR)$(PREFIX)/share

run: packages ## boot Linux to a shell, from nothing; ARGS= are more options for vmm
	@$(MAKE) --no-print-directory -j2 all cloud-linux
	@scripts/run.sh $(ARGS)

test: packages rust ## all that continuous integration checks, from nothing
	$(CARGO) fmt --all --check
	@$(MAKE) --no-print-directory -j2 linux test-programs
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy -p vmm --no-default-features --all-targets -- -D warnings
	$(CARGO) test --workspace --doc --quiet
	@if $(CARGO) nextest --version >/dev/null 2>&1; then set -x; $(CARGO) nextest run --workspace; \
	else set -x; $(CARGO) test --workspace --all-targets; fi

test-programs: guests
	$(CARGO) build --workspace
	$(CARGO) test --workspace --no-run --quiet

soak: packages linux guests all ## the tests with their full counts: hours
	@if $(CARGO) nextest --version >/dev/null 2>&1; then set -x; VMM_SOAK=1 $(CARGO) nextest run --workspace --release --profile soak; \
	else set -x; VMM_SOAK=1 $(CARGO) test --workspace --release; fi

fuzz: rust ## each fuzz target for FUZZ_SECONDS (600); wants cargo-fuzz and the nightly toolchain
	@$(CARGO) +nightly fuzz --version >/dev/null 2>&1 || { echo "no cargo-fuzz for the nightly toolchain: rustup toolchain install nightly, cargo install cargo-fuzz" >&2; exit 1; }
	set -e; for target in $$($(CARGO) +nightly fuzz list --fuzz-dir fuzz); do \
	$(CARGO) +nightly fuzz run --fuzz-dir fuzz -s none $$target -- -max_total_time=$(or $(FUZZ_SECONDS),600) -timeout=20; done

bench: packages linux all ## start-up time, exits, memory; prints its tables
	VMM=$(abspath $(VMM)) $(CARGO) bench --quiet --package tests --bench startup --bench running --bench cpu
	$(CARGO) bench --quiet --package devices --bench block

bench-cpu: packages linux all ## the software CPU beside QEMU's; prints its tables
	images/linux/build-small.sh --acpi
	VMM=$(abspath $(VMM)) $(CARGO) bench --quiet --package tests --bench cpu

guests: rust ## the bare-metal guests
	images/guests/build.sh

linux: small-linux cloud-linux ## the small Linux, Debian's cloud kernel and an initramfs: target/images/

small-linux: initramfs
	images/linux/build-small.sh

cloud-linux: initramfs
	images/linux/fetch-cloud.sh

initramfs:
	images/linux/build-initramfs.sh

packages: ## install the Debian packages that all this takes, or say which
	@scripts/packages.sh build test linux

clean: ## what was built here; not the cache of Linux images
	$(CARGO) clean
	rm -rf target images/guests/target

help:
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 18

rust:
	@command -v $(CARGO) >/dev/null || { echo "no cargo here: Rust 1.95 or newer is at https://rustup.rs" >&2; exit 1; }
