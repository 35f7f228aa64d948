//! Who may do what with which key: one table, one question, one answer (R17).
//!
//! The table comes from configuration and is data; [`judge`] is the only reader of it. Nothing is
//! allowed that no row allows, and root is no exception: it may administer keys, and use them only
//! when the table's switch says so. A delegate may use a key through a handle that its issuer
//! obtained (R18), never administer it. Ids are matched whole, byte by byte and case by case.

use serde::{Deserialize, Serialize};

use crate::names::KeyId;

/// One thing a key can be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// HMAC over a message, which is how tokens are made.
    SignToken,
    /// Signature over a certificate or a certificate request.
    SignCert,
    /// Signature inside a TLS handshake.
    Tls,
    /// Naming a key derived from this one.
    Derive,
    /// AEAD encryption.
    Encrypt,
    /// AEAD decryption.
    Decrypt,
    /// Handing out the bytes of a key derived from this one; off by default (R19).
    ExportDerived,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::SignToken,
        Self::SignCert,
        Self::Tls,
        Self::Derive,
        Self::Encrypt,
        Self::Decrypt,
        Self::ExportDerived,
    ];

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// A set of purposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Purpose>", into = "Vec<Purpose>")]
pub struct Purposes(u16);

impl Purposes {
    /// None at all: enough to ask for public parameters and to administer.
    pub const NONE: Self = Self(0);
    /// What a row grants that does not say: everything but the export of derived keys.
    pub const USUAL: Self = Self(0b011_1111);
    /// Everything.
    pub const ALL: Self = Self(0b111_1111);
    /// The export of derived keys.
    pub const EXPORT: Self = Self(Purpose::ExportDerived.bit());
    /// What an HMAC signature is.
    pub const TOKEN: Self = Self(Purpose::SignToken.bit());
    /// What a signature over a digest may be for: the request does not say which.
    pub const DIGEST: Self = Self(Purpose::SignCert.bit() | Purpose::Tls.bit());

    /// A set of the given purposes.
    #[must_use]
    pub fn of(purposes: &[Purpose]) -> Self {
        Self(purposes.iter().fold(0, |bits, p| bits | p.bit()))
    }

    /// The bits, for a handle.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// From the bits of a handle; `None` when a bit is unknown.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Option<Self> {
        if bits & !Self::ALL.0 == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// Whether one of `others` is in the set.
    #[must_use]
    pub const fn any(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    /// Whether the purpose is in the set.
    #[must_use]
    pub const fn has(self, purpose: Purpose) -> bool {
        self.0 & purpose.bit() != 0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// The set without some.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }
}

impl From<Vec<Purpose>> for Purposes {
    fn from(list: Vec<Purpose>) -> Self {
        Self::of(&list)
    }
}

impl From<Purposes> for Vec<Purpose> {
    fn from(set: Purposes) -> Self {
        Purpose::ALL.into_iter().filter(|p| set.has(*p)).collect()
    }
}

/// One row: a principal, the keys it is concerned with, and what it may do with them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The principal's user id.
    pub uid: u32,
    /// Patterns of key ids: `*` is any run of bytes, `?` is one.
    pub keys: Vec<String>,
    /// What for.
    #[serde(default = "usual")]
    pub purposes: Purposes,
    /// Users who may use the handles this principal obtains.
    #[serde(default)]
    pub delegates: Vec<u32>,
    /// Whether an import may replace a key by other bytes (R24).
    #[serde(default)]
    pub replace: bool,
}

fn usual() -> Purposes {
    Purposes::USUAL
}

/// The table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Its rows; several for one uid add up.
    pub rows: Vec<Row>,
    /// Whether root may also use keys, as in the compatible service.
    pub root_may_use_keys: bool,
}

/// An act on a key as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Create it, or import it where none is.
    Create,
    /// Obtain a handle for it.
    Load,
    /// Import over it.
    Replace,
    /// Delete it.
    Delete,
    /// Move it away, or move another to its id.
    Move,
}

impl Act {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Create,
        Self::Load,
        Self::Replace,
        Self::Delete,
        Self::Move,
    ];
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// May the key be administered so?
    Administer(Act),
    /// May it be used for one of these purposes?
    Use(Purposes),
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Allow,
    /// No row concerns this principal and this key.
    NoRow,
    /// A row does, but not for this.
    NotForThis,
}

