//! Both tables: endpoint to function. The only file that knows requests and refusals.
//!
//! Who may call what is decided here from the caller's user and the configuration; what a verb does
//! is in [`crate::certs`], [`crate::identities`], [`crate::modules`] and [`crate::act`].

use std::error::Error;
use std::sync::Arc;

use contract::api::certificate::{self as cert, CertificateApi, Pem};
use contract::api::identity::{
    self as api, Identity, IdentityApi, IdentityKind, IdentityList, OneModule, ProvisioningInfo,
    TrustBundle,
};
use contract::audit::{Decision, Entry, Event};
use contract::endpoint::{Ask, Callers, Empty};
use contract::names::{CertId, ModuleName};
use contract::refusal::{Class, Refusal};
use local::log;
use local::peer::{Caller, Credentials};
use local::routes::{Gate, Routes};

use crate::certs::Certs;
use crate::cloud::causes;
use crate::config::{Principal, PrincipalKind, Who};
use crate::error::{IdentityError, Journal, may_not_write};
use crate::identities::Identities;

/// The certificate API.
#[must_use]
pub fn certificates(api: Arc<CertificateService>) -> Routes<CertificateApi, CertificateService> {
    Routes::new(api)
        .on::<cert::Create>(create_cert)
        .on::<cert::Read>(read_cert)
        .on::<cert::Import>(import_cert)
        .on::<cert::Delete>(delete_cert)
}

/// The identity API.
#[must_use]
pub fn identities(api: Arc<IdentityService>) -> Routes<IdentityApi, IdentityService> {
    Routes::new(api)
        .on::<api::Own>(own)
        .on::<api::Device>(device)
        .on::<api::Reprovision>(reprovision)
        .on::<api::Provisioning>(provisioning)
        .on::<api::ListModules>(list_modules)
        .on::<api::CreateModule>(create_module)
        .on::<api::ReadModule>(read_module)
        .on::<api::UpdateModule>(update_module)
        .on::<api::DeleteModule>(delete_module)
        .on::<api::ReadTrustBundle>(trust_bundle)
}

/// What the certificate API works on.
pub struct CertificateService {
    /// The store.
    pub certs: Arc<Certs>,
    /// The audit log.
    pub journal: Journal,
}

/// A user of the certificate API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User(u32);

impl User {
    fn name(self) -> String {
        format!("uid {}", self.0)
    }
}

impl Gate for CertificateService {
    type Principal = User;

    fn admit(
        &self,
        callers: Callers,
        _module: Option<&ModuleName>,
        caller: &Caller,
    ) -> Result<User, Refusal> {
        match callers {
            // Writes are judged by certificate id, in each verb.
            Callers::Anyone | Callers::CertUsers => Ok(User(caller.uid())),
            _ => Err(Refusal::forbidden("no caller of this class here")),
        }
    }

    fn refused(&self, who: Credentials, refusal: &Refusal) {
        let _ = refuse(&self.journal, &format!("uid {}", who.uid), "", refusal);
    }
}

/// Says in the log why a request failed, since the wire does not always.
fn told<E: Error + Into<Refusal>>(error: E) -> Refusal {
    let words = causes(&error);
    let refusal = error.into();
    match refusal.class {
        Class::Internal => log::error(format_args!("!!! {words}")),
        _ => log::info(format_args!("!!! {words}")),
    }
    refusal
}

/// Records a refusal that is an event, and passes it on. It stands whether or not it could be
/// recorded.
fn refuse(journal: &Journal, who: &str, object: &str, refusal: &Refusal) -> Refusal {
    if let Some(event) = refusal.event {
        let mut entry = Entry::new(event, Decision::Refused, who);
        object.clone_into(&mut entry.object);
        entry.reason = refusal
            .cause
            .clone()
            .unwrap_or_else(|| refusal.message.clone());
        let _ = journal(entry);
    }
    refusal.clone()
}

impl CertificateService {
    /// Runs one change under an id: allowed, done, recorded, then answered.
    fn change<T>(
        &self,
        who: User,
        operation: &str,
        id: &CertId,
        work: impl FnOnce(&Certs) -> Result<T, crate::certs::CertsError>,
    ) -> Result<T, Refusal> {
        self.permit(who, id)?;
        // On record before it is done (R37): a full log stops the change, and a change that then
        // fails is on record as refused as well.
        let mut entry = Entry::new(Event::CertIssued, Decision::Allowed, who.name());
        operation.clone_into(&mut entry.operation);
        id.as_str().clone_into(&mut entry.object);
        (self.journal)(entry)?;
        work(&self.certs).map_err(|error| {
            let refusal = told(error).recorded_as(Event::CertRefused);
            refuse(&self.journal, &who.name(), id.as_str(), &refusal)
        })
    }

