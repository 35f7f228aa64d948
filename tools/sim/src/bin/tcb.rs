//! Prints how large the trusted base is: lines without tests, comments and blank lines; unsafe
//! sites; external crates that are linked. `make tcb` runs it.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::Write as _;

use sim::{crates, tidy};

/// The crates below `trusted/`, from the bottom up.
const TRUSTED: [&str; 4] = ["contract", "local", "keyd", "warden"];

fn main() -> Result<(), Box<dyn Error>> {
    let sources = tidy::sources()?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{:<10} {:>7} {:>7} {:>7}",
        "crate", "lines", "unsafe", "crates"
    )?;
    let (mut lines, mut sites, mut linked) = (0, 0, BTreeSet::new());
    for name in TRUSTED {
        let folder = format!("trusted/{name}/");
        let own: Vec<_> = sources.iter().filter(|s| s.is_in(&folder)).collect();
        let own_lines: usize = own.iter().map(|s| s.lines()).sum();
        let own_sites: usize = own.iter().map(|s| tidy::count(&s.product, "unsafe")).sum();
        let own_linked = crates::linked(name)?;
        writeln!(
            out,
            "{name:<10} {own_lines:>7} {own_sites:>7} {:>7}",
            own_linked.len()
        )?;
        lines += own_lines;
        sites += own_sites;
        linked.extend(own_linked);
    }
    writeln!(
        out,
        "{:<10} {lines:>7} {sites:>7} {:>7}",
        "together",
        linked.len()
    )?;
    writeln!(out)?;
    for one in linked {
        writeln!(out, "{} {} ({})", one.name, one.version, one.license)?;
    }
    Ok(())
}
