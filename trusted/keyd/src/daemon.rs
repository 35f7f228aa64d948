//! What this daemon has, and the questions that every operation asks first: is the handle good,
//! is it this user's, does policy still grant the purpose (R17, R18). Refusals are recorded here,
//! once, whatever operation they come from.

use std::sync::{Arc, PoisonError, RwLock};

use contract::api::key::{HandleResponse, KeyHandle};
use contract::audit::{Decision, Entry as Note, Event, hash, hex};
use contract::endpoint::Callers;
use contract::handle::{Handle, HandleError, Sealer, Subject};
use contract::names::{KeyId, ModuleName};
use contract::policy::{Act, Policy, Purposes, Question, Verdict, grant, judge};
use contract::refusal::{Class, Refusal};
use contract::time::Now;
use local::audit::Audit;
use local::clock::Clock;
use local::files::Dir;
use local::log;
use local::peer::{Caller, Credentials};
use local::records::{self, Record};
use local::routes::Gate;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::KeyError;
use crate::material::{Algorithm, Material, Pair, Symmetric};
use crate::store::{ANY_USAGE, Entry, Store};

/// Signs handles; nobody but this daemon may name it.
const VALIDATION_KEY: &str = "handle-validation-key";
/// Signs heads of this daemon's audit log and nothing else (R36); others may load it, for its
/// public half.
const AUDIT_KEY: &str = "audit-head-key";

/// Which policy was last in force.
const POLICY: &str = "policy";

#[derive(Debug, Serialize, Deserialize)]
struct PolicyRecord {
    digest: String,
}

impl Record for PolicyRecord {
    const KIND: &'static str = "key-policy";
    const VERSION: u32 = 1;
}

/// The daemon.
pub struct Keyd {
    home: Dir,
    store: Store,
    sealer: Sealer,
    policy: RwLock<Arc<Policy>>,
    audit: Audit,
    clock: Clock,
}

/// A proven user: what policy speaks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub uid: u32,
}

impl Gate for Keyd {
    type Principal = User;

    fn admit(&self, _: Callers, _: Option<&ModuleName>, caller: &Caller) -> Result<User, Refusal> {
        // Every user of the socket is a user of policy, which allows nobody by default.
        Ok(User { uid: caller.uid() })
    }

    fn refused(&self, who: Credentials, refusal: &Refusal) {
        let who = User { uid: who.uid };
        self.note(who, refusal, "", "");
    }
}

/// A key as a request names it: proved and permitted.
pub struct Use {
    /// What the handle says.
    pub handle: Handle,
    /// The stored key behind it.
    pub entry: Arc<Entry>,
}

impl Keyd {
    /// Puts the parts together; makes the handle validation key if there is none.
    ///
    /// # Errors
    /// [`KeyError`] when that key cannot be read or made.
    pub fn new(
        home: Dir,
        store: Store,
        policy: Policy,
        audit: Audit,
        clock: Clock,
    ) -> Result<Self, KeyError> {
        let sealer = validation_key(&store)?;
        let keyd = Self {
            home,
            store,
            sealer,
            policy: RwLock::new(Arc::new(Policy::default())),
            audit,
            clock,
        };
        keyd.set_policy(policy)?;
        Ok(keyd)
    }

    /// Puts a policy in force. One that differs from the last is recorded first, row by row (R25).
    ///
    /// # Errors
    /// [`KeyError`]; the old one stays in force.
    pub fn set_policy(&self, policy: Policy) -> Result<(), KeyError> {
        let digest = hex(&hash(format!("{policy:?}").as_bytes()));
        let last = records::read::<PolicyRecord>(&self.home, POLICY)?;
        if last.is_none_or(|(last, _)| last.digest != digest) {
            self.record_policy(&policy)?;
            records::write(&self.home, POLICY, &PolicyRecord { digest })?;
        }
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
        Ok(())
    }

