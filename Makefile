# The one door. `make help` lists the recipes; .ci/run calls them and nothing else.
# Everything a recipe makes is under target/ or fuzz/target/ and goes away with it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export CARGO_TARGET_DIR := $(CURDIR)/target

# The programs that are shipped, and the sample module that quickstart runs.
PRODUCT := -p ctl -p keyd -p warden -p identityd -p runtimed -p agent -p hub

.PHONY: help
help: ## Show the recipes
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: quickstart
quickstart: ## Build, then run hub and device in a throw-away folder; ARGS="--json", ARGS="--keep"
	@scripts/parts build
	cargo build --release --locked --bins $(PRODUCT)
	target/release/holdfast quickstart $(ARGS)

.PHONY: test
test: ## Run every test; what a test needs and cannot have, it says as SKIPPED
	@scripts/parts build tests
	cargo build --locked --workspace --bins
	@scripts/suite

.PHONY: test-user
test-user: ## Run every test once more as an ordinary user (from root)
	@scripts/suite-as-user

.PHONY: check
check: ## Formatting, lints, documentation, dependency rules, tidy tests
	@scripts/parts build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --workspace --no-deps --quiet
	cargo test --locked --quiet -p sim --test tidy

.PHONY: bench
bench: ## Measure what SPECIFICATION.md promises, each number with its floor from the same run
	@scripts/parts build
	cargo build --release --locked --bins $(PRODUCT)
	cargo run --release --locked -p sim --bin holdfast-bench -- $(ARGS)

.PHONY: fuzz
fuzz: ## Run every fuzz target for SECONDS=60 each; TARGETS="http json" for some of them
	@scripts/parts build fuzz
	@scripts/fuzz $(or $(SECONDS),60) $(TARGETS)

.PHONY: tcb
tcb: ## Size of the trusted base: lines, unsafe sites, external crates
	@cargo run --quiet --locked -p sim --bin tcb

.PHONY: callers
callers: ## Write docs/callers.md from the endpoint types
	@cargo run --quiet --locked -p sim --bin callers > target/callers.md
	@mv target/callers.md docs/callers.md

.PHONY: clean-venv
clean-venv: ## Remove the Python packages that tests use as foreign judges
	rm -rf target/venv
