# The commands of CONTRIBUTING.md. `just` lists them.

default:
    @just --list

# All tests.
test *FILTER:
    cargo test --release --locked -- {{FILTER}}

# Formatting and lints, with and without the optional library.
lint:
    cargo fmt --check
    cargo clippy --all-targets --locked -- -D warnings
    cargo clippy --all-targets --locked --features isal -- -D warnings
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --locked

# Everything that a change must pass.
ci:
    .ci/run

# A benchmark group, such as `quick`.
bench GROUP='quick':
    cargo bench --locked -- {{GROUP}}

# Writes docs/commands.md anew.
commands:
    STRATA_TEST_WRITE_DOCS=1 cargo test --release --locked command_reference

# The manual as web pages, in target/book.
book:
    mdbook build docs --dest-dir "$PWD/target/book"