    fn record_policy(&self, policy: &Policy) -> Result<(), KeyError> {
        let now = self.clock.now();
        let note = |object: String, reason: String| Note {
            operation: "set policy".to_owned(),
            object,
            reason,
            ..Note::new(Event::KeyPolicy, Decision::Allowed, "configuration")
        };
        for row in &policy.rows {
            // A list of plain words: this does not fail.
            let purposes = serde_json::to_string(&row.purposes).unwrap_or_default();
            let reason = format!(
                "purposes {purposes} delegates {:?} replace {}",
                row.delegates, row.replace
            );
            let object = format!("uid {} keys {:?}", row.uid, row.keys);
            self.audit.record(&now, note(object, reason))?;
        }
        let reason = format!("root may use keys: {}", policy.root_may_use_keys);
        let object = format!("{} rows", policy.rows.len());
        Ok(self.audit.record(&now, note(object, reason))?)
    }

    /// Where the keys are.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    fn policy(&self) -> Arc<Policy> {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&policy)
    }

    /// Whether policy lets this user administer this key; this daemon's own keys are nobody's.
    pub(crate) fn may(&self, who: User, id: &KeyId, act: Act) -> Result<(), KeyError> {
        let verdict = judge(&self.policy(), who.uid, id, Question::Administer(act));
        let own = match id.as_str() {
            VALIDATION_KEY => true,
            AUDIT_KEY => act != Act::Load,
            _ => false,
        };
        if verdict == Verdict::Allow && !own {
            return Ok(());
        }
        Err(KeyError::Unauthorized {
            uid: who.uid,
            id: id.clone(),
        })
    }

    /// A handle for a key that this user may load.
    pub(crate) fn issue(
        &self,
        who: User,
        subject: Subject,
        epoch: u64,
    ) -> Result<HandleResponse, KeyError> {
        let grant = grant(&self.policy(), who.uid, subject.key());
        self.seal(&Handle::new(subject, grant, epoch))
    }

    pub(crate) fn seal(&self, handle: &Handle) -> Result<HandleResponse, KeyError> {
        let key_handle = self.sealer.seal(handle).map_err(|error| match error {
            HandleError::TooLong => KeyError::Parameter {
                name: "derivationData",
                why: "too long for a handle",
            },
            HandleError::Invalid => KeyError::Handle,
        })?;
        Ok(HandleResponse { key_handle })
    }

    /// What a handle of this user stands for, without looking for the key.
    pub(crate) fn open(&self, who: User, handle: &KeyHandle) -> Result<Handle, KeyError> {
        let handle = self.sealer.open(handle).map_err(|_| KeyError::Handle)?;
        if handle.admits(who.uid) && handle.subject.key().as_str() != VALIDATION_KEY {
            Ok(handle)
        } else {
            Err(KeyError::Handle)
        }
    }

    /// The key behind a handle of this user.
    pub(crate) fn find(&self, who: User, handle: &KeyHandle) -> Result<Use, KeyError> {
        let handle = self.open(who, handle)?;
        let entry = self.store.load(handle.subject.key())?;
        let entry = entry.filter(|e| e.epoch == handle.epoch);
        let entry = entry.ok_or(KeyError::Handle)?;
        Ok(Use { handle, entry })
    }

    /// Whether one of these purposes was granted when the handle was issued, and still is.
    pub(crate) fn permit(&self, who: User, key: &Use, purposes: Purposes) -> Result<(), KeyError> {
        let id = key.handle.subject.key();
        let granted = id.as_str() != AUDIT_KEY
            && key.handle.purposes.any(purposes)
            && judge(&self.policy(), who.uid, id, Question::Use(purposes)) == Verdict::Allow;
        if granted {
            return Ok(());
        }
        Err(KeyError::Unauthorized {
            uid: who.uid,
            id: id.clone(),
        })
    }

    /// Records a change before it is made and before it is answered (R25, R37). If the change then
    /// fails, its refusal is recorded as well.
    pub(crate) fn record(
        &self,
        who: User,
        event: Event,
        operation: &str,
        object: &KeyId,
        reason: &str,
    ) -> Result<(), KeyError> {
        let note = Note {
            operation: operation.to_owned(),
            object: object.to_string(),
            reason: reason.to_owned(),
            ..Note::new(event, Decision::Allowed, format!("uid {}", who.uid))
        };
        Ok(self.audit.record(&self.clock.now(), note)?)
    }

    /// Turns a failure into its answer, and keeps what is to be kept of it.
    pub(crate) fn refuse(
        &self,
        who: User,
        operation: &str,
        object: &str,
        error: KeyError,
    ) -> Refusal {
        let refusal = Refusal::from(error);
        if matches!(refusal.class, Class::Internal | Class::Unavailable) {
            let cause = refusal.cause.as_deref().unwrap_or_default();
            log::error(format_args!("!!! {operation} {object}: {cause}"));
        }
        self.note(who, &refusal, operation, object);
        refusal
    }

    fn note(&self, who: User, refusal: &Refusal, operation: &str, object: &str) {
        let Some(event) = refusal.event else {
            return;
        };
        let reason = refusal.cause.as_ref().unwrap_or(&refusal.message);
        let note = Note {
            operation: operation.to_owned(),
            object: object.to_owned(),
            reason: reason.clone(),
            ..Note::new(event, Decision::Refused, format!("uid {}", who.uid))
        };
        self.audit.note(&self.clock.now(), note);
    }

    /// What is to be done once a minute: counts are written, records made durable, and the head of
    /// the log signed.
    pub fn settle(&self) {
        let now = self.clock.now();
        if let Err(error) = self.audit.settle(&now) {
            log::error(format_args!("!!! {error}"));
        }
        self.sign_heads(&now, false);
    }

    /// Writes what is counted and signs the head of the log; called once, at stop.
    pub fn close(&self) {
        let now = self.clock.now();
        if let Err(error) = self.audit.close(&now) {
            log::error(format_args!("!!! {error}"));
        }
        self.sign_heads(&now, true);
    }

    fn sign_heads(&self, now: &Now, at_stop: bool) {
        let sign = |text: &[u8]| -> Result<Vec<u8>, KeyError> {
            let entry = self.audit_key()?;
            let Material::Pair(pair) = &entry.material else {
                return Err(KeyError::Crypto("the key of the audit log"));
            };
            pair.sign_digest(&hash(text))
        };
        if let Err(error) = self.audit.sign_heads(now, at_stop, sign) {
            log::error(format_args!("!!! {error}"));
        }
    }

    /// The key of the audit log, made when it is first needed.
    fn audit_key(&self) -> Result<Arc<Entry>, KeyError> {
        let id = KeyId::new(AUDIT_KEY).map_err(|_| KeyError::Invalid)?;
        let change = self.store.change();
        match change.load(&id)? {
            Some(entry) => Ok(entry),
            None => change.put(&id, Pair::generate(Algorithm::EcP256)?, ANY_USAGE),
        }
    }

    /// What is known about now.
    #[must_use]
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// A configuration that is not put in force.
    pub fn configuration_refused(&self, why: &str) {
        log::warn(format_args!(
            "configuration refused, the old one stays: {why}"
        ));
        let mut note = Note::new(Event::ConfigRefused, Decision::Refused, "configuration");
        note.reason = why.to_owned();
        self.audit.note(&self.clock.now(), note);
    }
}

