//! The store of certificates and the verbs of the certificate API (identity-service.md 3.1-3.3).
//!
//! Files have the compatible names and hold nothing but certificates in PEM; each is written whole,
//! with its previous generation kept, before the answer is sent (R74). A damaged file is answered
//! from that generation and said, never taken for absent (A134). Operators' files and bundles come
//! from the configuration. How a certificate is built is [`crate::issue`]'s.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::rand;

use contract::api::certificate::Issuer;
use contract::names::{CertId, KeyId};
use contract::time::Now;
use local::files::{self, Dir, FileError, Rules};

use crate::config::{Certificates, Issuance, Method, Preloaded};
use crate::csr::{CsrError, Request};
use crate::error::OnDamage;
use crate::issue::{Authority, By, DEFAULT_DAYS, IssueError, IssuerError, Order, Role};
use crate::keys::{KeyError, Keys};
use crate::pem::{Chain, MAX_CERTIFICATES, MAX_TEXT, PemError};
use crate::provision::sha256;

/// Everybody may read a certificate; the directory above keeps others out.
const MODE: u32 = 0o644;
/// How deep bundles hold bundles.
const MAX_DEPTH: u8 = 8;
/// Longest first part of a file name; what distinguishes is the hash after it.
const MAX_STEM: usize = 128;

