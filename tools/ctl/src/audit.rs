//! `holdfast audit`: is this log whole, and whose key says so? (R39, P27)

use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contract::api::key::{HandleRequest, LoadKeyPair, Parameter, PublicParameter};
use contract::audit::{Report, hex};
use contract::endpoint::Empty;
use contract::names::KeyId;
use local::audit::verify_dir;
use local::client::{CallError, Client};
use local::files::{Dir, Rules};
use serde_json::{Value, json};

use crate::output::{self, Exit, Output};

type Failure = Box<dyn std::error::Error>;

/// What to do with an audit log.
#[derive(Debug, clap::Subcommand)]
pub enum Task {
    /// Check a log offline; names the first bad record.
    Verify {
        /// The folder of the log.
        folder: PathBuf,
        /// The public key of its heads (base64, as `holdfast audit key` prints it).
        #[arg(long)]
        key: Option<PathBuf>,
    },
    /// Print the public key that signs a daemon's log.
    Key {
        /// The key's id in keyd.
        #[arg(default_value = "holdfast_audit_runtimed")]
        id: String,
        /// Socket of keyd.
        #[arg(long, default_value = "/run/aziot/keyd.sock")]
        keyd: PathBuf,
    },
}

/// Does it.
#[must_use]
pub fn run(task: Task, form: Output) -> Exit {
    let done = match task {
        Task::Verify { folder, key } => verified(&folder, key.as_deref(), form),
        Task::Key { id, keyd } => printed(&id, &keyd, form),
    };
    done.unwrap_or_else(|error| {
        output::complain(&*error);
        error
            .downcast_ref::<CallError>()
            .map_or(Exit::Problem, Exit::of)
    })
}

fn verified(folder: &Path, key: Option<&Path>, form: Output) -> Result<Exit, Failure> {
    let key = match key {
        None => None,
        Some(path) => Some(read_key(path)?),
    };
    let report = verify(folder, key.as_deref())?;
    match (summary(&report), form) {
        (Ok(found), Output::Json) => output::json(&found),
        (Ok(found), Output::Text) => output::line(&format!(
            "whole: {} records, signed through {}",
            found["records"], found["signedThrough"]
        )),
        (Err(problem), Output::Json) => {
            output::json(&json!({ "whole": false, "why": problem }));
            return Ok(Exit::Problem);
        }
        (Err(problem), Output::Text) => {
            output::line(&problem);
            return Ok(Exit::Problem);
        }
    }
    Ok(Exit::Fine)
}

fn read_key(path: &Path) -> Result<Vec<u8>, Failure> {
    let wrong = |why: String| {
        format!(
            "{}: {why}; give the file that `holdfast audit key` printed",
            path.display()
        )
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    Ok(STANDARD
        .decode(text.trim())
        .map_err(|error| wrong(error.to_string()))?)
}

fn printed(id: &str, keyd: &Path, form: Output) -> Result<Exit, Failure> {
    let key = STANDARD.encode(public_key(&Client::new(keyd), id)?);
    match form {
        Output::Json => output::json(&json!({ "id": id, "key": key })),
        Output::Text => output::line(&key),
    }
    Ok(Exit::Fine)
}

/// Checks the log in a folder, which is only looked at.
///
/// # Errors
/// When it cannot be read.
pub fn verify(folder: &Path, key: Option<&[u8]>) -> Result<Report, Failure> {
    use std::os::unix::fs::MetadataExt as _;
    let owner = std::fs::metadata(folder)
        .map_err(|error| {
            let advice = "give the folder of a daemon's log, such as /var/lib/aziot/edged/audit";
            format!("{}: {error}; {advice}", folder.display())
        })?
        .uid();
    Ok(verify_dir(&Dir::look(folder, Rules::private(owner))?, key)?)
}

/// What the verifier found, or the first problem in words.
///
/// # Errors
/// The problem.
pub fn summary(report: &Report) -> Result<Value, String> {
    match report.problem {
        Some(problem) => Err(format!(
            "not whole: line {}, record {}: {}; good are {} records before it",
            problem.line, problem.sequence, problem.fault, report.records
        )),
        None => Ok(json!({
            "whole": true,
            "records": report.records,
            "signedThrough": report.signed_through,
            "head": hex(&report.last_hash),
        })),
    }
}

/// The public key of a pair in keyd, as an uncompressed point.
///
/// # Errors
/// What keyd answered.
pub fn public_key(keyd: &Client, id: &str) -> Result<Vec<u8>, Failure> {
    let handle = keyd
        .call::<LoadKeyPair>(&KeyId::new(id)?, &Empty)?
        .key_handle;
    let request = HandleRequest { key_handle: handle };
    let point = keyd
        .call::<PublicParameter>(&Parameter::EcPoint, &request)?
        .value;
    let point = STANDARD.decode(point)?;
    let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &point)
        .map_err(|_| "keyd's public key is malformed")?;
    let der: PublicKeyX509Der<'_> = key.as_der()?;
    let der = der.as_ref();
    Ok(der[der.len().saturating_sub(65)..].to_vec())
}
