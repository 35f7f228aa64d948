//! Random ids, etags and keys.

use aws_lc_rs::rand;
use contract::sas::SasKey;
use zeroize::Zeroizing;

/// Fills an array. The generator seeds itself from the kernel before the first byte.
fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    #[expect(
        clippy::expect_used,
        reason = "fill fails only when the kernel has no random source; \
        a service that went on then would make guessable keys"
    )]
    rand::fill(&mut out).expect("the kernel has a random source");
    out
}

/// A new key.
#[must_use]
pub(crate) fn key() -> SasKey {
    #[expect(clippy::expect_used, reason = "32 is between 16 and 64")]
    SasKey::new(Zeroizing::new(bytes::<32>().to_vec())).expect("32 bytes are a key")
}

/// An opaque tag that changes with each version of a record.
#[must_use]
pub(crate) fn etag() -> String {
    format!("{:016x}", u64::from_ne_bytes(bytes()))
}

/// The name of one life of an identity: digits, as the public hub writes it.
#[must_use]
pub(crate) fn generation() -> String {
    format!("{}", u64::from_ne_bytes(bytes()) >> 1)
}

/// A random GUID.
#[must_use]
pub(crate) fn guid() -> String {
    let b = u128::from_ne_bytes(bytes());
    let b = (b & !(0xf << 76 | 0x3 << 62)) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{b:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}