    /// Whether a user may write under an id; a refusal is recorded.
    fn permit(&self, who: User, id: &CertId) -> Result<(), Refusal> {
        if self.certs.may_write(who.0, id) {
            return Ok(());
        }
        let refusal = may_not_write(who.0, id);
        Err(refuse(&self.journal, &who.name(), id.as_str(), &refusal))
    }
}

fn create_cert(
    api: &CertificateService,
    who: &User,
    ask: Ask<cert::Create>,
) -> Result<Pem, Refusal> {
    let cert::CreateRequest {
        cert_id: id,
        csr,
        issuer,
    } = ask.body;
    api.permit(*who, &id)?;
    if let Some(issuer) = &issuer {
        // We sign as a delegate of the handle's owner: whoever asks for that must have a right to
        // the issuer of his own, or a copied handle would be worth something (P8).
        api.permit(*who, &issuer.cert_id)?;
    }
    let chain = api.change(*who, "issue", &id, |c| c.issue(&id, &csr, issuer.as_ref()))?;
    Ok(Pem {
        pem: chain.to_pem(),
    })
}

fn read_cert(api: &CertificateService, _: &User, ask: Ask<cert::Read>) -> Result<Pem, Refusal> {
    Ok(Pem {
        pem: api.certs.read(&ask.target).map_err(told)?.to_pem(),
    })
}

fn import_cert(
    api: &CertificateService,
    who: &User,
    ask: Ask<cert::Import>,
) -> Result<Pem, Refusal> {
    let (id, text) = (ask.target, ask.body.pem);
    let chain = api.change(*who, "import", &id, |c| c.import(&id, &text))?;
    Ok(Pem {
        pem: chain.to_pem(),
    })
}

fn delete_cert(
    api: &CertificateService,
    who: &User,
    ask: Ask<cert::Delete>,
) -> Result<Empty, Refusal> {
    let id = ask.target;
    api.change(*who, "delete", &id, |c| c.delete(&id))?;
    Ok(Empty)
}

/// What the identity API works on.
pub struct IdentityService {
    /// The identities.
    pub identities: Arc<Identities>,
}

/// A user of the identity API, with what the configuration makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    uid: u32,
    who: Who,
}

impl Member {
    fn name(&self) -> String {
        format!("uid {}", self.uid)
    }
}

/// Whether a user may call an endpoint of this class at all (identity-service.md 4.1).
#[must_use]
pub fn admits(callers: Callers, who: &Who) -> bool {
    match callers {
        Callers::Anyone => true,
        Callers::Services => matches!(who, Who::Root | Who::Daemon),
        Callers::Identities => !matches!(who, Who::Unknown),
        _ => false,
    }
}

impl IdentityService {
    /// Passes a verdict on, and records it when it is a refusal.
    fn allow(&self, who: &Member, verdict: Result<(), IdentityError>) -> Result<(), Refusal> {
        verdict.map_err(|error| {
            let refusal = told(error).recorded_as(Event::PeerRefused);
            refuse(self.identities.journal(), &who.name(), "", &refusal)
        })
    }
}

impl Gate for IdentityService {
    type Principal = Member;

    fn admit(
        &self,
        callers: Callers,
        _module: Option<&ModuleName>,
        caller: &Caller,
    ) -> Result<Member, Refusal> {
        let uid = caller.uid();
        let who = self.identities.who(uid);
        match admits(callers, &who) {
            true => Ok(Member { uid, who }),
            false => {
                Err(Refusal::from(IdentityError::Unauthorized).recorded_as(Event::PeerRefused))
            }
        }
    }

    fn refused(&self, who: Credentials, refusal: &Refusal) {
        let _ = refuse(
            self.identities.journal(),
            &format!("uid {}", who.uid),
            "",
            refusal,
        );
    }
}

