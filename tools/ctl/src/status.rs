//! `holdfast status` and `holdfast module list`: what runs, and how.

use std::path::{Path, PathBuf};

use contract::api::certificate::Read as ReadCertificate;
use contract::api::identity::{Provisioning, ProvisioningInfo};
use contract::api::key::LoadKey;
use contract::api::management::{ListModules, ModuleDetails};
use contract::endpoint::Empty;
use contract::names::{CertId, KeyId};
use local::client::{CallError, Client};
use serde_json::{Value, json};

use crate::output::{self, Exit, Output};

/// Sockets of a device.
#[derive(Debug, clap::Args)]
pub struct Sockets {
    /// Socket of keyd.
    #[arg(long, default_value = "/run/aziot/keyd.sock")]
    keyd: PathBuf,
    /// Certificate socket of identityd.
    #[arg(long, default_value = "/run/aziot/certd.sock")]
    certd: PathBuf,
    /// Identity socket of identityd.
    #[arg(long, default_value = "/run/aziot/identityd.sock")]
    identityd: PathBuf,
    /// Management socket of runtimed.
    #[arg(long, default_value = "/var/run/iotedge/mgmt.sock")]
    management: PathBuf,
}

/// Shows each daemon. The exit is that of the worst: a daemon that cannot be reached outweighs one
/// that does not let us in.
#[must_use]
pub fn run(sockets: &Sockets, form: Output) -> Exit {
    let rows = [
        ("keyd", &sockets.keyd, keyd(&sockets.keyd)),
        (
            "identityd (certificates)",
            &sockets.certd,
            certificates(&sockets.certd),
        ),
        (
            "identityd (identities)",
            &sockets.identityd,
            identities(&sockets.identityd),
        ),
        (
            "runtimed",
            &sockets.management,
            runtimed(&sockets.management),
        ),
    ];
    let mut exit = Exit::Fine;
    let mut shown = Vec::new();
    for (name, socket, found) in rows {
        let (ok, text) = match found {
            Ok(text) => (true, text),
            Err(error) => {
                let this = Exit::of(&error);
                if exit == Exit::Fine || this == Exit::Unreachable {
                    exit = this;
                }
                (false, error.to_string())
            }
        };
        if form == Output::Text {
            output::line(&format!(
                "{} {name:<26} {text}",
                if ok { "ok  " } else { "FAIL" }
            ));
        }
        shown.push(json!({ "daemon": name, "socket": socket, "ok": ok, "detail": text }));
    }
    if form == Output::Json {
        output::json(&json!({ "daemons": shown }));
    }
    exit
}

/// Shows the modules.
#[must_use]
pub fn modules(management: &Path, form: Output) -> Exit {
    match Client::new(management).call::<ListModules>(&(), &Empty) {
        Ok(list) => {
            match form {
                Output::Json => output::json(&serde_json::to_value(&list).unwrap_or(Value::Null)),
                Output::Text => table(&list.modules),
            }
            Exit::Fine
        }
        Err(error) => {
            output::complain(&error);
            Exit::of(&error)
        }
    }
}

fn table(modules: &[ModuleDetails]) {
    output::line(&format!(
        "{:<20} {:<10} {:<22} IMAGE",
        "NAME", "STATUS", "SINCE"
    ));
    for module in modules {
        let state = serde_json::to_value(module.status.runtime_status.status);
        let state = state
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default();
        output::line(&format!(
            "{:<20} {state:<10} {:<22} {}",
            module.name,
            module.status.start_time.as_deref().unwrap_or("-"),
            module.config.settings.image
        ));
    }
}

/// Any answer at all shows that keyd lives: nobody has a key of this name.
fn keyd(socket: &Path) -> Result<String, CallError> {
    let Ok(id) = KeyId::new("holdfast-status") else {
        return Ok(String::new());
    };
    answering(Client::new(socket).call::<LoadKey>(&id, &Empty).map(drop))
}

fn certificates(socket: &Path) -> Result<String, CallError> {
    let Ok(id) = CertId::new("aziot-edged-ca") else {
        return Ok(String::new());
    };
    match Client::new(socket).call::<ReadCertificate>(&id, &Empty) {
        Ok(_) => Ok("there is an Edge CA".to_owned()),
        Err(CallError::Refused { status: 400, .. }) => Ok("there is no Edge CA yet".to_owned()),
        Err(error) => Err(error),
    }
}

fn identities(socket: &Path) -> Result<String, CallError> {
    let info = Client::new(socket).call::<Provisioning>(&(), &Empty)?;
    Ok(match info {
        ProvisioningInfo::Dps {
            auth,
            endpoint,
            registration_id,
            ..
        } => {
            format!("provisioned as {registration_id} through {endpoint} by {auth}")
        }
        ProvisioningInfo::Manual { auth } => format!("provisioned by configuration, {auth}"),
        ProvisioningInfo::None => "not provisioned: this device has no hub".to_owned(),
    })
}

fn runtimed(socket: &Path) -> Result<String, CallError> {
    let list = Client::new(socket).call::<ListModules>(&(), &Empty)?;
    let running = list.modules.iter().filter(|module| {
        module.status.runtime_status.status == contract::api::management::State::Running
    });
    Ok(format!(
        "{} of {} modules run",
        running.count(),
        list.modules.len()
    ))
}

fn answering(answer: Result<(), CallError>) -> Result<String, CallError> {
    match answer {
        Ok(()) | Err(CallError::Refused { .. }) => Ok("answers".to_owned()),
        Err(error) => Err(error),
    }
}
