//! `.cvmfswhitelist`: the certificates that may sign for a repository, and an expiry date, signed with the master key.
//!
//! The expiry date includes seconds, but clients ignore minutes and seconds: a list with 12:06 expires at 12:00.

use std::time::Duration;

use rsa::{PrivateKey, PublicKey};
use x509_cert::der::DateTime;

use super::letter::{HashTextError, Letter, LetterError, SignError, SignatureForm, quotable, seal};
use super::{Certificate, Fingerprint, RepositoryName, RepositoryNameError};
use crate::metadata::Timestamp;
use crate::object::HashAlgorithm;

/// The certificates that may sign for a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whitelist {
    issued: DateTime,
    expires: DateTime,
    name: RepositoryName,
    fingerprints: Vec<Fingerprint>,
}

/// A whitelist as read, whose signature is not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedWhitelist<'a> {
    /// The unverified content.
    pub whitelist: Whitelist,
    extra_verification: Option<ExtraVerification>,
    letter: Letter<'a>,
}

/// How urgent it is to renew a whitelist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// The whitelist is valid for longer than [`Whitelist::RENEWAL`].
    None,
    /// The whitelist expires within [`Whitelist::RENEWAL`]; the fields are the remaining time.
    Soon {
        /// Whole days.
        days: u64,
        /// Remaining whole hours, below 24.
        hours: u64,
    },
    /// The whitelist has expired; clients refuse the repository.
    Expired,
}

/// Verification that a whitelist may require in addition to its RSA signature. strata supports neither kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExtraVerification {
    Pkcs7,
    CaChain,
}

