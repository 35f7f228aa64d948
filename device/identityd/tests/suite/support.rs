//! Parts of a world for tests: a software key service behind [`Keys`], a folder of one's own, and
//! the openssl command line as a second opinion.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use aws_lc_rs::digest::{Digest, SHA256};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use aws_lc_rs::{encoding::AsDer as _, hmac};
use contract::api::key::KeyHandle;
use contract::bytes::Secret;
use contract::names::KeyId;
use identityd::keys::{KeyError, Keys};

/// A pair as the key service holds one.
pub(crate) enum Pair {
    /// P-256.
    Ec(EcdsaKeyPair),
    /// RSA.
    Rsa(RsaKeyPair),
}

/// The key service in memory; a handle is the id.
#[derive(Default)]
pub(crate) struct SoftKeys {
    pairs: Mutex<HashMap<String, Pair>>,
    keys: Mutex<HashMap<String, Vec<u8>>>,
}

impl SoftKeys {
    /// Makes a P-256 pair.
    pub(crate) fn ec(&self, id: &str) -> KeyHandle {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        self.pairs
            .lock()
            .unwrap()
            .insert(id.to_owned(), Pair::Ec(pair));
        KeyHandle(id.to_owned())
    }

    /// Makes an RSA pair.
    pub(crate) fn rsa(&self, id: &str, size: KeySize) -> KeyHandle {
        let pair = RsaKeyPair::generate(size).unwrap();
        self.pairs
            .lock()
            .unwrap()
            .insert(id.to_owned(), Pair::Rsa(pair));
        KeyHandle(id.to_owned())
    }

    /// Puts a symmetric key.
    pub(crate) fn put(&self, id: &str, bytes: &[u8]) {
        self.keys
            .lock()
            .unwrap()
            .insert(id.to_owned(), bytes.to_vec());
    }

    /// The public half, for a request.
    pub(crate) fn public(&self, handle: &KeyHandle) -> rcgen::SubjectPublicKeyInfo {
        let pairs = self.pairs.lock().unwrap();
        let der = match &pairs[&handle.0] {
            Pair::Ec(pair) => pair.public_key().as_der().unwrap().as_ref().to_vec(),
            Pair::Rsa(pair) => pair.public_key().as_der().unwrap().as_ref().to_vec(),
        };
        rcgen::SubjectPublicKeyInfo::from_der(&der).unwrap()
    }
}

fn no(message: &str) -> KeyError {
    KeyError::Refused {
        status: 400,
        message: message.to_owned(),
    }
}

impl Keys for SoftKeys {
    fn pair(&self, id: &KeyId) -> Result<KeyHandle, KeyError> {
        match self.pairs.lock().unwrap().contains_key(id.as_str()) {
            true => Ok(KeyHandle(id.to_string())),
            false => Err(no("a parameter has an invalid value")),
        }
    }

    fn key(&self, id: &KeyId) -> Result<KeyHandle, KeyError> {
        match self.keys.lock().unwrap().contains_key(id.as_str()) {
            true => Ok(KeyHandle(id.to_string())),
            false => Err(no("a parameter has an invalid value")),
        }
    }

    fn create_key(&self, id: &KeyId) -> Result<KeyHandle, KeyError> {
        let fresh = || (0..32).collect();
        self.keys
            .lock()
            .unwrap()
            .entry(id.to_string())
            .or_insert_with(fresh);
        Ok(KeyHandle(id.to_string()))
    }

    fn derive(&self, base: &KeyHandle, data: &[u8]) -> Result<KeyHandle, KeyError> {
        let key = self.hmac(base, data)?;
        let id = format!("{}/{}", base.0, String::from_utf8_lossy(data));
        self.put(&id, &key);
        Ok(KeyHandle(id))
    }

    fn export(&self, derived: &KeyHandle) -> Result<Secret, KeyError> {
        let keys = self.keys.lock().unwrap();
        keys.get(&derived.0)
            .map(|k| Secret::new(k.clone()))
            .ok_or_else(|| no("invalid handle"))
    }

    fn hmac(&self, key: &KeyHandle, message: &[u8]) -> Result<[u8; 32], KeyError> {
        let keys = self.keys.lock().unwrap();
        let key = keys.get(&key.0).ok_or_else(|| no("invalid handle"))?;
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
        Ok(tag.as_ref().try_into().unwrap())
    }

    fn ecdsa(&self, pair: &KeyHandle, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        let digest = Digest::import_less_safe(digest, &SHA256).unwrap();
        match self.pairs.lock().unwrap().get(&pair.0) {
            Some(Pair::Ec(pair)) => Ok(pair.sign_digest(&digest).unwrap().as_ref().to_vec()),
            Some(Pair::Rsa(_)) => Err(no("mechanism")),
            None => Err(no("invalid handle")),
        }
    }

    fn rsa(&self, pair: &KeyHandle, digest_info: &[u8]) -> Result<Vec<u8>, KeyError> {
        let digest = Digest::import_less_safe(&digest_info[19..], &SHA256).unwrap();
        match self.pairs.lock().unwrap().get(&pair.0) {
            Some(Pair::Rsa(pair)) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign_digest(&RSA_PKCS1_SHA256, &digest, &mut signature)
                    .unwrap();
                Ok(signature)
            }
            Some(Pair::Ec(_)) => Err(no("mechanism")),
            None => Err(no("invalid handle")),
        }
    }
}

/// A folder that goes when its test does.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// A new one, for this test alone.
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("identityd-{name}-{}", std::process::id()));
        let _ = std::fs::create_dir_all(&path);
        set_mode(&path, 0o700);
        Self(path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Puts a file, readable by all.
    #[expect(
        clippy::disallowed_methods,
        reason = "an operator's file, made before the test"
    )]
    pub(crate) fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        set_mode(&path, 0o644);
        path
    }
}

impl Drop for Folder {
    #[expect(clippy::disallowed_methods, reason = "a test's own folder")]
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Runs the openssl command line; its output, and whether it was content.
#[expect(
    clippy::disallowed_methods,
    reason = "a second opinion from another implementation"
)]
pub(crate) fn openssl(arguments: &[&str]) -> (bool, String) {
    let output = std::process::Command::new("openssl")
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// The user this test runs as.
pub(crate) fn uid() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").unwrap().uid()
}
