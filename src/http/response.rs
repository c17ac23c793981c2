//! Responses: their headers, and their bodies within limits.

use std::io::{self, Read};
use std::time::Instant;

use reqwest::Url;
use reqwest::blocking::Response;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue};

use super::{HttpError, OpenedBlob, ResponseDeadline, redacted};

/// Number of bytes of one read.
const READ_SIZE: usize = 64 << 10;

/// A response, after any redirects.
pub(crate) struct HttpResponse {
    pub(crate) response: Response,
    /// URL after redirects.
    pub(crate) url: Url,
    /// Whether all redirects stayed at the origin of the request.
    pub(crate) is_of_origin: bool,
    /// Authorization of the request. Some servers repeat it in their error messages.
    pub(crate) authorization: Option<HeaderValue>,
    /// Deadline for reading the body.
    pub(crate) deadline: Option<ResponseDeadline>,
}

impl HttpResponse {
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Returns the value of a header, if it is visible ASCII.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// Returns the media type in lower case without parameters. It is empty if the header is missing.
    pub(crate) fn media_type(&self) -> String {
        let text = self.header(CONTENT_TYPE.as_str()).unwrap_or_default();
        text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    /// Rejects a web page: proxies and login services send one with status 200.
    pub(crate) fn refuse_web_page(&self) -> Result<(), HttpError> {
        if self.media_type() != "text/html" {
            return Ok(());
        }
        let reason = "it is a web page; perhaps a proxy or a login page intercepted the request".to_owned();
        Err(HttpError::InvalidResponse { url: redacted(&self.url), reason })
    }

    /// Returns the body of a response after checking the byte at which it starts.
    pub(crate) fn into_blob(self, offset: u64) -> Result<OpenedBlob, HttpError> {
        self.refuse_web_page()?;
        let length = self.header(CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
        let unusable =
            |reason: &str| HttpError::InvalidResponse { url: redacted(&self.url), reason: reason.to_owned() };
        let start = match self.status() {
            206 => {
                let range = self.header(CONTENT_RANGE.as_str()).and_then(first_byte);
                range
                    .filter(|&start| start == offset)
                    .ok_or_else(|| unusable("it starts at another byte than requested"))?
            }
            // A server may ignore `Range` and send everything (RFC 9110, section 14.2).
            200 => 0,
            status => return Err(unusable(&format!("its status is {status}, not 200 or 206"))),
        };
        Ok(OpenedBlob { start, length, mirror: None, body: Box::new(self.response) })
    }

    /// Reads a body. Fails if it is larger than `limit` bytes.
    pub(crate) fn read(self, limit: u64) -> Result<Vec<u8>, HttpError> {
        let mut body = Vec::new();
        let url = self.url;
        // One byte above the limit shows that the body is too large.
        let read = self.response.take(limit + 1).read_to_end(&mut body);
        read.map_err(|source| match self.deadline.map(|deadline| (deadline, deadline.remaining(&url))) {
            Some((deadline, Err(_))) => deadline.too_slow(&url),
            _ => HttpError::Unreachable { url: redacted(&url), source: source.into() },
        })?;
        match body.len() as u64 > limit {
            true => Err(HttpError::TooLarge { url: redacted(&url), limit }),
            false => Ok(body),
        }
    }
}

/// Returns the position of the first byte in a `Content-Range` such as `bytes 5-9/10` (RFC 9110, section 14.4).
fn first_byte(range: &str) -> Option<u64> {
    let (first, rest) = range.trim().strip_prefix("bytes ")?.trim().split_once('-')?;
    let (last, _) = rest.split_once('/')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first)
}

/// Reads a body to its end. Fails if the end has not been reached at `until`.
pub(crate) fn read_until(mut body: impl Read, until: Instant) -> io::Result<Vec<u8>> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; READ_SIZE]);
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if Instant::now() >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_byte_of_a_content_range_is_found() {
        assert_eq!(first_byte("bytes 2-4/*"), Some(2));
        for wrong in ["bytes 4-2/5", "bytes */5", "2-4/5", "bytes 2-4", ""] {
            assert_eq!(first_byte(wrong), None, "{wrong}");
        }
    }
}