/// What a host process may do beyond its class: the rest of the table of identity-service.md 4.1.
fn may_use_device(who: &Who) -> Result<(), IdentityError> {
    match who {
        Who::Host(Principal {
            kind: PrincipalKind::Host { device: false, .. },
            ..
        })
        | Who::Unknown => Err(IdentityError::Unauthorized),
        _ => Ok(()),
    }
}

fn may_read_module(who: &Who, target: &OneModule) -> Result<(), IdentityError> {
    match who {
        Who::Root | Who::Daemon => Ok(()),
        Who::Host(Principal {
            name,
            kind: PrincipalKind::Host { module, local, .. },
            ..
        }) if *name == target.id && (*module || local.is_some()) => Ok(()),
        _ => Err(IdentityError::Unauthorized),
    }
}

/// Local identities can only be created and read.
fn only_aziot(kind: IdentityKind) -> Result<(), IdentityError> {
    match kind {
        IdentityKind::Aziot => Ok(()),
        IdentityKind::Local => Err(IdentityError::Parameter("type")),
    }
}

fn own(api: &IdentityService, who: &Member, _: Ask<api::Own>) -> Result<Identity, Refusal> {
    api.identities.own(&who.who).map_err(told)
}

fn device(api: &IdentityService, who: &Member, _: Ask<api::Device>) -> Result<Identity, Refusal> {
    api.allow(who, may_use_device(&who.who))?;
    api.identities.device().map_err(told)
}

fn reprovision(
    api: &IdentityService,
    who: &Member,
    _: Ask<api::Reprovision>,
) -> Result<Empty, Refusal> {
    api.identities.reprovision(&who.name()).map_err(told)?;
    Ok(Empty)
}

fn provisioning(
    api: &IdentityService,
    _: &Member,
    _: Ask<api::Provisioning>,
) -> Result<ProvisioningInfo, Refusal> {
    api.identities.provisioning().map_err(told)
}

fn list_modules(
    api: &IdentityService,
    _: &Member,
    ask: Ask<api::ListModules>,
) -> Result<IdentityList, Refusal> {
    only_aziot(ask.target.0)?;
    Ok(IdentityList {
        identities: api.identities.modules().map_err(told)?,
    })
}

fn create_module(
    api: &IdentityService,
    who: &Member,
    ask: Ask<api::CreateModule>,
) -> Result<Identity, Refusal> {
    let request = ask.body;
    let id = &request.module_id;
    Ok(match request.kind {
        IdentityKind::Aziot => api
            .identities
            .create_module(&who.name(), id)
            .map_err(told)?,
        IdentityKind::Local => api
            .identities
            .create_local(&who.name(), id, request.local_id_opts.as_ref())
            .map_err(told)?,
    })
}

fn read_module(
    api: &IdentityService,
    who: &Member,
    ask: Ask<api::ReadModule>,
) -> Result<Identity, Refusal> {
    api.allow(who, may_read_module(&who.who, &ask.target))?;
    let OneModule { id, kind } = &ask.target;
    Ok(match kind {
        IdentityKind::Aziot => api.identities.module(id).map_err(told)?,
        IdentityKind::Local => api.identities.local(&who.name(), id).map_err(told)?,
    })
}

fn update_module(
    api: &IdentityService,
    who: &Member,
    ask: Ask<api::UpdateModule>,
) -> Result<Identity, Refusal> {
    only_aziot(ask.target.kind)?;
    api.identities
        .update_module(&who.name(), &ask.target.id)
        .map_err(told)
}

fn delete_module(
    api: &IdentityService,
    who: &Member,
    ask: Ask<api::DeleteModule>,
) -> Result<Empty, Refusal> {
    only_aziot(ask.target.kind)?;
    api.identities
        .delete_module(&who.name(), &ask.target.id)
        .map_err(told)?;
    Ok(Empty)
}