/// Errors from reading, creating or verifying a whitelist.
#[derive(Debug, thiserror::Error)]
pub enum WhitelistError {
    /// The whitelist is larger than the limit.
    #[error("whitelist has {size} bytes, more than the limit of {}", Whitelist::READ_LIMIT)]
    TooLong {
        /// Its size in bytes.
        size: usize,
    },
    /// One of the first three lines is not valid.
    #[error("line {line} of the whitelist is '{value}', but must be {expected}")]
    Line {
        /// Line number, from 1.
        line: usize,
        /// The line as found.
        value: String,
        /// The required form.
        expected: &'static str,
    },
    /// The third line is not a valid repository name.
    #[error("line 3 of the whitelist is not a repository name")]
    Name(#[from] RepositoryNameError),
    /// A fingerprint is an MD5 hash.
    #[error("a fingerprint in the whitelist is not supported")]
    Fingerprint(#[source] HashTextError),
    /// The list has no valid signature by the master key.
    #[error("the signature of the whitelist is not valid")]
    Letter(#[from] LetterError),
    /// The list has expired.
    #[error("whitelist expired at {at}: the holder of the master key must renew it")]
    Expired {
        /// Time of expiry, a full hour.
        at: DateTime,
    },
    /// The list is for another repository.
    #[error("whitelist is for repository '{actual}', not '{expected}'")]
    WrongName {
        /// The requested repository.
        expected: RepositoryName,
        /// The name in the list.
        actual: RepositoryName,
    },
    /// The list requires verification by a separate PKCS#7 file.
    #[error("whitelist requires a PKCS#7 signature (Vpkcs7), which is not supported")]
    Pkcs7Unsupported,
    /// The list requires verification of the certificate by certificate authorities.
    #[error("whitelist requires verification by certificate authorities (Wcachain), which is not supported")]
    CaChainUnsupported,
    /// The time is before 1970 or after 9999.
    #[error("cannot write the time {0} (seconds since 1970) into the whitelist: the year must be 1970 to 9999")]
    Clock(i64),
}

impl Whitelist {
    /// Maximum size of the file in bytes.
    pub const READ_LIMIT: usize = 64 * 1024;

    /// Validity of a new list: 30 days, as in `cvmfs_server`.
    pub const VALIDITY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

    /// A list that expires within this time causes a warning.
    pub const RENEWAL: Duration = Duration::from_secs(7 * 24 * 60 * 60);

    /// Creates a list that is valid from `now` for [`Self::VALIDITY`].
    pub fn new(name: RepositoryName, fingerprints: Vec<Fingerprint>, now: Timestamp) -> Result<Self, WhitelistError> {
        let validity = i64::try_from(Self::VALIDITY.as_secs()).expect("30 days in seconds fit into an i64");
        let issued = civil_time(now.seconds)?;
        let expires = civil_time(now.seconds.saturating_add(validity))?;
        Ok(Self { issued, expires, name, fingerprints })
    }

    /// Parses a whole `.cvmfswhitelist` without verifying its signature.
    ///
    /// As in clients, text after a fingerprint is a comment, and lines without a fingerprint are ignored.
    pub fn parse(bytes: &[u8]) -> Result<SignedWhitelist<'_>, WhitelistError> {
        if bytes.len() > Self::READ_LIMIT {
            return Err(WhitelistError::TooLong { size: bytes.len() });
        }
        let mut lines = bytes.split(|&b| b == b'\n').take_while(|line| line != b"--").peekable();
        let issued = date_line(1, lines.next(), b"", "a date YYYYMMDDHHMMSS")?;
        let expires = date_line(2, lines.next(), b"E", "E and a date YYYYMMDDHHMMSS")?;
        let name = name_line(lines.next())?;
        // Clients read these two lines only here and in this order, and ignore them elsewhere.
        let pkcs7 = lines.next_if(|line| line == b"Vpkcs7").map(|_| ExtraVerification::Pkcs7);
        let ca_chain = lines.next_if(|line| line == b"Wcachain").map(|_| ExtraVerification::CaChain);
        let fingerprints = lines.filter_map(|line| Fingerprint::from_line(line).transpose());
        let fingerprints = fingerprints.collect::<Result<_, _>>().map_err(WhitelistError::Fingerprint)?;
        let whitelist = Self { issued, expires, name, fingerprints };
        Ok(SignedWhitelist { whitelist, extra_verification: pkcs7.or(ca_chain), letter: Letter::cut(bytes)? })
    }

    /// Returns the lines without a signature.
    pub fn write(&self) -> String {
        let mut text = format!("{}\nE{}\nN{}\n", digits(&self.issued), digits(&self.expires), self.name);
        for fingerprint in &self.fingerprints {
            text.push_str(&format!("{fingerprint}\n"));
        }
        text
    }

    /// Returns the whole file, signed with the master key.
    pub fn sign(&self, master_key: &PrivateKey) -> Result<Vec<u8>, SignError> {
        seal(self.write().as_bytes(), self.algorithm(), SignatureForm::Whitelist, master_key)
    }

    /// Returns the hash algorithm of the first fingerprint, or SHA-1 if the list is empty. The signed hash has the same algorithm.
    // As in `cvmfs_server`, which renews a list with the algorithm of its first fingerprint (`server/cvmfs_server_ssl.sh`).
    pub fn algorithm(&self) -> HashAlgorithm {
        self.fingerprints.first().map_or(HashAlgorithm::Sha1, |fingerprint| fingerprint.algorithm())
    }

    /// Returns whether the certificate may sign for the repository.
    pub fn lists(&self, certificate: &Certificate) -> bool {
        self.fingerprints.iter().any(|listed| certificate.fingerprint(listed.algorithm()) == *listed)
    }

    /// Returns the repository that the list is for.
    pub fn name(&self) -> &RepositoryName {
        &self.name
    }

    /// Returns the fingerprints of the certificates.
    pub fn fingerprints(&self) -> &[Fingerprint] {
        &self.fingerprints
    }

    /// Returns the time from which clients refuse the list, in seconds since 1970: the stated expiry, rounded down to the hour.
    pub fn expires(&self) -> i64 {
        i64::try_from(self.expiry_hour().unix_duration().as_secs()).expect("a year has at most four digits")
    }

    /// Returns whether clients refuse the list at `now`.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now.seconds >= self.expires()
    }

    /// Returns how urgent it is at `now` to renew the list.
    pub fn urgency(&self, now: Timestamp) -> Urgency {
        let left = self.expires().saturating_sub(now.seconds);
        match u64::try_from(left) {
            Err(_) | Ok(0) => Urgency::Expired,
            Ok(left) if left <= Self::RENEWAL.as_secs() => {
                Urgency::Soon { days: left / 86_400, hours: left % 86_400 / 3600 }
            }
            Ok(_) => Urgency::None,
        }
    }

    fn expiry_hour(&self) -> DateTime {
        let e = &self.expires;
        // Clients read no further than the hour.
        DateTime::new(e.year(), e.month(), e.day(), e.hour(), 0, 0).expect("the start of a valid hour is valid")
    }
}

impl SignedWhitelist<'_> {
    /// Checks in the same order as clients that the list has not expired at `now`, that it is for `name`, and that one of `master_keys`
    /// signed it.
    pub fn verify(
        &self,
        master_keys: &[PublicKey],
        name: &RepositoryName,
        now: Timestamp,
    ) -> Result<(), WhitelistError> {
        if self.whitelist.is_expired(now) {
            return Err(WhitelistError::Expired { at: self.whitelist.expiry_hour() });
        }
        if self.whitelist.name != *name {
            return Err(WhitelistError::WrongName { expected: name.clone(), actual: self.whitelist.name.clone() });
        }
        self.verify_signature(master_keys)
    }

