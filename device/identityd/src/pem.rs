//! Certificates in PEM, read strictly and written in one form (A78).
//!
//! A [`Chain`] holds parsed certificates only, leaf first, within the limits of security.md 7. A
//! private key among them is never kept: an import with one is refused, and from an operator's
//! file the part is left out and counted. Comment lines between the blocks are not kept.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// The longest PEM text looked at.
pub const MAX_TEXT: usize = 256 * 1024;
/// The most certificates in one text.
pub const MAX_CERTIFICATES: usize = 64;

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// Why a text is no chain of certificates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// Longer than [`MAX_TEXT`].
    #[error("longer than {MAX_TEXT} bytes")]
    TooLong,
    /// More than [`MAX_CERTIFICATES`].
    #[error("more than {MAX_CERTIFICATES} certificates")]
    TooMany,
    /// Holds no certificate at all.
    #[error("no certificate in it")]
    Empty,
    /// A block that does not end, or does not decode.
    #[error("block {index} is not PEM: {why}")]
    Syntax {
        /// Counted from one.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// A block that is no certificate (A78). Its text is not repeated.
    #[error("block {index} is not a certificate; only certificates belong there")]
    Foreign {
        /// Counted from one.
        index: usize,
    },
    /// A block that says certificate and is none.
    #[error("certificate {index} does not parse")]
    Broken {
        /// Counted from one.
        index: usize,
    },
}

/// One PEM block.
struct Block {
    label: String,
    der: Vec<u8>,
}

/// Certificates, leaf first; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain(Vec<Vec<u8>>);

impl Chain {
    /// Reads a text that must hold certificates and nothing else.
    ///
    /// # Errors
    /// [`PemError`] with the first block that is wrong.
    pub fn parse(text: &str) -> Result<Self, PemError> {
        let (chain, foreign) = read(text)?;
        match foreign {
            Some(index) => Err(PemError::Foreign { index }),
            None => chain.ok_or(PemError::Empty),
        }
    }

    /// Reads an operator's file: what is no certificate is left out, and the second value is the
    /// number of the first such part.
    ///
    /// # Errors
    /// [`PemError`] when there is no certificate, or a block is broken.
    pub fn parse_file(text: &str) -> Result<(Self, Option<usize>), PemError> {
        let (chain, foreign) = read(text)?;
        Ok((chain.ok_or(PemError::Empty)?, foreign))
    }

    /// A new certificate before its issuers.
    #[must_use]
    pub fn with_leaf(leaf: Vec<u8>, issuers: Option<&Self>) -> Self {
        let mut all = vec![leaf];
        all.extend(
            issuers
                .into_iter()
                .flat_map(|chain| chain.0.iter().cloned()),
        );
        Self(all)
    }

    /// These certificates, then others.
    #[must_use]
    pub fn and(mut self, mut others: Self) -> Self {
        self.0.append(&mut others.0);
        self
    }

    /// The first certificate, in DER.
    #[must_use]
    pub fn leaf(&self) -> &[u8] {
        self.0.first().map_or(&[], Vec::as_slice)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The one form we write: 64 columns, line feeds.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let mut out = String::new();
        for der in &self.0 {
            write("CERTIFICATE", der, &mut out);
        }
        out
    }
}

/// Reads the one PKCS#10 block of a certificate request.
///
/// # Errors
/// [`PemError`] unless there is exactly one block with one of the two labels in use.
pub fn request(text: &str) -> Result<Vec<u8>, PemError> {
    let mut blocks = blocks(text)?.into_iter();
    match (blocks.next(), blocks.next()) {
        (Some(block), None) if is_request(&block.label) => Ok(block.der),
        (Some(_), None) => Err(PemError::Foreign { index: 1 }),
        (Some(_), Some(_)) => Err(PemError::Foreign { index: 2 }),
        (None, _) => Err(PemError::Empty),
    }
}

fn is_request(label: &str) -> bool {
    // Older tools write the second form.
    matches!(label, "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST")
}

/// All certificates, and the number of the first block that is none.
fn read(text: &str) -> Result<(Option<Chain>, Option<usize>), PemError> {
    let (mut certificates, mut foreign) = (Vec::new(), None);
    for (at, block) in blocks(text)?.into_iter().enumerate() {
        let index = at + 1;
        if block.label != "CERTIFICATE" {
            foreign = foreign.or(Some(index));
            continue;
        }
        match X509Certificate::from_der(&block.der) {
            Ok(([], _)) => certificates.push(block.der),
            _ => return Err(PemError::Broken { index }),
        }
    }
    let chain = (!certificates.is_empty()).then_some(Chain(certificates));
    Ok((chain, foreign))
}

