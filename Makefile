# `make demo` shows the daemon at work, `make test` passes the tests. Both install what they miss and say so.
.PHONY: demo test bench build

build:
	@tools/needs build
	cargo build --release --locked

demo: build
	@tools/needs postgres
	target/release/flagpost demo

test:
	@tools/needs build postgres openssl python3 node smtp unshare pgbouncer
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	cargo test --locked

bench:
	@tools/needs build postgres
	cargo bench --locked --bench pipeline --bench cost
