//! The signed files: `.cvmfspublished` and `.cvmfswhitelist`, and the certificate.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::hash::{fingerprints, hash, suffix};
use super::store::Store;
use super::{Finding, Findings, is_hash};

/// MD5 of the empty path, which every manifest names.
const ROOT_PATH_HASH: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// Size in bytes of the buffer into which clients read a local manifest.
const MANIFEST_LIMIT: usize = 4096;

/// The fields of `.cvmfspublished`, by letter.
pub struct Manifest {
    fields: BTreeMap<char, String>,
    /// Faults of the file as a whole.
    findings: Findings,
}

impl Manifest {
    /// Reads the manifest of the repository in `storage`.
    pub fn read(storage: &Path) -> Result<Self, Finding> {
        let place = ".cvmfspublished";
        let bytes = Store::new(storage).read_raw(place)?;
        let mut findings = Findings::default();
        if bytes.len() >= MANIFEST_LIMIT {
            findings.note(place, format_args!("fewer than {MANIFEST_LIMIT} bytes"), bytes.len());
        }
        let mut fields = BTreeMap::new();
        for line in signed_lines(place, &bytes, &mut findings) {
            let mut letters = line.chars();
            let letter = letters.next().unwrap_or('\n');
            if fields.insert(letter, letters.as_str().to_owned()).is_some() {
                findings.note(place, format_args!("field {letter} once"), "a second one");
            }
        }
        match fields.get(&'C') {
            Some(root) if is_hash(root) => Ok(Self { fields, findings }),
            root => {
                let expected = "the hash of the root catalog in field C".to_owned();
                Err(Finding { place: place.to_owned(), expected, found: format!("{root:?}") })
            }
        }
    }

    /// Returns a field's value.
    pub fn field(&self, letter: char) -> Option<&str> {
        self.fields.get(&letter).map(String::as_str)
    }

    /// Returns the number in a field, or 0.
    pub fn number(&self, letter: char) -> u64 {
        self.field(letter).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Returns the hash in a field if it is one.
    pub fn hash(&self, letter: char) -> Option<&str> {
        self.field(letter).filter(|text| is_hash(text))
    }

    /// Checks the form of all fields.
    pub fn check(&self, fqrn: &str, findings: &mut Findings) {
        findings.0.extend(self.findings.0.iter().cloned());
        let mut field = |letter: char, expected: &str, is_right: &dyn Fn(&str) -> bool| {
            let found = self.field(letter);
            if !found.is_some_and(is_right) {
                findings.note(
                    ".cvmfspublished",
                    format_args!("field {letter} with {expected}"),
                    format_args!("{found:?}"),
                );
            }
        };
        field('R', "the hash of the empty path", &|text| text == ROOT_PATH_HASH);
        field('N', fqrn, &|text| text == fqrn);
        for letter in ['B', 'D', 'S', 'T'] {
            field(letter, "a number above 0", &|text| text.parse::<u64>().is_ok_and(|number| number > 0));
        }
        for letter in ['H', 'X', 'Y'] {
            field(letter, "a hash", &is_hash);
        }
        for letter in ['G', 'A', 'M'] {
            let is_right = |text: &str| {
                if letter == 'M' { is_hash(text) } else { matches!(text, "yes" | "no") }
            };
            if self.field(letter).is_some() {
                field(letter, "a lawful value", &is_right);
            }
        }
        for letter in self.fields.keys().filter(|letter| !"ABCDGHMNRSTXY".contains(**letter)) {
            findings.note(".cvmfspublished", "only fields that are in use", format_args!("field {letter:?}"));
        }
    }
}

/// Checks the whitelist's form, and that it lists the certificate.
pub fn check_whitelist(store: &Store, fqrn: &str, certificate: Option<&[u8]>, findings: &mut Findings) {
    let place = ".cvmfswhitelist";
    let Some(bytes) = findings.keep(store.read_raw(place)) else {
        return;
    };
    let lines = signed_lines(place, &bytes, findings);
    let line = |number: usize| lines.get(number).map_or("", String::as_str);
    let is_date = |text: &str| text.len() == 14 && text.bytes().all(|b| b.is_ascii_digit());
    if !is_date(line(0)) {
        findings.note(place, "the time of issue in line 1", line(0));
    }
    if !line(1).strip_prefix('E').is_some_and(is_date) {
        findings.note(place, "the time of expiry in line 2", line(1));
    }
    findings.require(place, "line 3", format!("N{fqrn}").as_str(), line(2));
    if let Some(certificate) = certificate {
        let known = fingerprints(certificate);
        let is_listed = |line: &String| known.iter().any(|known| line.split(['#', ' ', '\t']).next() == Some(known));
        if !lines.iter().skip(3).any(is_listed) {
            findings.note(place, format_args!("the certificate's fingerprint {}", known[0]), "others or none");
        }
    }
}

/// Loads the certificate object and returns it in its binary form.
pub fn check_certificate(store: &Store, hash: &str, findings: &mut Findings) -> Option<Vec<u8>> {
    let pem = findings.keep(store.read(hash, "X"))?;
    let certificate = decode_pem(&String::from_utf8_lossy(&pem));
    if certificate.is_none() {
        findings.note(super::store::object_path(hash, "X"), "a PEM certificate", "something else");
    }
    certificate
}

/// Splits a signed file into its lines, and checks that their hash and a signature follow.
fn signed_lines(place: &str, bytes: &[u8], findings: &mut Findings) -> Vec<String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\n--\n") else {
        findings.note(place, "a line '--' before the signature", "none");
        return Vec::new();
    };
    let (text, rest) = (&bytes[..=end], &bytes[end + 4..]);
    let line = rest.iter().position(|&byte| byte == b'\n').map_or(rest, |end| &rest[..=end]);
    let stated = String::from_utf8_lossy(line);
    findings.require(place, "hash line", format!("{}\n", hash(text, suffix(stated.trim_end()))), stated.to_string());
    if rest.len() <= line.len() {
        findings.note(place, "a signature", "the end of the file");
    }
    String::from_utf8_lossy(text).lines().map(str::to_owned).collect()
}

/// Returns the DER bytes of the first certificate in a PEM file if they are exactly one complete ASN.1 sequence.
fn decode_pem(pem: &str) -> Option<Vec<u8>> {
    let (_, rest) = pem.split_once("-----BEGIN CERTIFICATE-----\n")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
    let (mut der, mut bits, mut width) = (Vec::new(), 0u32, 0);
    for byte in body.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r' | b'=')) {
        let value =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".iter().position(|&b| b == byte)?;
        bits = bits << 6 | value as u32;
        width += 6;
        if width >= 8 {
            width -= 8;
            der.push((bits >> width) as u8);
        }
    }
    let length = match der.get(..4)? {
        [0x30, 0x82, high, low] => usize::from(*high) << 8 | usize::from(*low),
        _ => return None,
    };
    (der.len() == length + 4).then_some(der)
}

/// Checks the links through which clients find certificate and root catalog when field A says `yes`.
pub fn check_alternative_paths(storage: &Path, manifest: &Manifest, findings: &mut Findings) {
    if manifest.field('A') != Some("yes") {
        return;
    }
    for (letter, suffix) in [('C', "C"), ('X', "X")] {
        let name = format!(".cvmfsalt-{}{suffix}", manifest.field(letter).unwrap_or(""));
        if fs::metadata(storage.join(&name)).is_err() {
            findings.note(&name, "a link to the object", "none");
        }
    }
}