fn blocks(text: &str) -> Result<Vec<Block>, PemError> {
    if text.len() > MAX_TEXT {
        return Err(PemError::TooLong);
    }
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim_end);
    while let Some(line) = lines.next() {
        let Some(label) = marker(line, BEGIN) else {
            continue;
        };
        let index = blocks.len() + 1;
        if index > MAX_CERTIFICATES {
            return Err(PemError::TooMany);
        }
        let fail = |why| PemError::Syntax { index, why };
        let mut body = String::new();
        loop {
            let line = lines.next().ok_or(fail("it has no end"))?;
            if line.starts_with(DASHES) {
                if marker(line, END) != Some(label) {
                    return Err(fail("its end does not fit its beginning"));
                }
                break;
            }
            body.push_str(line);
        }
        // A private key may have header lines; its body is not decoded, so no copy of it is made.
        let der = match label {
            "CERTIFICATE" => STANDARD.decode(&body).map_err(|_| fail("not base64"))?,
            label if is_request(label) => STANDARD.decode(&body).map_err(|_| fail("not base64"))?,
            _ => Vec::new(),
        };
        blocks.push(Block {
            label: label.to_owned(),
            der,
        });
    }
    Ok(blocks)
}

fn marker<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    line.strip_prefix(kind)?.strip_suffix(DASHES)
}

fn write(label: &str, der: &[u8], out: &mut String) {
    out.push_str(BEGIN);
    out.push_str(label);
    out.push_str("-----\n");
    let text = STANDARD.encode(der);
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = more;
    }
    out.push_str(END);
    out.push_str(label);
    out.push_str("-----\n");
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate() -> String {
        let key = KeyPair::generate().unwrap();
        CertificateParams::new(vec!["a.test".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap()
            .pem()
    }

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n";

    #[test]
    fn a78_only_certificates_are_taken_and_written_in_one_form() {
        let one = certificate();
        let read = Chain::parse(&one).unwrap();
        assert_eq!(read.to_pem(), one);
        let noisy = format!("# a comment\r\n{}\r\ntrailing", one.replace('\n', "\r\n"));
        assert_eq!(Chain::parse(&noisy).unwrap(), read);
        let two = format!("{one}{}", certificate());
        assert_eq!(Chain::parse(&two).unwrap().count(), 2);
    }

    #[test]
    fn a78_a_private_key_is_refused_in_an_import_and_left_out_of_a_file() {
        let one = certificate();
        for text in [format!("{one}{KEY}"), format!("{KEY}{one}")] {
            assert!(matches!(Chain::parse(&text), Err(PemError::Foreign { .. })));
            let (chain, foreign) = Chain::parse_file(&text).unwrap();
            assert!(foreign.is_some());
            assert_eq!(chain.to_pem(), one);
        }
        assert_eq!(Chain::parse_file(KEY), Err(PemError::Empty));
    }

    #[test]
    fn a78_limits_and_broken_blocks_are_told() {
        let one = certificate();
        let body = one.lines().nth(1).unwrap();
        let many = one.repeat(MAX_CERTIFICATES);
        assert_eq!(Chain::parse(&many).unwrap().count(), MAX_CERTIFICATES);
        for (text, want) in [
            (format!("{many}{one}"), PemError::TooMany),
            (" ".repeat(MAX_TEXT + 1), PemError::TooLong),
            (String::new(), PemError::Empty),
            ("no PEM here".to_owned(), PemError::Empty),
            (
                one.replace("-----END CERTIFICATE-----", ""),
                PemError::Syntax {
                    index: 1,
                    why: "it has no end",
                },
            ),
            (
                one.replace("END CERTIFICATE", "END OTHER"),
                PemError::Syntax {
                    index: 1,
                    why: "its end does not fit its beginning",
                },
            ),
            (
                one.replace(body, "*"),
                PemError::Syntax {
                    index: 1,
                    why: "not base64",
                },
            ),
            (one.replace(body, ""), PemError::Broken { index: 1 }),
        ] {
            assert_eq!(Chain::parse(&text), Err(want));
        }
    }
}
