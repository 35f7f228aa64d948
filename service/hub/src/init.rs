//! `holdfast-hub init`: a folder from which the hub can be started.
//!
//! Makes a CA, a server certificate for the names given, random policy keys and a configuration.
//! The CA's private key is not kept: nothing but this one certificate is issued by it. A folder
//! that already holds a configuration is left alone.

use std::io;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::auth::Policy;
use crate::{files, random};

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already.
    #[error("{0} exists: this folder was initialised before")]
    Exists(std::path::PathBuf),
    /// A file cannot be written.
    #[error("{step}: {cause}")]
    File {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A certificate cannot be made, for example because a name is not one.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A host name is not one.
    #[error(transparent)]
    Name(#[from] contract::names::BadName),
}

/// Makes the folder's content.
///
/// # Errors
/// [`InitError`]; files written before stay, the configuration is written last.
pub fn init(folder: &Path, hostnames: &[String]) -> Result<(), InitError> {
    let step = |step| move |cause| InitError::File { step, cause };
    for name in hostnames {
        contract::names::HostName::new(name.as_str())?;
    }
    files::private_folder(folder).map_err(step("state folder"))?;
    let config = folder.join("hub.toml");
    if config.exists() {
        return Err(InitError::Exists(config));
    }
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "Holdfast hub CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2049, 12, 31);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let mut params = CertificateParams::new(hostnames)?;
    params
        .distinguished_name
        .push(DnType::CommonName, hostnames[0].as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2049, 12, 31);
    let key = KeyPair::generate()?;
    let server = params.signed_by(&key, &ca)?;
    let chain = format!("{}{}", server.pem(), ca.pem());
    let key = zeroize::Zeroizing::new(key.serialize_pem());
    files::replace(folder, "ca.pem", ca.pem().as_bytes()).map_err(step("ca.pem"))?;
    files::replace(folder, "server.pem", chain.as_bytes()).map_err(step("server.pem"))?;
    files::replace(folder, "server.key", key.as_bytes()).map_err(step("server.key"))?;
    let text = zeroize::Zeroizing::new(config_text(hostnames));
    files::replace(folder, "hub.toml", text.as_bytes()).map_err(step("hub.toml"))
}

fn config_text(hostnames: &[String]) -> String {
    let names: Vec<String> = hostnames.iter().map(|name| format!("{name:?}")).collect();
    let scope = &random::etag()[..8];
    let mut text = format!(
        "# The hub's configuration: docs/hub.md. It holds keys: keep mode 0600.\n\
         hostnames = [{}]\n\
         # What enrolled devices are told to connect to; by default the first name and its port.\n\
         # advertise = \"hub.example.net:8443\"\n\
         scope_id = \"0hf{scope}\"\n\
         state = \".\"\n\n\
         [listen]\n\
         https = \"127.0.0.1:0\"\n\
         mqtt = \"127.0.0.1:0\"\n\n\
         [tls]\n\
         certificate = \"server.pem\"\n\
         key = \"server.key\"\n\n\
         [policies]\n",
        names.join(", ")
    );
    for policy in Policy::ALL {
        let key = random::key().to_base64();
        text.push_str(&format!("{} = \"{}\"\n", policy.name(), key.as_str()));
    }
    text
}