    /// Checks only the signature. A list that requires more than an RSA signature is refused.
    pub fn verify_signature(&self, master_keys: &[PublicKey]) -> Result<(), WhitelistError> {
        match self.extra_verification {
            Some(ExtraVerification::Pkcs7) => Err(WhitelistError::Pkcs7Unsupported),
            Some(ExtraVerification::CaChain) => Err(WhitelistError::CaChainUnsupported),
            None => Ok(self.letter.verify(SignatureForm::Whitelist, master_keys)?),
        }
    }
}

fn civil_time(seconds: i64) -> Result<DateTime, WhitelistError> {
    let since_epoch = u64::try_from(seconds).map(Duration::from_secs).ok();
    since_epoch.and_then(|since| DateTime::from_unix_duration(since).ok()).ok_or(WhitelistError::Clock(seconds))
}

fn digits(time: &DateTime) -> String {
    let (date, clock) = ((time.year(), time.month(), time.day()), (time.hour(), time.minutes(), time.seconds()));
    format!("{:04}{:02}{:02}{:02}{:02}{:02}", date.0, date.1, date.2, clock.0, clock.1, clock.2)
}

fn date_line(
    line: usize,
    found: Option<&[u8]>,
    prefix: &[u8],
    expected: &'static str,
) -> Result<DateTime, WhitelistError> {
    let found = found.unwrap_or_default();
    let date = found.strip_prefix(prefix).and_then(read_digits);
    date.ok_or_else(|| WhitelistError::Line { line, value: quotable(found), expected })
}

fn read_digits(text: &[u8]) -> Option<DateTime> {
    // Clients demand exactly this length (`cvmfs/whitelist.cc`).
    if text.len() != 14 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |from: usize, to: usize| text[from..to].iter().fold(0, |n: u16, &b| n * 10 + u16::from(b - b'0'));
    let pair = |from: usize| u8::try_from(number(from, from + 2)).expect("two digits are below 100");
    DateTime::new(number(0, 4), pair(4), pair(6), pair(8), pair(10), pair(12)).ok()
}

