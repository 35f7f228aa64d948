//! Private keys as PEM text: written as PKCS#8, read in the three unencrypted forms that are found
//! in installations. No buffer with key bytes is left behind unwiped.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// How a private key is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// PKCS#8, `PRIVATE KEY`.
    Pkcs8,
    /// SEC1, `EC PRIVATE KEY`.
    Ec,
    /// PKCS#1, `RSA PRIVATE KEY`.
    Rsa,
}

/// A private key in DER.
pub struct Der {
    /// How it is encoded.
    pub form: Form,
    /// The bytes.
    pub der: Zeroizing<Vec<u8>>,
}

const LABELS: [(Form, &str); 3] = [
    (Form::Pkcs8, "PRIVATE KEY"),
    (Form::Ec, "EC PRIVATE KEY"),
    (Form::Rsa, "RSA PRIVATE KEY"),
];

/// Whether a file is meant as PEM at all: raw symmetric keys do not look like this.
#[must_use]
pub fn is_pem(text: &[u8]) -> bool {
    text.trim_ascii_start().starts_with(b"-----BEGIN ")
}

/// The first private key in a text; other objects before it, such as curve parameters, are
/// skipped. `None` for encrypted ones and whatever else is no private key.
#[must_use]
pub fn read(text: &[u8]) -> Option<Der> {
    let text = std::str::from_utf8(text).ok()?;
    let mut lines = text.lines().map(str::trim_end);
    loop {
        let label = loop {
            let line = lines.next()?;
            if let Some(label) = line.strip_prefix("-----BEGIN ") {
                break label.strip_suffix("-----")?;
            }
        };
        let mut body = Zeroizing::new(String::with_capacity(text.len()));
        loop {
            let line = lines.next()?;
            if let Some(end) = line.strip_prefix("-----END ") {
                if end.strip_suffix("-----") != Some(label) {
                    return None;
                }
                break;
            }
            body.push_str(line);
        }
        if let Some((form, _)) = LABELS.iter().find(|(_, known)| *known == label) {
            let mut der = Zeroizing::new(vec![0; body.len()]);
            let length = STANDARD.decode_slice(body.as_bytes(), &mut der).ok()?;
            der.truncate(length);
            return Some(Der { form: *form, der });
        }
    }
}

/// PKCS#8 in PEM, as `openssl pkey` writes it.
#[must_use]
pub fn write_pkcs8(der: &[u8]) -> Zeroizing<Vec<u8>> {
    let body = Zeroizing::new(STANDARD.encode(der));
    // Room for everything at once, so that no smaller copy is left behind.
    let mut text = Zeroizing::new(Vec::with_capacity(body.len() + body.len() / 64 + 64));
    text.extend(b"-----BEGIN PRIVATE KEY-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line);
        text.push(b'\n');
    }
    text.extend(b"-----END PRIVATE KEY-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for length in [0, 1, 47, 48, 49, 1200] {
            let text = write_pkcs8(&vec![7; length]);
            let key = read(&text).unwrap();
            assert_eq!((key.form, key.der.len()), (Form::Pkcs8, length));
            assert!(is_pem(&text));
        }
    }

    #[test]
    fn other_objects_are_skipped_and_broken_ones_refused() {
        let ec = "-----BEGIN EC PARAMETERS-----\nAAAA\n-----END EC PARAMETERS-----\r\n\
                  -----BEGIN EC PRIVATE KEY-----\r\nAQID\r\n-----END EC PRIVATE KEY-----\r\n";
        assert_eq!(read(ec.as_bytes()).unwrap().form, Form::Ec);
        for bad in [
            "",
            "-----BEGIN PRIVATE KEY-----\nAQID\n",
            "-----BEGIN PRIVATE KEY-----\nAQID\n-----END EC PRIVATE KEY-----\n",
            "-----BEGIN PRIVATE KEY-----\nA!ID\n-----END PRIVATE KEY-----\n",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAQID\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAQID\n-----END RSA PRIVATE KEY-----\n",
        ] {
            assert!(read(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
