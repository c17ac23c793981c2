//! The three hash algorithms of object names.

use std::io::{self, Read};

use ripemd::Ripemd160;
use sha1::{Digest as _, Sha1};
use shake::Shake128;
use shake::digest::{ExtendableOutput as _, Update as _};

use super::hex;

/// What follows the digits of a hash, by the algorithm's number in the flags of a row.
const SUFFIXES: [&str; 3] = ["", "-rmd160", "-shake128"];

/// Returns whether `text` is a hash in the form of manifests, catalogs and tags: 40 lower-case digits and the suffix of an algorithm.
pub fn is_hash(text: &str) -> bool {
    let Some((digits, suffix)) = text.split_at_checked(40) else { return false };
    digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) && SUFFIXES.contains(&suffix)
}

/// Returns the suffix of a hash.
pub fn suffix(hash: &str) -> &str {
    hash.get(40..).unwrap_or_default()
}

/// Returns the hash in a row with these flags, or `None` if the flags name no algorithm.
pub fn hash_in_row(digest: &[u8], flags: i64) -> Option<String> {
    let suffix = SUFFIXES.get((flags >> 8 & 7) as usize)?;
    Some(format!("{}{suffix}", hex(digest)))
}

/// Returns the hash of `bytes` by the algorithm with this suffix.
pub fn hash(bytes: &[u8], suffix: &str) -> String {
    hash_all(bytes, suffix).expect("memory can be read")
}

/// Returns the fingerprint of a certificate, in the form of whitelists, by each algorithm.
pub fn fingerprints(certificate: &[u8]) -> [String; 3] {
    SUFFIXES.map(|suffix| {
        let text = hash(certificate, suffix).to_uppercase();
        let pairs: Vec<&str> = (0..20).map(|number| &text[2 * number..2 * number + 2]).collect();
        format!("{}{}", pairs.join(":"), &text[40..])
    })
}

/// Returns the hash of everything that `reader` returns, without loading it into memory.
pub fn hash_all(mut reader: impl Read, suffix: &str) -> io::Result<String> {
    let (mut sha1, mut ripemd, mut shake) = (Sha1::new(), Ripemd160::new(), Shake128::default());
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = reader.read(&mut buffer)?;
        let bytes = &buffer[..length];
        match suffix {
            _ if length == 0 => break,
            "" => sha1::Digest::update(&mut sha1, bytes),
            "-rmd160" => sha1::Digest::update(&mut ripemd, bytes),
            _ => shake.update(bytes),
        }
    }
    let digits = match suffix {
        "" => hex(&sha1.finalize()),
        "-rmd160" => hex(&ripemd.finalize()),
        _ => {
            let mut digest = [0; 20];
            shake.finalize_xof_into(&mut digest);
            hex(&digest)
        }
    };
    Ok(format!("{digits}{suffix}"))
}
