//! The format that manifest and whitelist share: field lines, `--`, the hash of those lines, and a signature of that hash. CVMFS calls
//! such a file a letter.
//!
//! The signed message is the *text* of the hash: 40 hexadecimal digits and the suffix of its algorithm. There are two forms of signatures. For a manifest, the text is
//! hashed again, with a usual PKCS#1 v1.5 signature with SHA-1. For a whitelist, the text itself is padded and encrypted with the
//! private key, without a hash algorithm identifier (OpenSSL's `RSA_private_encrypt`). Verification accepts only the expected form.

use getrandom::SysRng;
use rsa::rand_core::{CryptoRng, UnwrapErr};
use rsa::{Pkcs1v15Sign, PrivateKey, PublicKey};
use sha1::{Digest as _, Sha1};

use crate::object::{HashAlgorithm, ObjectHash, ParseHashError};

/// Separator between the field lines and the hash, including the preceding line end.
const SEPARATOR: &[u8] = b"\n--\n";

/// The form of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureForm {
    /// The signature of a manifest by the repository key: RSASSA-PKCS1-v1_5 with SHA-1.
    Manifest,
    /// The signature of a whitelist by the master key: PKCS#1 v1.5 padding of the hash text.
    Whitelist,
}

impl SignatureForm {
    fn scheme(self) -> Pkcs1v15Sign {
        match self {
            // Always SHA-1, even in repositories with another hash algorithm (`cvmfs/crypto/signature.cc`).
            Self::Manifest => Pkcs1v15Sign::new::<Sha1>(),
            Self::Whitelist => Pkcs1v15Sign::new_unprefixed(),
        }
    }

    fn signed_bytes(self, hash_text: &[u8]) -> Vec<u8> {
        match self {
            Self::Manifest => Sha1::digest(hash_text).to_vec(),
            Self::Whitelist => hash_text.to_vec(),
        }
    }
}

/// Errors from parsing a hash in a signed file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashTextError {
    /// The hash is an MD5 hash, which CVMFS no longer writes.
    #[error("'{0}' is an MD5 hash: only SHA-1, RIPEMD-160 and SHAKE-128 are supported")]
    Unsupported(String),
    /// The text is not a hash.
    #[error(transparent)]
    Malformed(#[from] ParseHashError),
}

/// Errors from verifying a signed file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LetterError {
    /// The file ends before its signature.
    #[error("the signature is missing or truncated")]
    Unsigned,
    /// The line after the separator is not a hash.
    #[error("the line before the signature is not a hash")]
    HashLine(#[from] HashTextError),
    /// The hash of the fields differs from the hash in the file.
    #[error("the hash of the fields is {actual}, but the file states {stated}")]
    WrongHash {
        /// The hash in the file.
        stated: ObjectHash,
        /// The hash of its fields.
        actual: ObjectHash,
    },
    /// The signature was created with another key, or is damaged.
    #[error("the signature does not match the key")]
    WrongSignature,
}

/// Error from signing: the key is too short or damaged.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign with this RSA key")]
pub struct SignError(#[from] rsa::Error);

/// A signed file, split into its parts but not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Letter<'a> {
    fields: &'a [u8],
    hash_text: &'a [u8],
    hash: ObjectHash,
    signature: &'a [u8],
}

impl<'a> Letter<'a> {
    /// Splits a file at the first separator, as clients do. Everything after the hash line is the signature.
    pub fn cut(bytes: &'a [u8]) -> Result<Self, LetterError> {
        let mark =
            bytes.windows(SEPARATOR.len()).position(|window| window == SEPARATOR).ok_or(LetterError::Unsigned)?;
        // The hash covers the line end in front of `--`, but not `--` itself.
        let (fields, rest) = (&bytes[..=mark], &bytes[mark + SEPARATOR.len()..]);
        let line = rest.iter().position(|&b| b == b'\n').ok_or(LetterError::Unsigned)?;
        let (hash_text, signature) = (&rest[..line], &rest[line + 1..]);
        Ok(Self { fields, hash_text, hash: parse_hash(hash_text)?, signature })
    }

    /// Returns the signed lines, each with its line end.
    pub fn fields(&self) -> &'a [u8] {
        self.fields
    }

    /// Checks that the stated hash is that of the fields, and that one of `keys` signed it in the given form.
    pub fn verify(&self, form: SignatureForm, keys: &[PublicKey]) -> Result<(), LetterError> {
        let actual = self.hash.algorithm().hash(self.fields);
        if actual != self.hash {
            return Err(LetterError::WrongHash { stated: self.hash, actual });
        }
        let signed = form.signed_bytes(self.hash_text);
        let fits = |key: &PublicKey| key.verify(form.scheme(), &signed, self.signature).is_ok();
        if keys.iter().any(fits) { Ok(()) } else { Err(LetterError::WrongSignature) }
    }
}

/// Signs the hash of `fields`, which must end with a line end, and returns the whole file.
///
/// The random numbers are used only for blinding: the same fields and key give the same file.
pub fn seal(
    fields: &[u8],
    algorithm: HashAlgorithm,
    form: SignatureForm,
    key: &PrivateKey,
) -> Result<Vec<u8>, SignError> {
    debug_assert!(fields.ends_with(b"\n"), "the separator starts a new line");
    let hash_text = algorithm.hash(fields).to_string();
    let signature = key.sign_with_rng(&mut system_rng(), form.scheme(), &form.signed_bytes(hash_text.as_bytes()))?;
    // Nothing may follow the signature: readers treat everything up to the end of the file as the signature.
    Ok([fields, b"--\n", hash_text.as_bytes(), b"\n", &signature].concat())
}

