//! Key handles: what a client holds instead of a key (R18).
//!
//! A handle says which key, for which purposes, for whom, and of which issue of the key, under a
//! MAC that only `keyd` can make. The MAC covers the text as it was sent and is compared before
//! anything in it is parsed (A39), in constant time, and as text, so that no second spelling of
//! the same bytes passes. Handles hold no secret, do not expire, survive restarts, and are safe
//! in URLs, JSON and C strings. Copying one gains nothing (P8): the user is compared on each use.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::api::key::KeyHandle;
use crate::names::KeyId;
use crate::policy::{Grant, Purposes};

/// What every handle begins with: the version of its inside.
const PREFIX: &str = "hf1.";
/// Longest text of a handle.
pub const MAX_TEXT: usize = 4096;
/// Longest derivation data a handle can carry.
pub const MAX_DERIVATION: usize = 2048;
/// Most users a handle can name.
const MAX_USERS: usize = 64;
/// Keeps these MACs apart from anything else the same key might sign.
const CONTEXT: &[u8] = b"holdfast key handle\0";

/// What a handle stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A symmetric key.
    Key(KeyId),
    /// A key pair.
    KeyPair(KeyId),
    /// A key derived from a symmetric key. A base is never itself derived: there is no nesting.
    Derived {
        /// The base key.
        base: KeyId,
        /// What it is derived with.
        data: Vec<u8>,
    },
}

impl Subject {
    /// The id of the stored key behind it.
    #[must_use]
    pub fn key(&self) -> &KeyId {
        match self {
            Self::Key(id) | Self::KeyPair(id) | Self::Derived { base: id, .. } => id,
        }
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Key(_) => 1,
            Self::KeyPair(_) => 2,
            Self::Derived { .. } => 3,
        }
    }
}

/// The inside of a handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// What it stands for.
    pub subject: Subject,
    /// What it is good for.
    pub purposes: Purposes,
    /// Who may use it: the issuer and its delegates.
    pub users: Vec<u32>,
    /// Which issue of the key; another one after the key was deleted and created again (A40).
    pub epoch: u64,
}

impl Handle {
    /// A handle as a grant describes it.
    #[must_use]
    pub fn new(subject: Subject, grant: Grant, epoch: u64) -> Self {
        Self {
            subject,
            purposes: grant.purposes,
            users: grant.users,
            epoch,
        }
    }

    /// Whether this user is among those it was issued for.
    #[must_use]
    pub fn admits(&self, uid: u32) -> bool {
        self.users.contains(&uid)
    }
}

/// Why a text is no handle, or a handle cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// Not ours, altered, or of another key service: the caller learns no more than this.
    #[error("invalid handle")]
    Invalid,
    /// Derivation data or user set too long to be carried.
    #[error("derivation data or delegates are too long for a handle")]
    TooLong,
}

/// Writes and reads handles; holds the `handle-validation-key`.
pub struct Sealer(hmac::Key);

impl Sealer {
    /// With the bytes of the validation key.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// Writes a handle.
    ///
    /// # Errors
    /// [`HandleError::TooLong`] when it would not fit.
    pub fn seal(&self, handle: &Handle) -> Result<KeyHandle, HandleError> {
        let mut text = String::with_capacity(192);
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(write(handle)?, &mut text);
        let mac = self.mac(text.as_bytes());
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(mac, &mut text);
        if text.len() > MAX_TEXT {
            return Err(HandleError::TooLong);
        }
        Ok(KeyHandle(text))
    }

