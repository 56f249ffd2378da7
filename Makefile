# `make demo` shows the daemon at work, `make test` passes the tests, `make test-postgres-all` those that need a
# server on every major version of PostgreSQL. They install what they miss and say so.
.PHONY: demo test test-deb test-monitoring test-postgres-all bench build deb static

build:
	@tools/needs build
	cargo build --release --locked

demo: build
	@tools/needs postgres
	target/release/flagpost demo

test:
	@tools/needs build postgres openssl python3 node smtp unshare pgbouncer systemd chromium
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	# Tests mostly wait for one another's server: three at a time on two cores.
	cargo test --locked -- --test-threads=3
	$(MAKE) --no-print-directory test-monitoring
	$(MAKE) --no-print-directory test-deb

# A Debian package, in target/debian.
deb: build
	@tools/needs deb
	@tools/deb "$$(tools/cargo-deb)"

# The release binary without any shared library, as the container has it, tried in an empty root.
static:
	@tools/needs build python3
	@binary=$$(tools/static) && tools/test-static "$$binary"

# The package, installed, upgraded, removed and purged in a scratch Debian. With the binary of the tests: a release build takes
# minutes more. `PROFILE=release make test-deb` takes that one.
PROFILE = dev
test-deb:
	@tools/needs build postgres psql deb debootstrap systemd
	cargo build --locked --profile $(PROFILE)
	@PROFILE=$(PROFILE) tools/test-deb "$$(tools/cargo-deb)"

# Prometheus' own checks of the alerting rules.
test-monitoring:
	@promtool=$$(tools/promtool) && $$promtool check rules monitoring/alerts.yml && \
	$$promtool test rules monitoring/alerts_test.yml

# Some of them only: make test-postgres-all MAJORS='14 18'
MAJORS = 14 15 16 17 18

test-postgres-all:
	@tools/needs build postgres psql openssl python3 node npm smtp unshare pgbouncer systemd chromium
	@passed=""; \
	for major in $(MAJORS); do \
		bindir=$$(tools/postgres $$major) && echo "integration tests on $$($$bindir/postgres --version)" && \
		FLAGPOST_PG_BINDIR=$$bindir cargo test --locked --test it || \
		{ echo "FAILED on PostgreSQL $$major; passed on:$${passed:- none}" >&2; exit 1; }; \
		passed="$$passed $$major"; \
	done; \
	echo "passed on PostgreSQL$$passed"

bench:
	@tools/needs build postgres
	cargo bench --locked --bench pipeline --bench cost
