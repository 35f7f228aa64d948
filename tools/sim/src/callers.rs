//! The table of `docs/callers.md`: who may call what, from the endpoint types themselves.
//!
//! The list of endpoints below is the only one beside the types; a tidy test reads
//! `contract/src/api/` and fails when one is missing here, and another compares the document.

use std::fmt::Write as _;

use contract::api;
use contract::endpoint::{Api, Callers, Endpoint};

/// One endpoint as a row.
#[derive(Debug, Clone)]
pub struct Row {
    /// Module of the contract and name of the type.
    pub name: (&'static str, &'static str),
    /// Name of its API.
    pub api: &'static str,
    /// Method and path.
    pub request: String,
    /// First version that has it; empty for all.
    pub since: &'static str,
    /// Who may call it.
    pub callers: Callers,
    /// Longest request body in bytes.
    pub limit: usize,
}

macro_rules! rows {
    ($($module:ident: $($name:ident)*;)*) => {
        vec![$($(row::<api::$module::$name>(stringify!($module), stringify!($name)),)*)*]
    };
}

/// Every endpoint of the wire APIs.
#[must_use]
pub fn rows() -> Vec<Row> {
    rows! {
        key: CreateKeyPair LoadKeyPair MoveKeyPair DeleteKeyPair PublicParameter CreateKey LoadKey
            MoveKey DeleteKey Derive ExportDerived Sign Encrypt Decrypt;
        certificate: Create Read Import Delete;
        identity: Own Device Reprovision Provisioning ListModules CreateModule ReadModule
            UpdateModule DeleteModule ReadTrustBundle;
        management: ListModules CreateModule ReadModule UpdateModule DeleteModule PrepareUpdate
            ActOnModule ListIdentities CreateIdentity UpdateIdentity DeleteIdentity ReadSystemInfo;
        workload: ListModules ReadTrustBundle ReadManifestTrustBundle Sign Encrypt Decrypt
            IdentityCertificate ServerCertificate;
    }
}

/// The document.
#[must_use]
pub fn document() -> String {
    let mut out = String::from(
        "# Who may call what\n\n\
         Written by `make callers` from the endpoint types in `trusted/contract/src/api/`; a tidy test\n\
         compares it. Nothing else is served on these sockets: an endpoint without a caller class\n\
         does not compile.\n",
    );
    let mut api = "";
    for row in rows() {
        if row.api != api {
            api = row.api;
            let _ = write!(out, "\n## {}\n\n", heading(api));
            out.push_str("| request | who | body at most | since |\n|---|---|---|---|\n");
        }
        let limit = match row.limit {
            0 => "none".to_owned(),
            bytes => format!("{} KiB", bytes / 1024),
        };
        let request = &row.request;
        let who = class(row.callers).0;
        let since = if row.since.is_empty() {
            "first"
        } else {
            row.since
        };
        let _ = writeln!(out, "| `{request}` | {who} | {limit} | {since} |");
    }
    out.push_str("\n## Caller classes\n\n| who | means |\n|---|---|\n");
    for callers in CLASSES {
        let (name, meaning) = class(callers);
        let _ = writeln!(out, "| {name} | {meaning} |");
    }
    out
}

fn row<E: Endpoint>(module: &'static str, name: &'static str) -> Row {
    Row {
        name: (module, name),
        api: E::Api::NAME,
        request: format!("{} {}", E::METHOD.as_str(), E::PATH),
        since: E::SINCE,
        callers: E::CALLERS,
        limit: E::LIMIT,
    }
}

fn heading(api: &str) -> String {
    let mut letters = api.chars();
    let first = letters.next().map(|c| c.to_ascii_uppercase());
    first
        .into_iter()
        .chain(letters)
        .chain(" API".chars())
        .collect()
}

const CLASSES: [Callers; 9] = [
    Callers::Anyone,
    Callers::KeyUsers,
    Callers::CertUsers,
    Callers::Services,
    Callers::Identities,
    Callers::Module,
    Callers::Agent,
    Callers::Operators,
    Callers::Readers,
];

/// Name and meaning; without a wildcard, so that a new class does not compile without words.
const fn class(callers: Callers) -> (&'static str, &'static str) {
    match callers {
        Callers::Anyone => ("anyone", "whoever can open the socket"),
        Callers::KeyUsers => (
            "key users",
            "whoever can open keyd's socket; then key policy judges user, key and purpose (R17)",
        ),
        Callers::CertUsers => (
            "certificate users",
            "whoever can open the certificate socket; then each write is judged by certificate id",
        ),
        Callers::Services => (
            "services",
            "root, and the daemons named in identityd's configuration",
        ),
        Callers::Identities => (
            "identities",
            "services, and a host process for its own identity",
        ),
        Callers::Module => (
            "module",
            "the module named in the path, attested for this request (R1-R11)",
        ),
        Callers::Agent => (
            "agent",
            "the attested agent, nobody else, root included (P4)",
        ),
        Callers::Operators => (
            "operators",
            "the agent, and the users named in runtimed's configuration, uid 0 by default (P4)",
        ),
        Callers::Readers => (
            "readers",
            "operators, and whoever the socket's group lets in",
        ),
    }
}