    /// Reads a handle that this key sealed.
    ///
    /// # Errors
    /// [`HandleError::Invalid`] for every other text.
    pub fn open(&self, handle: &KeyHandle) -> Result<Handle, HandleError> {
        let text = handle.0.as_str();
        if text.len() > MAX_TEXT || !text.starts_with(PREFIX) {
            return Err(HandleError::Invalid);
        }
        let (signed, mac) = text.rsplit_once('.').ok_or(HandleError::Invalid)?;
        let mut expected = [0_u8; 43];
        URL_SAFE_NO_PAD
            .encode_slice(self.mac(signed.as_bytes()), &mut expected)
            .map_err(|_| HandleError::Invalid)?;
        verify_slices_are_equal(&expected, mac.as_bytes()).map_err(|_| HandleError::Invalid)?;
        let body = signed.get(PREFIX.len()..).ok_or(HandleError::Invalid)?;
        let body = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| HandleError::Invalid)?;
        read(&body).ok_or(HandleError::Invalid)
    }

    fn mac(&self, text: &[u8]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(CONTEXT);
        context.update(text);
        let mut out = [0; 32];
        out.copy_from_slice(context.sign().as_ref());
        out
    }
}

/// Kind, purposes, epoch, users, id, derivation data: big-endian, each list with its length.
fn write(handle: &Handle) -> Result<Vec<u8>, HandleError> {
    let data: &[u8] = match &handle.subject {
        Subject::Derived { data, .. } => data,
        _ => &[],
    };
    if data.len() > MAX_DERIVATION || handle.users.len() > MAX_USERS {
        return Err(HandleError::TooLong);
    }
    let length = |n: usize| u16::try_from(n).map_err(|_| HandleError::TooLong);
    let id = handle.subject.key().as_str().as_bytes();
    let mut out = Vec::with_capacity(32 + id.len() + data.len() + 4 * handle.users.len());
    out.push(handle.subject.kind());
    out.extend(handle.purposes.bits().to_be_bytes());
    out.extend(handle.epoch.to_be_bytes());
    out.extend(length(handle.users.len())?.to_be_bytes());
    for user in &handle.users {
        out.extend(user.to_be_bytes());
    }
    out.extend(length(id.len())?.to_be_bytes());
    out.extend(id);
    out.extend(data);
    Ok(out)
}