/// The one question: this user, this key, this act or purpose.
#[must_use]
pub fn judge(policy: &Policy, uid: u32, key: &KeyId, question: Question) -> Verdict {
    if uid == 0 && (policy.root_may_use_keys || matches!(question, Question::Administer(_))) {
        return Verdict::Allow;
    }
    let mut verdict = Verdict::NoRow;
    for row in &policy.rows {
        let own = row.uid == uid;
        let concerned = match question {
            Question::Administer(_) => own,
            Question::Use(_) => own || row.delegates.contains(&uid),
        };
        if !concerned || !row.covers(key) {
            continue;
        }
        let granted = match question {
            Question::Administer(Act::Replace) => row.replace,
            Question::Administer(_) => true,
            // A delegate signs for its principal; it never takes bytes away (R19).
            Question::Use(purposes) if own => row.purposes.any(purposes),
            Question::Use(purposes) => row.purposes.without(Purposes::EXPORT).any(purposes),
        };
        if granted {
            return Verdict::Allow;
        }
        verdict = Verdict::NotForThis;
    }
    verdict
}

/// What a handle is issued with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The purposes of every row that concerns issuer and key.
    pub purposes: Purposes,
    /// The issuer and its delegates, sorted.
    pub users: Vec<u32>,
}

/// What a handle for this key obtained by this user carries; for a user without a row, root
/// included, only the right to be named.
#[must_use]
pub fn grant(policy: &Policy, uid: u32, key: &KeyId) -> Grant {
    let mut grant = Grant {
        purposes: Purposes::NONE,
        users: vec![uid],
    };
    if uid == 0 && policy.root_may_use_keys {
        grant.purposes = Purposes::ALL;
    }
    for row in policy.rows.iter().filter(|r| r.uid == uid && r.covers(key)) {
        grant.purposes = grant.purposes.with(row.purposes);
        grant.users.extend(&row.delegates);
    }
    grant.users.sort_unstable();
    grant.users.dedup();
    grant
}

impl Row {
    /// Whether one of the patterns matches.
    #[must_use]
    pub fn covers(&self, key: &KeyId) -> bool {
        self.keys
            .iter()
            .any(|pattern| glob(pattern.as_bytes(), key.as_str().as_bytes()))
    }
}

