//! Prints `docs/callers.md`; `make callers` writes it.

use std::io::Write as _;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(sim::callers::document().as_bytes())
}