/// Returns the random number generator of the operating system, which fails only on a broken system: then the process panics.
pub(super) fn system_rng() -> impl CryptoRng {
    UnwrapErr(SysRng)
}

/// Parses a hash without the letter of an object kind.
pub(super) fn parse_hash(text: &[u8]) -> Result<ObjectHash, HashTextError> {
    refuse_md5(text)?;
    Ok(quotable(text).parse()?)
}

/// Refuses the text of an MD5 hash.
pub(super) fn refuse_md5(text: &[u8]) -> Result<(), HashTextError> {
    // CVMFS distinguishes algorithms by the length of the text, suffix included (`cvmfs/crypto/hash.h`).
    let is_md5 = text.len() == 32 && text.iter().all(u8::is_ascii_hexdigit);
    if is_md5 { Err(HashTextError::Unsupported(quotable(text))) } else { Ok(()) }
}

/// Returns the first 100 bytes of untrusted text for an error message; bytes other than printable ASCII are escaped.
pub(super) fn quotable(bytes: &[u8]) -> String {
    const SHOWN: usize = 100;
    bytes[..bytes.len().min(SHOWN)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::fixtures;

    const FIELDS: &[u8] = b"Cfirst\nNsecond\n";

    fn sealed(form: SignatureForm) -> Vec<u8> {
        sealed_by(HashAlgorithm::Sha1, form)
    }

    fn sealed_by(algorithm: HashAlgorithm, form: SignatureForm) -> Vec<u8> {
        seal(FIELDS, algorithm, form, fixtures::repository_key()).expect("the key is long enough")
    }

    fn verify(bytes: &[u8], form: SignatureForm) -> Result<(), LetterError> {
        Letter::cut(bytes)?.verify(form, &[fixtures::repository_key().to_public_key()])
    }

    #[test]
    fn signature_is_accepted_only_in_the_expected_form() {
        use SignatureForm::{Manifest, Whitelist};
        for (made, expected) in [(Manifest, Whitelist), (Whitelist, Manifest)] {
            assert_eq!(verify(&sealed(made), made), Ok(()));
            assert_eq!(verify(&sealed(made), expected), Err(LetterError::WrongSignature));
        }
    }

    #[test]
    fn signature_by_one_of_several_keys_is_accepted() {
        let bytes = sealed(SignatureForm::Whitelist);
        let letter = Letter::cut(&bytes).unwrap();
        let (right, wrong) = (fixtures::repository_key().to_public_key(), fixtures::master_key().to_public_key());
        assert_eq!(letter.verify(SignatureForm::Whitelist, &[wrong.clone(), right]), Ok(()));
        assert_eq!(letter.verify(SignatureForm::Whitelist, &[wrong]), Err(LetterError::WrongSignature));
        assert_eq!(letter.verify(SignatureForm::Whitelist, &[]), Err(LetterError::WrongSignature));
    }

    #[test]
    fn any_flipped_bit_is_detected() {
        for form in [SignatureForm::Manifest, SignatureForm::Whitelist] {
            let bytes = sealed(form);
            // Every byte of fields, separator and hash, but only a few bytes of the signature, where each check takes milliseconds.
            let hashed = FIELDS.len() + b"--\n".len() + 41;
            for position in (0..hashed).chain([hashed, hashed + 100, bytes.len() - 1]) {
                let mut damaged = bytes.clone();
                damaged[position] ^= 1;
                assert!(verify(&damaged, form).is_err(), "byte {position}");
            }
        }
    }

    #[test]
    fn shortened_and_lengthened_files_are_refused() {
        let bytes = sealed(SignatureForm::Manifest);
        for length in 0..FIELDS.len() + b"--\n".len() + 41 {
            assert!(matches!(Letter::cut(&bytes[..length]), Err(LetterError::Unsigned)), "{length} bytes");
        }
        assert_eq!(verify(&bytes[..bytes.len() - 1], SignatureForm::Manifest), Err(LetterError::WrongSignature));
        assert_eq!(verify(&[&bytes[..], b"\n"].concat(), SignatureForm::Manifest), Err(LetterError::WrongSignature));
    }

    #[test]
    fn file_is_split_at_the_first_separator() {
        let letter = Letter::cut(b"Ca\n--\n0123456789abcdef0123456789abcdef01234567\nsig\n--\nnature").unwrap();
        assert_eq!((letter.fields(), letter.signature), (&b"Ca\n"[..], &b"sig\n--\nnature"[..]));
    }

    #[test]
    fn hash_of_each_algorithm_is_signed_with_its_suffix() {
        for algorithm in HashAlgorithm::ALL {
            for form in [SignatureForm::Manifest, SignatureForm::Whitelist] {
                let mut bytes = sealed_by(algorithm, form);
                assert_eq!(verify(&bytes, form), Ok(()), "{algorithm}");
                let line = [b"--\n", algorithm.hash(FIELDS).to_string().as_bytes(), b"\n"].concat();
                assert!(bytes.starts_with(&[FIELDS, &line].concat()), "{algorithm}");
                bytes[0] ^= 1;
                assert!(matches!(verify(&bytes, form), Err(LetterError::WrongHash { .. })), "{algorithm}");
            }
        }
    }

    #[test]
    fn md5_is_unsupported() {
        let digits = "0123456789abcdef0123456789abcdef";
        assert_eq!(parse_hash(digits.as_bytes()), Err(HashTextError::Unsupported(digits.to_owned())));
        for text in [b"".as_slice(), b"\xff\n", &[b'a'; 41]] {
            assert!(matches!(parse_hash(text), Err(HashTextError::Malformed(_))));
        }
    }
}