/// Matches the whole text; linear in memory, and quadratic in time at worst (both are short).
#[must_use]
pub fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> KeyId {
        KeyId::new(text).unwrap()
    }

    fn row(uid: u32, keys: &[&str], purposes: Purposes) -> Row {
        Row {
            uid,
            keys: keys.iter().map(|&k| k.to_owned()).collect(),
            purposes,
            delegates: vec![],
            replace: false,
        }
    }

    /// Every user, key, act and purpose against a table written out by hand.
    #[test]
    fn a41_the_complete_matrix() {
        const OWNER: u32 = 100;
        const DELEGATE: u32 = 200;
        const STRANGER: u32 = 300;
        let signing = Purposes::of(&[Purpose::SignToken, Purpose::Derive]);
        let mut first = row(OWNER, &["device-*"], signing);
        first.delegates = vec![DELEGATE];
        let mut second = row(OWNER, &["tls"], Purposes::of(&[Purpose::Tls]));
        second.replace = true;
        for root_may_use_keys in [false, true] {
            let policy = Policy {
                rows: vec![first.clone(), second.clone()],
                root_may_use_keys,
            };
            for uid in [0, OWNER, DELEGATE, STRANGER] {
                for key in ["device-id", "tls", "other"] {
                    for act in Act::ALL {
                        let want = match (uid, key, act) {
                            (0, _, _) => Verdict::Allow,
                            (OWNER, "device-id", Act::Replace) => Verdict::NotForThis,
                            (OWNER, "device-id" | "tls", _) => Verdict::Allow,
                            _ => Verdict::NoRow,
                        };
                        let got = judge(&policy, uid, &id(key), Question::Administer(act));
                        assert_eq!(got, want, "{uid} {key} {act:?} {root_may_use_keys}");
                    }
                    for purpose in Purpose::ALL {
                        use Purpose::{Derive, SignToken, Tls};
                        let want = match (uid, key, purpose) {
                            (0, _, _) if root_may_use_keys => Verdict::Allow,
                            (OWNER | DELEGATE, "device-id", SignToken | Derive)
                            | (OWNER, "tls", Tls) => Verdict::Allow,
                            (OWNER | DELEGATE, "device-id", _) | (OWNER, "tls", _) => {
                                Verdict::NotForThis
                            }
                            _ => Verdict::NoRow,
                        };
                        let question = Question::Use(Purposes::of(&[purpose]));
                        let got = judge(&policy, uid, &id(key), question);
                        assert_eq!(got, want, "{uid} {key} {purpose:?} {root_may_use_keys}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_empty_table_allows_nobody_anything_but_root_to_administer() {
        let policy = Policy::default();
        assert_eq!(
            judge(&policy, 1000, &id("k"), Question::Administer(Act::Load)),
            Verdict::NoRow
        );
        assert_eq!(
            judge(&policy, 0, &id("k"), Question::Use(Purposes::ALL)),
            Verdict::NoRow
        );
        assert_eq!(grant(&policy, 0, &id("k")).purposes, Purposes::NONE);
    }

    #[test]
    fn a41_a_delegate_never_takes_derived_keys_away() {
        let mut lent = row(7, &["master"], Purposes::ALL);
        lent.delegates = vec![9];
        let policy = Policy {
            rows: vec![lent],
            root_may_use_keys: false,
        };
        let asks = |uid, purposes| judge(&policy, uid, &id("master"), Question::Use(purposes));
        assert_eq!(asks(7, Purposes::EXPORT), Verdict::Allow);
        assert_eq!(asks(9, Purposes::EXPORT), Verdict::NotForThis);
        assert_eq!(asks(9, Purposes::TOKEN), Verdict::Allow);
    }

    #[test]
    fn rows_of_one_user_add_up_and_delegates_are_named_once() {
        let mut one = row(7, &["a*"], Purposes::TOKEN);
        one.delegates = vec![9, 8];
        let mut two = row(7, &["ab"], Purposes::DIGEST);
        two.delegates = vec![8];
        let policy = Policy {
            rows: vec![one, two, row(9, &["*"], Purposes::ALL)],
            root_may_use_keys: false,
        };
        let both = grant(&policy, 7, &id("ab"));
        assert_eq!(both.purposes, Purposes::TOKEN.with(Purposes::DIGEST));
        assert_eq!(both.users, [7, 8, 9]);
        assert_eq!(grant(&policy, 7, &id("b")).purposes, Purposes::NONE);
        // A delegate has no right to what its issuer may administer.
        assert_eq!(
            judge(&policy, 8, &id("ab"), Question::Administer(Act::Load)),
            Verdict::NoRow
        );
    }

    #[test]
    fn export_of_derived_keys_is_not_among_the_usual_purposes() {
        assert!(!Purposes::USUAL.has(Purpose::ExportDerived));
        assert_eq!(
            Purposes::USUAL.with(Purposes::of(&[Purpose::ExportDerived])),
            Purposes::ALL
        );
        assert_eq!(Purposes::of(&Purpose::ALL), Purposes::ALL);
        assert_eq!(Purposes::from_bits(0x80), None);
    }

    #[test]
    fn a42_patterns_match_whole_ids_only() {
        for (pattern, key, want) in [
            ("*", "anything", true),
            ("a", "a", true),
            ("a", "A", false),
            ("a", "ab", false),
            ("a*", "a", true),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*-id", "device-id", true),
            ("device-id", "../device-id", false),
            ("device*", "x/device-id", false),
            ("", "a", false),
            ("[a]", "a", false),
            ("**a**b", "xaxb", true),
            ("a*a*a*a*a*a*a*b", &"a".repeat(256), false),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), key.as_bytes()),
                want,
                "{pattern} {key}"
            );
        }
        // A star in an id is a byte like any other: it widens nothing.
        assert!(!glob(b"device-id", b"*"));
        assert!(!glob(b"device-id", b"device-??"));
    }
}