fn read(body: &[u8]) -> Option<Handle> {
    let mut rest = body;
    let kind = take::<1>(&mut rest)?[0];
    let purposes = Purposes::from_bits(u16::from_be_bytes(take(&mut rest)?))?;
    let epoch = u64::from_be_bytes(take(&mut rest)?);
    let count = usize::from(u16::from_be_bytes(take(&mut rest)?));
    if count > MAX_USERS {
        return None;
    }
    let mut users = Vec::with_capacity(count);
    for _ in 0..count {
        users.push(u32::from_be_bytes(take(&mut rest)?));
    }
    let length = usize::from(u16::from_be_bytes(take(&mut rest)?));
    let (id, data) = rest.split_at_checked(length)?;
    let id = KeyId::new(std::str::from_utf8(id).ok()?).ok()?;
    let subject = match (kind, data) {
        (1, []) => Subject::Key(id),
        (2, []) => Subject::KeyPair(id),
        (3, data) if data.len() <= MAX_DERIVATION => Subject::Derived {
            base: id,
            data: data.to_vec(),
        },
        _ => return None,
    };
    Some(Handle {
        subject,
        purposes,
        users,
        epoch,
    })
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Purpose;

    fn id(text: &str) -> KeyId {
        KeyId::new(text).unwrap()
    }

    fn handles() -> Vec<Handle> {
        let grant = |users: &[u32]| Grant {
            purposes: Purposes::of(&[Purpose::SignToken, Purpose::Decrypt]),
            users: users.to_vec(),
        };
        vec![
            Handle::new(Subject::Key(id("device-id")), grant(&[1000]), 0),
            Handle::new(Subject::KeyPair(id("a/b:c d")), grant(&[0, 1000]), u64::MAX),
            Handle::new(
                Subject::Derived {
                    base: id("master"),
                    data: b"module:1:primary".to_vec(),
                },
                grant(&[]),
                7,
            ),
        ]
    }

    #[test]
    fn what_is_sealed_is_opened_after_a_restart() {
        for handle in handles() {
            let text = Sealer::new(b"key").seal(&handle).unwrap();
            assert_eq!(Sealer::new(b"key").open(&text), Ok(handle));
            assert!(
                text.0
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)),
                "safe in URLs, JSON and C strings: {}",
                text.0
            );
        }
    }

    #[test]
    fn a39_every_flipped_bit_voids_a_handle() {
        let sealer = Sealer::new(b"key");
        for handle in handles() {
            let text = sealer.seal(&handle).unwrap().0;
            for at in 0..text.len() {
                for bit in 0..8 {
                    let mut bytes = text.clone().into_bytes();
                    bytes[at] ^= 1 << bit;
                    let Ok(bent) = String::from_utf8(bytes) else {
                        continue;
                    };
                    let got = sealer.open(&KeyHandle(bent));
                    assert_eq!(got, Err(HandleError::Invalid), "byte {at} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn a39_reordered_nested_cut_oversized_and_foreign_texts_are_no_handles() {
        let sealer = Sealer::new(b"key");
        let text = sealer.seal(&handles()[0]).unwrap().0;
        let parts: Vec<&str> = text.split('.').collect();
        for bad in [
            String::new(),
            "hf1.".to_owned(),
            "hf1..".to_owned(),
            format!("hf1.{}.{}", parts[2], parts[1]),
            format!("{text}."),
            format!("{text}="),
            format!("hf1.{text}"),
            format!("{text}.{}", parts[2]),
            format!("hf2.{}.{}", parts[1], parts[2]),
            format!("hf1.{}.{}", parts[1], "A".repeat(43)),
            format!("hf1.{}.{}", "A".repeat(MAX_TEXT), parts[2]),
            text[..text.len() - 1].to_owned(),
            Sealer::new(b"other").seal(&handles()[0]).unwrap().0,
            // The compatible form of another key service.
            "sr=eyJrZXlfaWQiOnsiS2V5IjoiYSJ9fQ==&sig=AAAA".to_owned(),
        ] {
            assert_eq!(sealer.open(&KeyHandle(bad)), Err(HandleError::Invalid));
        }
    }

    #[test]
    fn a39_a_sealed_body_that_is_not_canonical_is_refused_too() {
        // Nobody but the holder of the key can make these; the reader must not rely on that.
        let sealer = Sealer::new(b"key");
        let good = write(&handles()[0]).unwrap();
        let mut nested = good.clone();
        nested[0] = 4;
        let mut unknown_purpose = good.clone();
        unknown_purpose[1] = 0x80;
        let mut long = good.clone();
        long.push(0);
        let mut many = good.clone();
        many[11] = 0xff;
        for body in [
            &nested[..],
            &unknown_purpose,
            &long,
            &many,
            &good[..10],
            &[],
        ] {
            let signed = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(body));
            let mac = URL_SAFE_NO_PAD.encode(sealer.mac(signed.as_bytes()));
            let text = KeyHandle(format!("{signed}.{mac}"));
            assert_eq!(sealer.open(&text), Err(HandleError::Invalid));
        }
    }

    #[test]
    fn a38_a_handle_admits_only_those_it_was_issued_for() {
        let handle = &handles()[1];
        for (uid, want) in [(0, true), (1000, true), (1001, false), (u32::MAX, false)] {
            assert_eq!(handle.admits(uid), want, "{uid}");
        }
        assert!(!handles()[2].admits(0), "an empty set admits nobody");
    }

    #[test]
    fn what_does_not_fit_is_refused_when_sealing() {
        let sealer = Sealer::new(b"key");
        let mut handle = handles()[2].clone();
        let with = |n: usize| Subject::Derived {
            base: id(&"k".repeat(256)),
            data: vec![1; n],
        };
        handle.subject = with(MAX_DERIVATION);
        let text = sealer.seal(&handle).unwrap();
        assert!(text.0.len() <= MAX_TEXT);
        assert_eq!(sealer.open(&text), Ok(handle.clone()));
        handle.subject = with(MAX_DERIVATION + 1);
        assert_eq!(sealer.seal(&handle), Err(HandleError::TooLong));
    }
}