impl Use {
    /// The symmetric key, if the handle is for one or for one derived from it.
    pub(crate) fn symmetric(&self) -> Option<&Symmetric> {
        match (&self.handle.subject, &self.entry.material) {
            (Subject::Key(_) | Subject::Derived { .. }, Material::Key(key)) => Some(key),
            _ => None,
        }
    }

    /// The key pair, if the handle is for one.
    pub(crate) fn pair(&self) -> Option<&Pair> {
        match (&self.handle.subject, &self.entry.material) {
            (Subject::KeyPair(_), Material::Pair(pair)) => Some(pair),
            _ => None,
        }
    }
}

fn validation_key(store: &Store) -> Result<Sealer, KeyError> {
    let id = KeyId::new(VALIDATION_KEY).map_err(|_| KeyError::Invalid)?;
    let change = store.change();
    let entry = match change.load(&id)? {
        Some(entry) => entry,
        None => change.put(&id, random_key()?, ANY_USAGE)?,
    };
    match &entry.material {
        // The MAC key is derived, so that no compatible handle and none of ours can be confused
        // even where an installation is handed back and taken over again.
        Material::Key(key) => Ok(Sealer::new(&*key.derive(b"holdfast handles"))),
        Material::Pair(_) => Err(KeyError::Damaged {
            id,
            why: "it is a key pair",
        }),
    }
}

/// 32 random bytes, which is what every symmetric key made here is.
pub(crate) fn random_key() -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mut bytes = Zeroizing::new(vec![0; 32]);
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Crypto("random numbers"))?;
    Ok(bytes)
}
