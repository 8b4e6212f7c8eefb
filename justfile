# The usual commands. `just` lists them; each can be typed by hand.

# Shows this list.
default:
    @just --list

# The inner loop: does it compile, with and without the optional parts?
check:
    cargo check --all-targets
    cargo check --no-default-features

# Tests whose name contains FILTER (default: all).
test FILTER="":
    cargo nextest run {{FILTER}}

# The examples of the documentation, and the commands of the README and of docs/.
docs:
    cargo test --doc
    cargo doc --no-deps
    cargo build --bin rewrite
    bash tests/readme.sh

# Formats the code and lints it as CI does.
fmt:
    cargo fmt
    cargo clippy --all-targets -- -D warnings

# Writes generated files again: schemas and snapshots. Read the difference before you commit it.
regen:
    UPDATE_SCHEMAS=1 cargo nextest run fresh schema
    INSTA_UPDATE=always cargo nextest run golden

# Benchmarks of graphs and of one layer.
bench FILTER="":
    cargo bench --bench graph -- {{FILTER}}
    cargo bench --bench layer -- {{FILTER}}

# Everything that has to pass.
ci:
    .ci/run
