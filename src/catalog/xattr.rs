//! Extended attributes, packed into one value of a catalog row (version 1 of the CVMFS format).

use std::sync::Arc;

use crate::metadata::Xattrs;

const VERSION: u8 = 1;

/// Packs extended attributes. Panics if a name or a value has more than 255 bytes, or if there are more than 255 attributes.
pub(super) fn encode(xattrs: &Xattrs) -> Vec<u8> {
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).expect("the layer reader omits longer names and values");
    let mut packed = vec![VERSION, u8::try_from(xattrs.len()).expect("the layer reader omits further attributes")];
    for (name, value) in xattrs {
        // One byte each, not eight bytes, as CVMFS's manual says (`cvmfs/xattr.cc`).
        packed.extend([length(name), length(value)]);
        packed.extend_from_slice(name);
        packed.extend_from_slice(value);
    }
    packed
}

/// Unpacks extended attributes. Returns `None` for bytes that clients cannot read either.
pub(super) fn decode(packed: &[u8]) -> Option<Arc<Xattrs>> {
    let [VERSION, count, rest @ ..] = packed else { return None };
    let mut rest = rest;
    let mut xattrs = Xattrs::new();
    for _ in 0..*count {
        let (&[name, value], bytes) = rest.split_first_chunk::<2>()?;
        let (name, bytes) = bytes.split_at_checked(name.into())?;
        let (value, bytes) = bytes.split_at_checked(value.into())?;
        xattrs.insert(name.into(), value.into());
        rest = bytes;
    }
    Some(Arc::new(xattrs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattrs(pairs: &[(&[u8], &[u8])]) -> Xattrs {
        pairs.iter().map(|&(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn attributes_are_packed_as_clients_read_them() {
        let packed = encode(&xattrs(&[(b"user.b", b""), (b"user.a", b"\0\xff")]));
        assert_eq!(packed, b"\x01\x02\x06\x02user.a\x00\xff\x06\x00user.b");
    }

    #[test]
    fn round_trip_at_the_limits() {
        let longest = xattrs(&[(&[b'n'; 255], &[b'v'; 255]), (b"k", b"v")]);
        assert_eq!(*decode(&encode(&longest)).unwrap(), longest);
    }

    #[test]
    fn damaged_attributes_are_not_decoded() {
        for packed in [&b""[..], b"\x01", b"\x02\x00", b"\x01\x01\x06", b"\x01\x01\x06\x02user.a\x00"] {
            assert_eq!(decode(packed), None);
        }
    }
}