fn name_line(found: Option<&[u8]>) -> Result<RepositoryName, WhitelistError> {
    let found = found.unwrap_or_default();
    let expected = "N and a repository name";
    let name = found.strip_prefix(b"N");
    let name = name.ok_or_else(|| WhitelistError::Line { line: 3, value: quotable(found), expected })?;
    Ok(quotable(name).parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::fixtures::{self, NOW};
    use crate::manifest::letter::seal;

    fn public_key() -> PublicKey {
        fixtures::master_key().to_public_key()
    }

    fn signed(lines: &str) -> Vec<u8> {
        let (key, form) = (fixtures::master_key(), SignatureForm::Whitelist);
        seal(lines.as_bytes(), HashAlgorithm::Sha1, form, key).unwrap()
    }

    fn verify(bytes: &[u8], now: Timestamp) -> Result<(), WhitelistError> {
        Whitelist::parse(bytes)?.verify(&[public_key()], &fixtures::name(), now)
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanoseconds: 999_999_999 }
    }

    #[test]
    fn whitelist_signed_by_openssl_is_read_verified_and_written_back_byte_for_byte() {
        verify(fixtures::WHITELIST, NOW).unwrap();
        let whitelist = Whitelist::parse(fixtures::WHITELIST).unwrap().whitelist;
        assert_eq!(whitelist.fingerprints()[0].to_string(), fixtures::FINGERPRINT);
        assert_eq!(whitelist.sign(fixtures::master_key()).unwrap(), fixtures::WHITELIST);
    }

    #[test]
    fn list_expires_at_the_start_of_its_stated_hour() {
        // 2026-10-21 12:00:00 UTC; the list says 12:06:35.
        let hour = 1_792_584_000;
        assert!(verify(fixtures::WHITELIST, at(hour - 1)).is_ok());
        let error = verify(fixtures::WHITELIST, at(hour)).unwrap_err();
        assert_eq!(error.to_string().split(':').next(), Some("whitelist expired at 2026-10-21T12"));
    }

    #[test]
    fn new_list_is_valid_for_thirty_days() {
        // 2028-02-10 23:59:59 UTC; the 30 days include 29 February.
        let list = Whitelist::new(fixtures::name(), Vec::new(), at(1_833_839_999)).unwrap();
        assert_eq!(list.write(), "20280210235959\nE20280311235959\nNtest.example.org\n");
        assert!(!list.is_expired(at(list.expires() - 1)) && list.is_expired(at(list.expires())));
        assert!(matches!(Whitelist::new(fixtures::name(), Vec::new(), at(-1)), Err(WhitelistError::Clock(-1))));
        assert!(Whitelist::new(fixtures::name(), Vec::new(), at(i64::MAX)).is_err());
    }

    #[test]
    fn renewal_is_urgent_from_seven_days_before_the_end() {
        let list = Whitelist::new(fixtures::name(), Vec::new(), at(1_833_840_000)).unwrap();
        let before = |seconds: i64| list.urgency(at(list.expires() - seconds));
        let days = 86_400;
        assert_eq!(before(7 * days + 1), Urgency::None);
        assert_eq!(before(7 * days), Urgency::Soon { days: 7, hours: 0 });
        assert_eq!(before(3 * days + 7200), Urgency::Soon { days: 3, hours: 2 });
        assert_eq!(before(1), Urgency::Soon { days: 0, hours: 0 });
        assert_eq!((before(0), before(-1)), (Urgency::Expired, Urgency::Expired));
        assert_eq!(list.urgency(at(i64::MIN)), Urgency::None);
    }

    #[test]
    fn list_of_another_repository_is_refused() {
        let other = "other.example.org".parse().unwrap();
        let list = Whitelist::parse(fixtures::WHITELIST).unwrap();
        assert!(matches!(list.verify(&[public_key()], &other, NOW), Err(WhitelistError::WrongName { .. })));
    }

    #[test]
    fn list_signed_by_another_master_key_is_refused() {
        let list = Whitelist::parse(fixtures::WHITELIST).unwrap();
        let stranger = fixtures::repository_key().to_public_key();
        let refused = list.verify(&[stranger], &fixtures::name(), NOW);
        assert!(matches!(refused, Err(WhitelistError::Letter(LetterError::WrongSignature))));
    }

    #[test]
    fn comments_and_lines_without_a_fingerprint_are_ignored() {
        let listed = fixtures::FINGERPRINT;
        let lower = listed.to_lowercase().replace(':', "");
        let lines =
            format!("20260101000000\nE20270101000000\nNa.b\n# old\n\n{listed} # ours\n{lower}\t\n{listed}#x\nno\n");
        let bytes = signed(&lines);
        let texts: Vec<_> = Whitelist::parse(&bytes).unwrap().whitelist.fingerprints().to_vec();
        assert_eq!(texts.iter().map(ToString::to_string).collect::<Vec<_>>(), [listed; 3]);
    }

    #[test]
    fn unsupported_verification_is_refused_and_not_skipped() {
        let verdict = |lines: &str| {
            let text =
                format!("20260101000000\nE20270101000000\nNtest.example.org\n{lines}{}\n", fixtures::FINGERPRINT);
            verify(&signed(&text), NOW)
        };
        assert!(verdict("").is_ok());
        assert!(matches!(verdict("Vpkcs7\n"), Err(WhitelistError::Pkcs7Unsupported)));
        assert!(matches!(verdict("Vpkcs7\nWcachain\n"), Err(WhitelistError::Pkcs7Unsupported)));
        assert!(matches!(verdict("Wcachain\n"), Err(WhitelistError::CaChainUnsupported)));
        let md5 = format!("{}\n", &fixtures::FINGERPRINT[..47]);
        assert!(matches!(verdict(&md5), Err(WhitelistError::Fingerprint(HashTextError::Unsupported(_)))));
    }

    #[test]
    fn certificate_is_listed_by_the_fingerprint_of_any_algorithm() {
        let certificate = Certificate::parse(fixtures::CERTIFICATE.as_bytes()).unwrap();
        for algorithm in HashAlgorithm::ALL {
            let list = Whitelist::new(fixtures::name(), vec![certificate.fingerprint(algorithm)], NOW).unwrap();
            let bytes = list.sign(fixtures::master_key()).unwrap();
            verify(&bytes, NOW).unwrap();
            let read = Whitelist::parse(&bytes).unwrap().whitelist;
            assert_eq!((read.algorithm(), read.lists(&certificate)), (algorithm, true));
        }
        let empty = Whitelist::new(fixtures::name(), Vec::new(), NOW).unwrap();
        assert!(!empty.lists(&certificate));
    }

    #[test]
    fn error_names_the_malformed_line() {
        let line_of = |lines: &str| match Whitelist::parse(&signed(lines)) {
            Err(WhitelistError::Line { line, .. }) => line,
            other => panic!("{lines:?} gives {other:?}"),
        };
        for issued in ["", "2026010100000", "202601010000000", "20260230000000", "2026010100000x"] {
            assert_eq!(line_of(&format!("{issued}\nE20270101000000\nNa.b\n")), 1, "{issued}");
        }
        for expires in ["", "20270101000000", "E2027010100000", "E20271301000000", "E20270101240000"] {
            assert_eq!(line_of(&format!("20260101000000\n{expires}\nNa.b\n")), 2, "{expires}");
        }
        assert_eq!(line_of("20260101000000\nE20270101000000\na.b\n"), 3);
        assert!(matches!(
            Whitelist::parse(&signed("20260101000000\nE20270101000000\nN/\n")),
            Err(WhitelistError::Name(_))
        ));
    }

    #[test]
    fn too_large_whitelist_is_refused() {
        let bytes = vec![b'0'; Whitelist::READ_LIMIT + 1];
        assert!(matches!(Whitelist::parse(&bytes), Err(WhitelistError::TooLong { size: 65_537 })));
        assert!(matches!(Whitelist::parse(&bytes[1..]), Err(WhitelistError::Line { line: 1, .. })));
    }
}
