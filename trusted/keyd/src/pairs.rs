//! Key pairs: create, load, move, delete, and the public half (identity-service.md 2.3).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contract::api::key::{self as api, HandleResponse, Parameter, ParameterResponse};
use contract::audit::Event;
use contract::endpoint::{Ask, Empty};
use contract::handle::Subject;
use contract::names::KeyId;
use contract::policy::Act;
use contract::refusal::Refusal;

use crate::daemon::{Keyd, User};
use crate::error::KeyError;
use crate::keys;
use crate::material::{Algorithm, Material, P256_OID, Pair};
use crate::store::Entry;

/// Creates a key pair if it is absent.
///
/// # Errors
/// [`Refusal`]; a key that exists is then as it was (A47).
pub fn create(
    keyd: &Keyd,
    who: &User,
    ask: Ask<api::CreateKeyPair>,
) -> Result<HandleResponse, Refusal> {
    let id = ask.body.key_id;
    let preferred = ask.body.preferred_algorithms;
    create_pair(keyd, *who, &id, preferred.as_deref())
        .map_err(|error| keyd.refuse(*who, "create key pair", id.as_str(), error))
}

fn create_pair(
    keyd: &Keyd,
    who: User,
    id: &KeyId,
    preferred: Option<&str>,
) -> Result<HandleResponse, KeyError> {
    keyd.may(who, id, Act::Create)?;
    let wanted = Wanted::read(preferred.unwrap_or("*"));
    let first = *wanted.list.first().ok_or(KeyError::Invalid)?;
    let handle = |entry: &Entry| {
        if wanted.accepts(entry) {
            return keyd.issue(who, Subject::KeyPair(id.clone()), entry.epoch);
        }
        Err(KeyError::Conflict {
            id: id.clone(),
            how: match entry.material {
                Material::Pair(_) => "with another algorithm",
                Material::Key(_) => "and is no key pair",
            },
        })
    };
    // Looked at first, made without keeping others waiting, and looked at again.
    if !keyd.store().change().free(id)?
        && let Some(entry) = keyd.store().load(id)?
    {
        return handle(&entry);
    }
    let made = Pair::generate(first)?;
    let change = keyd.store().change();
    if !change.free(id)?
        && let Some(entry) = change.load(id)?
    {
        return handle(&entry);
    }
    keyd.record(who, Event::KeyCreated, "create key pair", id, "")?;
    let entry = change.put(id, made, crate::store::ANY_USAGE)?;
    handle(&entry)
}

/// A list of preferred algorithms.
struct Wanted {
    list: Vec<Algorithm>,
    any: bool,
}

impl Wanted {
    /// Unknown parts are skipped, duplicates collapse, `*` is P-256 and then RSA.
    fn read(text: &str) -> Self {
        let mut wanted = Self {
            list: Vec::new(),
            any: false,
        };
        for part in text.split(':') {
            let found: &[Algorithm] = match part {
                "ec-p256" => &[Algorithm::EcP256],
                "rsa-2048" => &[Algorithm::Rsa2048],
                "rsa-4096" => &[Algorithm::Rsa4096],
                "*" => {
                    wanted.any = true;
                    &[Algorithm::EcP256, Algorithm::Rsa2048]
                }
                _ => &[],
            };
            for algorithm in found {
                if !wanted.list.contains(algorithm) {
                    wanted.list.push(*algorithm);
                }
            }
        }
        wanted
    }

    /// Whether an existing key will do: any of the list, and any pair at all if there is a star.
    fn accepts(&self, entry: &Entry) -> bool {
        let Material::Pair(pair) = &entry.material else {
            return false;
        };
        self.any || pair.algorithm().is_some_and(|a| self.list.contains(&a))
    }
}

/// A handle for an existing key pair.
///
/// # Errors
/// [`Refusal`]
pub fn load(
    keyd: &Keyd,
    who: &User,
    ask: Ask<api::LoadKeyPair>,
) -> Result<HandleResponse, Refusal> {
    let id = ask.target;
    let load = || {
        keyd.may(*who, &id, Act::Load)?;
        let entry = keyd.store().load(&id)?.ok_or(KeyError::Invalid)?;
        match entry.material {
            Material::Pair(_) => keyd.issue(*who, Subject::KeyPair(id.clone()), entry.epoch),
            Material::Key(_) => Err(KeyError::Invalid),
        }
    };
    load().map_err(|error| keyd.refuse(*who, "load key pair", id.as_str(), error))
}