/// Empty, as the reference has always answered; clients take "no roots of its own" from it.
fn trust_bundle(
    _: &IdentityService,
    _: &Member,
    _: Ask<api::ReadTrustBundle>,
) -> Result<TrustBundle, Refusal> {
    Ok(TrustBundle {
        certificate: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Mutex;

    use contract::api::key::KeyHandle;
    use contract::time::{ClockTrust, Now};
    use local::files::{Dir, Rules, own_uid};

    use super::*;
    use crate::keys::Keyd;

    const USER: User = User(1000);

    /// A folder that ends with its test.
    struct Scratch(PathBuf, Dir);

    impl Drop for Scratch {
        #[expect(clippy::disallowed_methods, reason = "removes what the test made")]
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    type Log = Arc<Mutex<Vec<(Event, Decision, String)>>>;

    /// The certificate part with user 1000 in its table, and a key service that is away. A full log takes no changes.
    fn service(name: &str, full: bool) -> (CertificateService, Scratch, Log) {
        let at = std::env::temp_dir().join(format!("identityd-api-{name}-{}", std::process::id()));
        let dir = Dir::open_or_create(&at, Rules::guarded(own_uid())).unwrap();
        let config =
            format!("homedir_path = {at:?}\n[[principal]]\nuid = 1000\ncerts = [\"mine\"]");
        let clock = || Now {
            monotonic_ms: 0,
            wall: 1_795_478_400,
            trust: ClockTrust::Network,
        };
        let certs = Certs::new(
            toml::from_str(&config).unwrap(),
            dir.clone(),
            Rules::guarded(own_uid()),
            Arc::new(Keyd::new(&at.join("nobody.sock"))),
            Arc::new(clock),
            Arc::new(|_, _| {}),
        );
        let log = Log::default();
        let kept = Arc::clone(&log);
        let journal: Journal = Arc::new(move |entry: Entry| {
            if full && entry.decision == Decision::Allowed {
                return Err(Refusal::new(Class::Unavailable, "the audit log is full"));
            }
            let one = (entry.event, entry.decision, entry.object);
            kept.lock().unwrap().push(one);
            Ok(())
        });
        let certs = Arc::new(certs);
        (CertificateService { certs, journal }, Scratch(at, dir), log)
    }

    fn id(text: &str) -> CertId {
        CertId::new(text).unwrap()
    }

    #[test]
    fn with_a_full_log_no_certificate_is_imported_or_deleted() {
        let (api, scratch, _) = service("full", true);
        let text = rcgen::CertificateParams::default()
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap()
            .pem();
        let import = Ask {
            target: id("mine"),
            body: Pem { pem: text.clone() },
        };
        let refused = import_cert(&api, &USER, import).unwrap_err();
        assert_eq!(refused.class, Class::Unavailable);
        assert!(scratch.1.list().unwrap().is_empty(), "nothing was written");
        api.certs.import(&id("mine"), &text).unwrap();
        let delete = Ask {
            target: id("mine"),
            body: Empty,
        };
        let refused = delete_cert(&api, &USER, delete).unwrap_err();
        assert_eq!(refused.class, Class::Unavailable);
        assert!(api.certs.read(&id("mine")).is_ok(), "it is still there");
    }

    #[test]
    fn a_change_that_fails_is_on_record_as_allowed_and_as_refused() {
        let (api, _scratch, log) = service("fails", false);
        let create = Ask {
            target: (),
            body: cert::CreateRequest {
                cert_id: id("mine"),
                csr: "no request".to_owned(),
                issuer: None,
            },
        };
        assert!(create_cert(&api, &USER, create).is_err());
        let want = [
            (Event::CertIssued, Decision::Allowed, "mine".to_owned()),
            (Event::CertRefused, Decision::Refused, "mine".to_owned()),
        ];
        assert_eq!(*log.lock().unwrap(), want);
    }

    #[test]
    fn p8_nobody_has_a_certificate_issued_by_an_issuer_that_is_not_his() {
        let (api, _scratch, log) = service("deputy", false);
        let create = |issuer: &str| Ask {
            target: (),
            body: cert::CreateRequest {
                cert_id: id("mine"),
                csr: "no request".to_owned(),
                issuer: Some(cert::Issuer {
                    cert_id: id(issuer),
                    private_key_handle: KeyHandle("copied".to_owned()),
                }),
            },
        };
        let refused = create_cert(&api, &USER, create("ca")).unwrap_err();
        assert_eq!(refused.class, Class::Unauthorized);
        assert_eq!(
            refused.message,
            "user 1000 is not authorized to modify the cert ca"
        );
        let want = (Event::CertRefused, Decision::Refused, "ca".to_owned());
        assert_eq!(*log.lock().unwrap(), [want]);
        // With a right to the issuer only the request itself is wrong.
        let refused = create_cert(&api, &USER, create("mine")).unwrap_err();
        assert_eq!(refused.class, Class::BadRequest);
    }
}
