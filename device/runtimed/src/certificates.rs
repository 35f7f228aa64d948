//! Certificates for modules, issued by the Edge CA (module-runtime.md 3, operations 7 and 8).
//!
//! The key is made here, given to the module, and forgotten. Names come from policy, never from
//! the module alone (R57, P5): its own name, and those that the configuration gives it.

use std::net::IpAddr;

use contract::api::certificate::{Create, CreateRequest, Issuer};
use contract::api::workload::{self as api, CertificateResponse, PrivateKey};
use contract::audit::{Decision, Entry, Event};
use contract::bytes::SecretText;
use contract::endpoint::Ask;
use contract::names::{CertId, ModuleName};
use contract::refusal::{Class, Refusal};
use contract::time::rfc3339;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, RsaKeySize, SanType};
use x509_parser::pem::parse_x509_pem;

use crate::edge_ca::cut;
use crate::gate::{Member, WorkloadSocket};
use crate::identity::upstream;
use crate::runtime::Runtime;

/// A client certificate with the module's name.
///
/// # Errors
/// 500 with the words of the service that failed.
pub fn identity(
    socket: &WorkloadSocket,
    who: &Member,
    ask: Ask<api::IdentityCertificate>,
) -> Result<CertificateResponse, Refusal> {
    let name = ask.target;
    let _turn = who.module.turn();
    let hub = socket.runtime.identity(&who.module)?.hub.clone();
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, cut(name.as_str(), 64));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if let Some(hub) = hub {
        // The reference put this text into a dNSName, which strict readers refuse; it is a URI.
        let uri = format!(
            "azureiot://{}/devices/{}/modules/{}",
            hub.name,
            hub.device,
            name.identity()
        );
        params.subject_alt_names = vec![SanType::URI(ia5(&uri)?)];
    }
    let id = format!("aziot-edged/module/{name}:identity");
    issue(&socket.runtime, &name, &id, params)
}

/// A server certificate for one of the module's names.
///
/// # Errors
/// 403 with the reason for another name; else as [`identity`].
pub fn server(
    socket: &WorkloadSocket,
    who: &Member,
    ask: Ask<api::ServerCertificate>,
) -> Result<CertificateResponse, Refusal> {
    let (name, generation) = ask.target;
    let runtime = &socket.runtime;
    let _turn = who.module.turn();
    if runtime.identity(&who.module)?.generation != generation {
        return Err(Refusal::forbidden("the generation id is not the module's"));
    }
    let wanted = ask.body.common_name;
    if !may_have(runtime, &name, &wanted) {
        let text = format!("a server certificate for this name is not module {name}'s to have");
        let mut entry = Entry::new(
            Event::CertRefused,
            Decision::Refused,
            format!("module:{}", name.plain()),
        );
        entry.operation = "certificate/server".to_owned();
        entry.object = cut(&wanted, 128);
        entry.reason = "not one of the module's names".to_owned();
        runtime.audit.note(&runtime.clock.now(), entry);
        return Err(Refusal::new(Class::Forbidden, text));
    }
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, wanted.clone());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let first = match wanted.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(ia5(&wanted)?),
    };
    params.subject_alt_names = vec![first];
    if wanted != name.plain() {
        params
            .subject_alt_names
            .push(SanType::DnsName(ia5(name.plain())?));
    }
    let id = format!("aziot-edged/module/{}:{generation}:server", name.plain());
    issue(runtime, &name, &id, params)
}

/// Whether a module may be called this (R57): by its own name, and as configured. A name that reads
/// as an address, or as this host's, says nothing of who has it.
fn may_have(runtime: &Runtime, name: &ModuleName, wanted: &str) -> bool {
    let plain = name.plain();
    let given = runtime.config.server_names.get(plain);
    let own = wanted == plain
        && wanted.parse::<IpAddr>().is_err()
        && (plain == "edgeHub" || !wanted.eq_ignore_ascii_case(&runtime.config.hostname));
    (1..=64).contains(&wanted.len())
        && !wanted.contains('*')
        && (own
            || (plain == "edgeHub" && wanted == runtime.config.hostname)
            || given.is_some_and(|names| names.iter().any(|one| one == wanted)))
}

fn issue(
    runtime: &Runtime,
    name: &ModuleName,
    id: &str,
    params: CertificateParams,
) -> Result<CertificateResponse, Refusal> {
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048)
        .map_err(Refusal::internal)?;
    let csr = params
        .serialize_request(&key)
        .and_then(|csr| csr.pem())
        .map_err(Refusal::internal)?;
    let request = CreateRequest {
        cert_id: CertId::new(id).map_err(|error| Refusal::parameter("id", error))?,
        csr,
        issuer: Some(Issuer {
            cert_id: runtime.config.edge_ca.cert.clone(),
            private_key_handle: runtime.edge_ca_key()?,
        }),
    };
    let chain = runtime
        .certs
        .call::<Create>(&(), &request)
        .map_err(|error| upstream(&error))?
        .pem;
    let (_, leaf) = parse_x509_pem(chain.as_bytes()).map_err(Refusal::internal)?;
    let expiration = leaf
        .parse_x509()
        .map_err(Refusal::internal)?
        .validity()
        .not_after
        .timestamp();
    let principal = format!("module:{}", name.plain());
    let mut entry = Entry::new(Event::CertIssued, Decision::Allowed, principal);
    entry.object = id.to_owned();
    runtime.audit.note(&runtime.clock.now(), entry);
    Ok(CertificateResponse {
        private_key: PrivateKey {
            kind: "key".to_owned(),
            bytes: SecretText::new(key.serialize_pem()),
        },
        certificate: chain,
        expiration: rfc3339(expiration).replace('Z', "+00:00"),
    })
}

fn ia5(text: &str) -> Result<rcgen::string::Ia5String, Refusal> {
    rcgen::string::Ia5String::try_from(text)
        .map_err(|error| Refusal::parameter("commonName", error))
}
