//! HTTP as much as is needed to talk to an agent: one request, one answer, over any stream.

use std::io::{Read, Write};

use anyhow::{Context, bail};

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// 200 and the like.
    pub status: u16,
    /// The body, decoded from chunks.
    pub body: String,
}

impl Response {
    /// The body as JSON; an answer other than 200 is an error that shows it.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        if self.status != 200 {
            bail!("the agent answers {}: {}", self.status, self.body.trim());
        }
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: {}", self.body))
    }
}

/// Sends a request without body and reads the answer to its end.
pub(crate) fn request(mut stream: impl Read + Write, method: &str, path: &str) -> anyhow::Result<Response> {
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .context("cannot send a request")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).context("the answer breaks off")?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> anyhow::Result<Response> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no end of its header")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("the answer has no status")?;
    let chunked = head.lines().any(|line| line.to_ascii_lowercase().replace(' ', "") == "transfer-encoding:chunked");
    Ok(Response { status, body: if chunked { joined(body)? } else { body.to_owned() } })
}

fn joined(mut chunks: &str) -> anyhow::Result<String> {
    let mut body = String::new();
    loop {
        let (length, rest) = chunks.split_once("\r\n").context("a chunk has no length")?;
        let length = usize::from_str_radix(length.split(';').next().unwrap_or_default().trim(), 16)?;
        if length == 0 {
            return Ok(body);
        }
        body.push_str(rest.get(..length).context("a chunk is cut")?);
        chunks = rest.get(length + 2..).context("a chunk has no end")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &str, status: u16, body: &str) {
        assert_eq!(parse(bytes.as_bytes()).unwrap(), Response { status, body: body.to_owned() });
    }

    #[test]
    fn both_ways_of_sending_a_body_are_read() {
        check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", 200, "{}");
        check("HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 503, "abcde");
    }
}
