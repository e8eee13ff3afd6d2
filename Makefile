# make run         builds the server and two plugins, and starts the server with them
# make build       builds the server at target/release/switchyard: fast to build
# make production  builds the server at target/production/switchyard: slow to build, fast to run
# make release     builds an archive of that, with plugins and manual, in target/dist/
# make components  builds the engine and the plugins in target/components/
# make languages   builds an example in Rust, JavaScript and Python in target/components/languages/
# make check       format, lints, crates and their licences: all as errors
# make test-quick  format, lints, unit tests, transcripts, comparison with Redis: before each commit
# make test        all tests, real clients included, and short measurements
# make memcheck    the tests of the engine and its allocator in Valgrind
# make measure     the short measurements: costs of plugins and nodes, and a short load
# make fuzz        ten minutes of random inputs for each codec, or FUZZ_SECONDS=n
# make simulate    simulations of sessions and hub from random numbers; SEED=n repeats one
# make wit-reference  writes the contract's comments as a page: docs/plugins/reference.md
# make node-host   the same engine component in a host written in JavaScript
# make bench       what the sandbox costs: native and component engine side by side
# make bench-cost  instructions and processor time for each message, compared with another commit
# make bench-hostile well-behaved clients beside hostile ones, in a bounded control group; as root
# make bench-peers the server beside Redis, NATS, Bun and Node; takes an hour
# make bench-shapes what a call of a hook costs with its arguments in several shapes
# make bench-languages what a plugin costs in Rust, JavaScript and Python
# make bench-profile where a server's time goes: SERVER='redis-server' SCENARIO='1→1000, one at a time'
# make bench-storm what it costs when 9,000 clients reconnect at once and resume
# make bench-swaps how long swaps hold up messages

CARGO ?= cargo
WASM := wasm32-wasip2
# Plugins that ship, and components that only tests need.
RUN_PLUGINS := acl redact
PLUGINS := acl jwt-auth rate-limit redact validate webhook-auth
FOR_TESTS := asker probe foreign mixed snoop unserved bad-engine onlooker $(addsuffix -v0-1,$(PLUGINS))
# One plugin, for comparison in all languages.
IN_RUST := emoji
COMPONENT = $(CARGO) build --profile component --target $(WASM)
BUILT := target/$(WASM)/component
OUT := target/components
RUN := target/run/plugins

.PHONY: run build programs production release engine run-plugins components languages toolchain tools check test-quick test memcheck measure fuzz bench bench-cost bench-hostile bench-languages bench-peers bench-profile bench-shapes bench-storm bench-swaps node-host simulate wit-reference

# The server leaves a core idle now and then, above all when it is linked: the plugins are compiled then.
run: $(RUN)/10-acl.toml $(RUN)/20-redact.toml
	@$(MAKE) --no-print-directory --jobs 2 build run-plugins IN_BACKGROUND='nice -n 19'
	@cp $(OUT)/acl.wasm $(RUN)/10-acl.wasm
	@cp $(OUT)/redact.wasm $(RUN)/20-redact.wasm
	@echo
	@echo "Try it: open http://127.0.0.1:8080/ in two browser tabs, subscribe in one, publish in the other."
	@echo "Then change a file in $(RUN)/ and see the plugin swapped. Ctrl-c ends the server."
	@echo
	@target/release/switchyard serve --plugins $(RUN)

# Copied once: what was changed in them stays.
$(RUN)/%.toml: | examples/plugins/%.toml
	@mkdir -p $(RUN)
	@cp examples/plugins/$*.toml $@

build: engine
	$(CARGO) build --release --workspace --bin switchyard

production: components
	$(CARGO) build --profile production --package switchyard

release: production
	@sh packaging/release.sh target/production/switchyard $(OUT) target/dist

# The engine by itself: plugins use its library, and must not export what it does.
engine: toolchain
	$(COMPONENT) --package guest-core-component
	@mkdir -p $(OUT)/test $(OUT)/languages
	@built=$(BUILT)/guest_core_component.wasm; \
		cmp -s $$built $(OUT)/guest-core.wasm || cp $$built $(OUT)/guest-core.wasm

# What `make run` starts with, and no more: the other plugins take three times as long.
run-plugins: engine
	@$(IN_BACKGROUND) $(COMPONENT) --quiet $(addprefix --package ,$(RUN_PLUGINS))
	@for name in $(RUN_PLUGINS); do $(call place,$(OUT)); done

components: engine
	$(COMPONENT) $(addprefix --package ,$(PLUGINS) $(FOR_TESTS) $(IN_RUST))
	@for name in $(PLUGINS); do $(call place,$(OUT)); done
	@for name in $(FOR_TESTS); do $(call place,$(OUT)/test); done
	@for name in $(IN_RUST); do $(call place,$(OUT)/languages); done

# The same in other languages.
languages: components tools
	@sh examples/languages/build.sh $(OUT)/languages

