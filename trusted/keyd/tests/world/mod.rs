//! A daemon over a scratch directory, called by its handlers as any user.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests look at and damage files, and fail by panicking"
)]
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test program uses a part of this"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contract::api::key::{
    self as api, AeadParameters, CipherAlgorithm, KeyHandle, Parameter, SignAlgorithm,
    SignParameters, Usage,
};
use contract::bytes::{Bytes, Secret};
use contract::endpoint::{Ask, Empty};
use contract::names::KeyId;
use contract::refusal::Refusal;
use keyd::config::Config;
use keyd::daemon::{Keyd, User};
use keyd::{cipher, keys, pairs, sign};
use local::config::Sources;
use local::files::{Dir, Rules};

pub(crate) struct World {
    pub(crate) home: PathBuf,
    policy: String,
    keyd: Option<Keyd>,
}

fn id(text: &str) -> KeyId {
    KeyId::new(text).unwrap()
}

/// A `DigestInfo` of SHA-256.
pub(crate) fn digest_info() -> Vec<u8> {
    let mut info = vec![0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01];
    info.extend([0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20]);
    info.extend(contract::audit::hash(b"message"));
    info
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

impl World {
    pub(crate) fn new(policy: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("holdfast-keyd-{}-{number}", std::process::id());
        let home = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&home);
        std::fs::create_dir(&home).unwrap();
        chmod(&home, 0o700);
        let mut world = Self {
            home,
            policy: policy.to_owned(),
            keyd: None,
        };
        world.restart();
        world
    }

    fn config(&self, policy: &str) -> Config {
        let home = format!("[aziot_keys]\nhomedir_path = '{}'\n", self.home.display());
        Config::parse(&Sources::of(&[("policy", policy), ("home", &home)])).unwrap()
    }

    pub(crate) fn try_restart(&mut self) -> Result<(), String> {
        self.keyd = None;
        let config = self.config(&self.policy);
        let keyd = keyd::open(&config, local::files::own_uid()).map_err(|e| e.to_string())?;
        self.keyd = Some(keyd);
        Ok(())
    }

    pub(crate) fn restart(&mut self) {
        self.try_restart().unwrap();
    }

    pub(crate) fn into_keyd(mut self) -> (Keyd, PathBuf) {
        (self.keyd.take().unwrap(), self.home.clone())
    }

    pub(crate) fn set_policy(&self, policy: &str) {
        self.keyd().set_policy(self.config(policy).policy).unwrap();
    }

    fn keyd(&self) -> &Keyd {
        self.keyd.as_ref().unwrap()
    }

    pub(crate) fn key_dir(&self) -> PathBuf {
        self.home.join("keys")
    }

    /// Every file of keys with its content, and every other one by name.
    pub(crate) fn keys(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(self.key_dir()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            files.insert(name, std::fs::read(&path).unwrap());
        }
        files
    }

    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.keys()
    }

    pub(crate) fn files_ending(&self, ending: &str) -> Vec<PathBuf> {
        let names = self.keys().into_keys();
        names
            .filter(|n| n.ends_with(ending))
            .map(|n| self.key_dir().join(n))
            .collect()
    }

    pub(crate) fn key_file(&self, id: &str) -> PathBuf {
        let plain: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
        let hash = contract::audit::hex(&contract::audit::hash(id.as_bytes()));
        self.key_dir().join(format!("{plain}-{hash}.key"))
    }

    pub(crate) fn put_key_file(&self, id: &str, bytes: &[u8]) {
        let path = self.key_file(id);
        std::fs::write(&path, bytes).unwrap();
        chmod(&path, 0o600);
    }

    pub(crate) fn audit_text(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(self.home.join("audit")).unwrap() {
            let path = entry.unwrap().path();
            text.push_str(&String::from_utf8_lossy(&std::fs::read(path).unwrap()));
        }
        text
    }

    /// Records of one event.
    pub(crate) fn audit(&self, event: &str) -> Vec<String> {
        let word = format!("\"event\":\"{event}\"");
        let text = self.audit_text();
        text.lines()
            .filter(|l| l.contains(&word))
            .map(ToOwned::to_owned)
            .collect()
    }

    pub(crate) fn stop(&self) {
        self.keyd().close();
    }

    pub(crate) fn verify(&self, point: &str) -> contract::audit::Report {
        let rules = Rules::private(local::files::own_uid());
        let dir = Dir::look(&self.home.join("audit"), rules).unwrap();
        let key = STANDARD.decode(point).unwrap();
        local::audit::verify_dir(&dir, Some(&key)).unwrap()
    }

    pub(crate) fn cut_audit_log(&self) {
        let name = format!("audit-{:020}.log", 1);
        let path = self.home.join("audit").join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        let last = text.trim_end().rfind('\n').unwrap();
        std::fs::write(&path, &text[..=last]).unwrap();
    }

    pub(crate) fn lose_audit_directory(&self) {
        std::fs::remove_dir_all(self.home.join("audit")).unwrap();
    }

    pub(crate) fn key(&self, who: User, key: &str, usage: &str) -> Result<KeyHandle, Refusal> {
        self.create(who, key, usage, None)
    }

    pub(crate) fn import(&self, who: User, key: &str, bytes: &[u8]) -> Result<KeyHandle, Refusal> {
        self.create(who, key, "sign", Some(Secret::new(bytes.to_vec())))
    }

    fn create(
        &self,
        who: User,
        key: &str,
        usage: &str,
        key_bytes: Option<Secret>,
    ) -> Result<KeyHandle, Refusal> {
        let body = api::CreateKeyRequest {
            key_id: id(key),
            usage: Usage::try_from(usage.to_owned()).unwrap(),
            key_bytes,
        };
        keys::create(self.keyd(), &who, Ask { target: (), body }).map(|r| r.key_handle)
    }

    pub(crate) fn pair(&self, who: User, key: &str, preferred: &str) -> Result<KeyHandle, Refusal> {
        let body = api::CreateKeyPairRequest {
            key_id: id(key),
            preferred_algorithms: Some(preferred.to_owned()),
        };
        pairs::create(self.keyd(), &who, Ask { target: (), body }).map(|r| r.key_handle)
    }

    pub(crate) fn load_key(&self, who: User, key: &str) -> Result<KeyHandle, Refusal> {
        let ask = Ask {
            target: id(key),
            body: Empty,
        };
        keys::load(self.keyd(), &who, ask).map(|r| r.key_handle)
    }

    pub(crate) fn load_pair(&self, who: User, key: &str) -> Result<KeyHandle, Refusal> {
        let ask = Ask {
            target: id(key),
            body: Empty,
        };
        pairs::load(self.keyd(), &who, ask).map(|r| r.key_handle)
    }

    pub(crate) fn rename(&self, who: User, from: &str, to: &str) -> Result<Empty, Refusal> {
        let body = api::MoveRequest { from: id(from) };
        pairs::rename(
            self.keyd(),
            &who,
            Ask {
                target: id(to),
                body,
            },
        )
    }

    pub(crate) fn rename_key(&self, who: User, from: &str, to: &str) -> Result<Empty, Refusal> {
        let body = api::MoveRequest { from: id(from) };
        keys::rename(
            self.keyd(),
            &who,
            Ask {
                target: id(to),
                body,
            },
        )
    }

    fn handle<E>(handle: &KeyHandle) -> Ask<E>
    where
        E: contract::endpoint::Endpoint<Target = (), Request = api::HandleRequest>,
    {
        let key_handle = handle.clone();
        Ask {
            target: (),
            body: api::HandleRequest { key_handle },
        }
    }

    pub(crate) fn delete_key(&self, who: User, handle: &KeyHandle) -> Result<Empty, Refusal> {
        keys::delete(self.keyd(), &who, Self::handle(handle))
    }

    pub(crate) fn delete_pair(&self, who: User, handle: &KeyHandle) -> Result<Empty, Refusal> {
        pairs::delete(self.keyd(), &who, Self::handle(handle))
    }

    pub(crate) fn export(&self, who: User, handle: &KeyHandle) -> Result<Vec<u8>, Refusal> {
        let answer = keys::export(self.keyd(), &who, Self::handle(handle));
        answer.map(|r| r.key.expose().to_vec())
    }

    pub(crate) fn derive(
        &self,
        who: User,
        base: &KeyHandle,
        data: &[u8],
    ) -> Result<KeyHandle, Refusal> {
        let body = api::DeriveRequest {
            base_key_handle: base.clone(),
            derivation_data: Bytes(data.to_vec()),
        };
        keys::derive(self.keyd(), &who, Ask { target: (), body }).map(|r| r.key_handle)
    }

    pub(crate) fn parameter(
        &self,
        who: User,
        handle: &KeyHandle,
        target: Parameter,
    ) -> Result<String, Refusal> {
        let body = api::HandleRequest {
            key_handle: handle.clone(),
        };
        pairs::parameter(self.keyd(), &who, Ask { target, body }).map(|r| r.value)
    }

    pub(crate) fn hmac(
        &self,
        who: User,
        handle: &KeyHandle,
        text: &[u8],
    ) -> Result<Vec<u8>, Refusal> {
        let parameters = SignParameters::Message(Bytes(text.to_vec()));
        self.sign(who, handle, SignAlgorithm::HmacSha256, parameters)
    }

    pub(crate) fn ecdsa(
        &self,
        who: User,
        handle: &KeyHandle,
        digest: &[u8],
    ) -> Result<Vec<u8>, Refusal> {
        let parameters = SignParameters::Digest(Bytes(digest.to_vec()));
        self.sign(who, handle, SignAlgorithm::Ecdsa, parameters)
    }

    fn sign(
        &self,
        who: User,
        handle: &KeyHandle,
        algorithm: SignAlgorithm,
        parameters: SignParameters,
    ) -> Result<Vec<u8>, Refusal> {
        let body = api::SignRequest {
            key_handle: handle.clone(),
            algorithm,
            parameters,
        };
        sign::sign(self.keyd(), &who, Ask { target: (), body }).map(|r| r.signature.0)
    }

    pub(crate) fn encrypt(
        &self,
        who: User,
        handle: &KeyHandle,
        algorithm: CipherAlgorithm,
        input: &[u8],
    ) -> Result<Vec<u8>, Refusal> {
        let body = api::EncryptRequest {
            key_handle: handle.clone(),
            algorithm,
            parameters: parameters(algorithm, &[3; 12], b"aad"),
            plaintext: Secret::new(input.to_vec()),
        };
        cipher::encrypt(self.keyd(), &who, Ask { target: (), body }).map(|r| r.ciphertext.0)
    }

    pub(crate) fn encrypt_with(
        &self,
        who: User,
        handle: &KeyHandle,
        iv: &[u8],
        aad: &[u8],
        input: &[u8],
    ) -> Result<Vec<u8>, Refusal> {
        let body = api::EncryptRequest {
            key_handle: handle.clone(),
            algorithm: CipherAlgorithm::Aead,
            parameters: parameters(CipherAlgorithm::Aead, iv, aad),
            plaintext: Secret::new(input.to_vec()),
        };
        cipher::encrypt(self.keyd(), &who, Ask { target: (), body }).map(|r| r.ciphertext.0)
    }

    pub(crate) fn decrypt(
        &self,
        who: User,
        handle: &KeyHandle,
        algorithm: CipherAlgorithm,
        input: &[u8],
    ) -> Result<Vec<u8>, Refusal> {
        let body = api::DecryptRequest {
            key_handle: handle.clone(),
            algorithm,
            parameters: parameters(algorithm, &[3; 12], b"aad"),
            ciphertext: Bytes(input.to_vec()),
        };
        let answer = cipher::decrypt(self.keyd(), &who, Ask { target: (), body });
        answer.map(|r| r.plaintext.expose().to_vec())
    }
}

fn parameters(algorithm: CipherAlgorithm, iv: &[u8], aad: &[u8]) -> Option<AeadParameters> {
    (algorithm == CipherAlgorithm::Aead).then(|| AeadParameters {
        iv: Bytes(iv.to_vec()),
        aad: Bytes(aad.to_vec()),
    })
}

impl Drop for World {
    fn drop(&mut self) {
        if self.keyd.is_some() {
            let _ = std::fs::remove_dir_all(&self.home);
        }
    }
}
