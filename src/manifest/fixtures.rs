//! Keys, a certificate and signed files for tests, created with the `openssl` command line in the same way as in `cvmfs_server`.

use std::sync::OnceLock;

use rsa::PrivateKey;
use rsa::pkcs8::DecodePrivateKey as _;

use crate::manifest::RepositoryName;
use crate::metadata::Timestamp;

pub const MASTER_KEY: &str = include_str!("testdata/test.example.org.masterkey");
pub const PUBLIC_KEY: &str = include_str!("testdata/test.example.org.pub");
pub const REPOSITORY_KEY: &str = include_str!("testdata/test.example.org.key");
pub const REPOSITORY_KEY_PKCS1: &str = include_str!("testdata/test.example.org.pkcs1.key");
pub const CERTIFICATE: &str = include_str!("testdata/test.example.org.crt");
pub const MANIFEST: &[u8] = include_bytes!("testdata/cvmfspublished");
pub const WHITELIST: &[u8] = include_bytes!("testdata/cvmfswhitelist");

/// Output of `openssl x509 -fingerprint -sha1` for the certificate.
pub const FINGERPRINT: &str = "91:32:E2:09:05:79:36:4A:4C:77:5D:3A:F0:22:A0:D9:AE:72:4B:B9";

/// Output of `cvmfs_publish hash -f -a` for the certificate, with each algorithm.
pub const FINGERPRINTS: [&str; 3] = [
    FINGERPRINT,
    "15:82:53:17:18:40:D7:31:94:C4:92:26:D1:E2:0E:C6:F8:22:C3:40-RMD160",
    "F7:D2:81:E0:07:EC:58:17:39:62:FC:EC:03:6B:3B:63:12:34:62:B1-SHAKE128",
];

/// 2026-10-01 00:00:00 UTC, while the whitelist is valid: it expires on 2026-10-21 at 12.
pub const NOW: Timestamp = Timestamp { seconds: 1_790_812_800, nanoseconds: 0 };

pub fn name() -> RepositoryName {
    "test.example.org".parse().expect("the name is valid")
}

pub fn master_key() -> &'static PrivateKey {
    static KEY: OnceLock<PrivateKey> = OnceLock::new();
    KEY.get_or_init(|| PrivateKey::from_pkcs8_pem(MASTER_KEY).expect("the key is valid"))
}

pub fn repository_key() -> &'static PrivateKey {
    static KEY: OnceLock<PrivateKey> = OnceLock::new();
    KEY.get_or_init(|| PrivateKey::from_pkcs8_pem(REPOSITORY_KEY).expect("the key is valid"))
}