# Only what changed is replaced, so that nothing is built or swapped for it.
place = built=$(BUILT)/$$(echo $$name | tr - _).wasm; \
	cmp -s $$built $(1)/$$name.wasm || cp $$built $(1)/$$name.wasm

toolchain:
	@rustup target list --installed | grep -qx $(WASM) || rustup target add $(WASM)

tools:
	@sh host/tests/clients/install.sh

HOST = $(shell rustc -vV | sed -n 's/^host: //p' | tr a-z- A-Z_)
# The tools of the tests may be installed below .tools/.
NEXTEST = PATH="$$PWD/.tools/cargo/bin:$$PATH" $(CARGO) nextest run --release --workspace

test-quick: check tools
	$(NEXTEST) --profile quick

# The programs of the tests are compiled while the rest is downloaded and built.
test: engine
	@$(MAKE) --no-print-directory --jobs 2 languages programs
	$(NEXTEST)
	SWITCHYARD_TEST_CONTRACT=0.1.0 $(NEXTEST) --profile contract-0-1
	@$(MAKE) --no-print-directory memcheck
	@$(MAKE) --no-print-directory measure

programs: engine
	$(CARGO) test --release --workspace --no-run

# The tests of the engine and of its allocator, in Valgrind.
memcheck: tools
	CARGO_TARGET_$(HOST)_RUNNER='valgrind --quiet --error-exitcode=99' \
		$(NEXTEST) --profile memcheck

measure: components tools languages
	$(NEXTEST) --profile measure
	SWITCHYARD_TEST_CONTRACT=0.1.0 $(NEXTEST) --profile measure -E 'test(/^plugin_costs::/)'

check: components
	$(CARGO) fmt --all --check
	$(CARGO) run --release --quiet --package crate-check
	@sh tools/deny.sh
	$(CARGO) clippy --release --workspace --all-targets -- --deny warnings

# make simulate SEED=1000 COUNT=5000
simulate: engine
	$(CARGO) run --release --workspace --bin simulate -- $(SEED) $(COUNT)

FUZZ_SECONDS ?= 600
fuzz:
	SWITCHYARD_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --release --package switchyard --test fuzz -- --nocapture

bench: components
	$(CARGO) run --profile production --package bench --bin sandbox

# Short: make bench-peers RUN_SECONDS=0.5 RUNS=3
RUN_SECONDS ?= 2
RUNS ?= 5
LOAD := target/release/load --switchyard target/production/switchyard
PEERS := $(LOAD) --seconds $(RUN_SECONDS) --runs $(RUNS) --write bench/RESULTS.md

bench-shapes: toolchain
	$(COMPONENT) --package shapes
	@mkdir -p $(OUT)/test
	@for name in shapes; do $(call place,$(OUT)/test); done
	$(CARGO) run --profile production --package bench --bin shapes

bench-languages: languages
	$(CARGO) run --profile production --package bench --bin languages

bench-peers: production
	@sh bench/peers/install.sh
	$(CARGO) build --release --package bench --bin load --bin floor
	@{ cat bench/RESULTS.head.md && sh bench/peers/versions.sh; } >bench/RESULTS.md
	ulimit -n 20000 && taskset -c 1 $(PEERS) --pinned && $(PEERS)

# One server and one scenario, as bench/RESULTS.md names them.
SERVER ?= switchyard/resp+plugin
SCENARIO ?= publish, 50 publishers, depth 1, no subscriber
bench-profile: production
	@sh bench/peers/install.sh
	$(CARGO) build --release --package bench --bin load --bin floor
	@ulimit -n 20000 && sh bench/profile.sh target/profile \
		taskset -c 1 $(LOAD) --pinned --runs 1 --seconds 5 --server '$(SERVER)' --scenario '$(SCENARIO)'

# Compares with this commit: it is checked out and built below target/, once.
REFERENCE ?= fd42a74
REFERENCE_ROOT = target/reference/$(REFERENCE)
COST_SECONDS ?= 1
bench-cost: production tools
	$(CARGO) build --release --package bench --bin load --bin floor
	@sh bench/reference.sh $(REFERENCE) $(REFERENCE_ROOT)
	ulimit -n 20000 && target/release/load --switchyard target/production/switchyard \
		--against $(REFERENCE_ROOT) --seconds $(COST_SECONDS) $(COST_OPTIONS)

# Well-behaved clients beside each kind of hostile one, and beside all of them.
bench-hostile: production
	$(CARGO) build --release --package bench --bin hostile
	ulimit -n 20000 && taskset -c 1 target/release/hostile $(HOSTILE_OPTIONS)

bench-storm: production
	$(CARGO) build --release --package bench --bin storm
	ulimit -n 20000 && target/release/storm $(STORM_OPTIONS)

bench-swaps: production
	$(CARGO) build --release --package bench --bin load
	ulimit -n 20000 && $(LOAD) --swap plugin && $(LOAD) --swap engine --swaps 100

wit-reference:
	$(CARGO) run --release --package wit-reference

node-host: components tools
	@cd examples/node-host && npm --silent start