/// Why a certificate was not read, written or issued.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// There is none under this id.
    #[error("not found")]
    NotFound,
    /// The import is not certificates.
    #[error(transparent)]
    Import(#[from] PemError),
    /// The request is refused.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The request asks for what it may not have.
    #[error("{0}")]
    Asked(#[source] IssueError),
    /// The issuer that the request names cannot be used.
    #[error("{0}")]
    NamedIssuer(&'static str),
    /// The configured authority cannot be used.
    #[error("the authority {id} cannot be used: {why}")]
    Authority {
        /// Its certificate.
        id: CertId,
        /// Why.
        why: String,
    },
    /// Nobody is configured to issue this id, and the request names nobody.
    #[error("no issuance is configured for {id}, and the request names no issuer")]
    NoIssuance {
        /// The id.
        id: CertId,
    },
    /// A bundle is a list, not a certificate.
    #[error("{id} is a bundle and cannot be written")]
    Bundle {
        /// The id.
        id: CertId,
    },
    /// Too many certificates in one bundle, or bundles too deep.
    #[error("the bundle {id} is too large")]
    BundleTooLarge {
        /// The id.
        id: CertId,
    },
    /// Neither generation of a stored file holds certificates.
    #[error("the file of {id} is damaged, and so is its previous generation, or there is none")]
    Damaged {
        /// The id.
        id: CertId,
        /// What is wrong with the current one.
        #[source]
        cause: PemError,
    },
    /// The store failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// keyd failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Issuing failed through no fault of the caller.
    #[error(transparent)]
    Issue(IssueError),
    /// The system has no randomness.
    #[error("no random serial number")]
    Random,
}

/// The time, as `local::clock` tells it.
pub type Clock = Arc<dyn Fn() -> Now + Send + Sync>;

/// The certificates of this device.
pub struct Certs {
    config: RwLock<Arc<Certificates>>,
    dir: Dir,
    rules: Rules,
    keys: Arc<dyn Keys>,
    clock: Clock,
    on_damage: OnDamage,
}

impl Certs {
    /// A store in `dir`; `rules` hold for the operator's files, too.
    #[must_use]
    pub fn new(
        config: Certificates,
        dir: Dir,
        rules: Rules,
        keys: Arc<dyn Keys>,
        clock: Clock,
        on_damage: OnDamage,
    ) -> Self {
        Self {
            config: RwLock::new(Arc::new(config)),
            dir,
            rules,
            keys,
            clock,
            on_damage,
        }
    }

    /// Puts other rules, files and writers in force; sockets and state directory stay.
    pub fn reconfigure(&self, config: Certificates) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// What is in force. A request works with one configuration from beginning to end.
    fn config(&self) -> Arc<Certificates> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a user may create, import and delete under this id.
    #[must_use]
    pub fn may_write(&self, uid: u32, id: &CertId) -> bool {
        self.config().writers.may(uid, id)
    }

    /// Whether the certificate under this id may be an issuer.
    #[must_use]
    pub fn is_for_issuers(&self, id: &CertId) -> bool {
        self.config().issuers_below(id).is_some()
    }

    /// The certificates under an id.
    ///
    /// # Errors
    /// [`CertsError::NotFound`], or what is wrong with file or bundle.
    pub fn read(&self, id: &CertId) -> Result<Chain, CertsError> {
        self.find(&self.config(), id, MAX_DEPTH)?
            .ok_or(CertsError::NotFound)
    }

    fn find(
        &self,
        config: &Certificates,
        id: &CertId,
        depth: u8,
    ) -> Result<Option<Chain>, CertsError> {
        match config.preloaded.get(id) {
            None => self.stored(id),
            Some(Preloaded::File(path)) => self.brought(id, path),
            Some(Preloaded::Bundle(members)) => {
                let too_large = || CertsError::BundleTooLarge { id: id.clone() };
                let depth = depth.checked_sub(1).ok_or_else(too_large)?;
                let mut all: Option<Chain> = None;
                for member in members {
                    let Some(chain) = self.find(config, member, depth)? else {
                        continue;
                    };
                    let bundle = match all.take() {
                        None => chain,
                        Some(bundle) => bundle.and(chain),
                    };
                    if bundle.count() > MAX_CERTIFICATES {
                        return Err(too_large());
                    }
                    all = Some(bundle);
                }
                Ok(all)
            }
        }
    }

    fn stored(&self, id: &CertId) -> Result<Option<Chain>, CertsError> {
        let name = file_name(id);
        let Some(bytes) = self.dir.read(&name, MAX_TEXT)? else {
            return Ok(None);
        };
        let cause = match parse(&bytes) {
            Ok((chain, _)) => return Ok(Some(chain)),
            Err(cause) => cause,
        };
        self.damaged(id, &cause);
        let previous = self.dir.read_previous(&name, MAX_TEXT)?;
        match previous.as_deref().map(parse) {
            Some(Ok((chain, _))) => Ok(Some(chain)),
            _ => Err(CertsError::Damaged {
                id: id.clone(),
                cause,
            }),
        }
    }

    /// A file that the operator placed; what is no certificate in it is left out (A78).
    fn brought(&self, id: &CertId, path: &Path) -> Result<Option<Chain>, CertsError> {
        let Some(bytes) = files::read_at(path, self.rules, MAX_TEXT)? else {
            return Ok(None);
        };
        match parse(&bytes) {
            Ok((chain, foreign)) => {
                if let Some(index) = foreign {
                    self.damaged(id, &PemError::Foreign { index });
                }
                Ok(Some(chain))
            }
            Err(cause) => Err(CertsError::Damaged {
                id: id.clone(),
                cause,
            }),
        }
    }

    fn damaged(&self, id: &CertId, why: &PemError) {
        (self.on_damage)(&format!("certificate {id}"), &why.to_string());
    }

    /// Puts certificates under an id.
    ///
    /// # Errors
    /// [`CertsError::Import`] when the text holds anything else; then nothing changed.
    pub fn import(&self, id: &CertId, text: &str) -> Result<Chain, CertsError> {
        let chain = Chain::parse(text)?;
        self.write(id, &chain)?;
        Ok(chain)
    }

    fn write(&self, id: &CertId, chain: &Chain) -> Result<(), CertsError> {
        let (dir, name) = self.place(id)?;
        Ok(dir.replace(&name, chain.to_pem().as_bytes(), MODE)?)
    }

    /// Removes what is under an id; nothing there is no error.
    ///
    /// # Errors
    /// [`CertsError`] when it may still be there.
    pub fn delete(&self, id: &CertId) -> Result<(), CertsError> {
        let (dir, name) = self.place(id)?;
        Ok(dir.delete(&name)?)
    }

    /// Where an id is written: an operator's file is replaced in its own directory.
    fn place(&self, id: &CertId) -> Result<(Dir, String), CertsError> {
        match self.config().preloaded.get(id) {
            None => Ok((self.dir.clone(), file_name(id))),
            Some(Preloaded::Bundle(_)) => Err(CertsError::Bundle { id: id.clone() }),
            Some(Preloaded::File(path)) => {
                // The configuration has checked that the path has both.
                let parent = path.parent().unwrap_or(Path::new("/"));
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                Ok((Dir::open(parent, self.rules)?, name.into_owned()))
            }
        }
    }

    /// Issues a certificate for a request, stores it and answers the whole chain, leaf first.
    ///
    /// # Errors
    /// [`CertsError`]; nothing was issued or stored then.
    pub fn issue(
        &self,
        id: &CertId,
        csr: &str,
        issuer: Option<&Issuer>,
    ) -> Result<Chain, CertsError> {
        let config = self.config();
        if let Some(Preloaded::Bundle(_)) = config.preloaded.get(id) {
            return Err(CertsError::Bundle { id: id.clone() });
        }
        let request = Request::parse(csr)?;
        let role = Role::of(request.wish, config.issuers_below(id)).map_err(CertsError::Asked)?;
        let rule = config.issuance.get(id);
        let mut random = [0; 16];
        rand::fill(&mut random).map_err(|_| CertsError::Random)?;
        let order = |by| Order {
            request: &request,
            role,
            subject: rule.and_then(|r| r.subject.as_ref()),
            days: rule.map_or(DEFAULT_DAYS, days),
            by,
            now: (self.clock)().wall,
            random,
        };
        let keys = &*self.keys;
        let chain = match (issuer, rule) {
            (Some(issuer), _) => {
                let (chain, authority) = self.named(&issuer.cert_id)?;
                let leaf = order(By::Authority(&authority)).issue(keys, &issuer.private_key_handle);
                Chain::with_leaf(leaf.map_err(blame_issuer)?, Some(&chain))
            }
            (None, None) => return Err(CertsError::NoIssuance { id: id.clone() }),
            (
                None,
                Some(Issuance {
                    method: Method::SelfSigned,
                    ..
                }),
            ) => {
                // Any certificate id fits the grammar of key ids.
                let key = KeyId::new(id.as_str()).map_err(|_| CertsError::NotFound)?;
                let leaf = order(By::Itself).issue(keys, &keys.pair(&key)?);
                Chain::with_leaf(leaf.map_err(blame_asker)?, None)
            }
            (
                None,
                Some(Issuance {
                    method: Method::LocalCa,
                    ..
                }),
            ) => {
                let ca = config
                    .local_ca
                    .as_ref()
                    .ok_or_else(|| CertsError::NoIssuance { id: id.clone() })?;
                let fail = |why: String| CertsError::Authority {
                    id: ca.cert.clone(),
                    why,
                };
                let chain = self.read(&ca.cert).map_err(|e| fail(e.to_string()))?;
                let authority = Authority::parse(chain.leaf()).map_err(|e| fail(e.to_string()))?;
                let handle = keys.pair(&ca.pk)?;
                let leaf = order(By::Authority(&authority)).issue(keys, &handle);
                Chain::with_leaf(leaf.map_err(blame_asker)?, Some(&chain))
            }
        };
        self.write(id, &chain)?;
        Ok(chain)
    }

    fn named(&self, id: &CertId) -> Result<(Chain, Authority), CertsError> {
        let chain = match self.read(id) {
            Err(CertsError::NotFound) => return Err(CertsError::NamedIssuer("not found")),
            other => other?,
        };
        let authority =
            Authority::parse(chain.leaf()).map_err(|e| CertsError::NamedIssuer(words(&e)))?;
        Ok((chain, authority))
    }
}

fn days(rule: &Issuance) -> NonZeroU32 {
    rule.days
}

/// Whose fault it is that an issuer named by the caller did not issue.
fn blame_issuer(error: IssueError) -> CertsError {
    match error {
        IssueError::Issuer(why) => CertsError::NamedIssuer(words(&why)),
        IssueError::Check(why) => CertsError::NamedIssuer(why),
        other => blame_asker(other),
    }
}

fn blame_asker(error: IssueError) -> CertsError {
    match error {
        IssueError::Role(_)
        | IssueError::NoSubject
        | IssueError::IssuersName
        | IssueError::OtherKey => CertsError::Asked(error),
        other => CertsError::Issue(other),
    }
}

fn words(error: &IssuerError) -> &'static str {
    match error {
        IssuerError::Syntax => "it does not parse",
        IssuerError::Subject(_) => "its subject cannot be repeated",
        IssuerError::NotAuthority => "it is not a certificate authority",
        IssuerError::PathLength => "it may not have issuers below it",
        IssuerError::Expired => "it is expired",
        IssuerError::Key => "its key is neither RSA nor P-256",
    }
}

fn parse(bytes: &[u8]) -> Result<(Chain, Option<usize>), PemError> {
    Chain::parse_file(&String::from_utf8_lossy(bytes))
}

/// The compatible name: letters and digits of the id, and its hash. A very long id keeps only the
/// beginning of the first part, since no file system takes more; the hash tells them apart.
#[must_use]
pub fn file_name(id: &CertId) -> String {
    let stem: String = id
        .as_str()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(MAX_STEM)
        .collect();
    format!("{stem}-{}.cer", sha256(id.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_the_compatible_ones() {
        let id = CertId::new("aziot-edged-ca").unwrap();
        assert_eq!(
            file_name(&id),
            "aziotedgedca-86f154be7ff14480027f0d00c59c223db6d9e4ab0b559fc523cca36a7c973d6d.cer"
        );
        let longest = CertId::new("k".repeat(256)).unwrap();
        assert!(file_name(&longest).len() <= 200);
        let traversal = CertId::new("../../etc/passwd").unwrap();
        assert!(file_name(&traversal).starts_with("etcpasswd-"));
    }
}