/// Gives a key pair another id, replacing what has it.
///
/// # Errors
/// [`Refusal`]; both are then as they were.
pub fn rename(keyd: &Keyd, who: &User, ask: Ask<api::MoveKeyPair>) -> Result<Empty, Refusal> {
    let (from, to) = (ask.body.from, ask.target);
    let rename = || {
        keyd.may(*who, &from, Act::Move)?;
        keyd.may(*who, &to, Act::Move)?;
        if from == to {
            return Err(KeyError::Parameter {
                name: "from",
                why: "source and destination for move are identical",
            });
        }
        let change = keyd.store().change();
        match change.load(&from)?.as_deref() {
            Some(Entry {
                material: Material::Pair(_),
                ..
            }) => {}
            _ => return Err(KeyError::Invalid),
        }
        if !change.free(&to)?
            && let Some(entry) = change.load(&to)?
            && matches!(entry.material, Material::Key(_))
        {
            let (id, how) = (to.clone(), "and is no key pair");
            return Err(KeyError::Conflict { id, how });
        }
        keyd.record(*who, Event::KeyMoved, "move", &to, &format!("from {from}"))?;
        change.rename(&from, &to)?;
        Ok(Empty)
    };
    rename().map_err(|error| keyd.refuse(*who, "move", to.as_str(), error))
}

/// Deletes a key pair.
///
/// # Errors
/// [`Refusal`]
pub fn delete(keyd: &Keyd, who: &User, ask: Ask<api::DeleteKeyPair>) -> Result<Empty, Refusal> {
    let is_pair = |subject: &Subject| matches!(subject, Subject::KeyPair(_));
    let wrong = "handle is not for a key pair";
    keys::remove(keyd, *who, &ask.body.key_handle, is_pair, wrong)
        .map_err(|error| keyd.refuse(*who, "delete key pair", "", error))
}

/// One parameter of a public key: it takes a handle, and no purpose.
///
/// # Errors
/// [`Refusal`]
pub fn parameter(
    keyd: &Keyd,
    who: &User,
    ask: Ask<api::PublicParameter>,
) -> Result<ParameterResponse, Refusal> {
    let read = || {
        let key = keyd.find(*who, &ask.body.key_handle)?;
        let wrong = KeyError::HandleKind("handle is not for a key pair");
        let pair = key.pair().ok_or(wrong)?;
        let bytes = match ask.target {
            Parameter::Algorithm => {
                let name = match pair {
                    Pair::Ec(_) => "ECDSA",
                    Pair::Rsa(_) => "RSA",
                };
                return Ok(ParameterResponse {
                    value: name.to_owned(),
                });
            }
            Parameter::EcCurveOid => pair.point().map(|_| P256_OID.to_vec()),
            Parameter::EcPoint => pair.point(),
            Parameter::RsaModulus => pair.rsa_numbers().map(|(modulus, _)| modulus),
            Parameter::RsaExponent => pair.rsa_numbers().map(|(_, exponent)| exponent),
        };
        Ok(ParameterResponse {
            value: STANDARD.encode(bytes.ok_or(KeyError::Invalid)?),
        })
    };
    read().map_err(|error| keyd.refuse(*who, "parameter", "", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_read_as_the_compatible_service_reads_them() {
        use Algorithm::{EcP256, Rsa2048, Rsa4096};
        for (text, want) in [
            ("*", vec![EcP256, Rsa2048]),
            ("rsa-2048:*", vec![Rsa2048, EcP256]),
            ("ec-p256:rsa-4096:*", vec![EcP256, Rsa4096, Rsa2048]),
            ("rsa-4096:rsa-4096", vec![Rsa4096]),
            ("ec-p521:ec-p256", vec![EcP256]),
            ("", vec![]),
            ("EC-P256", vec![]),
        ] {
            assert_eq!(Wanted::read(text).list, want, "{text}");
        }
    }
}
