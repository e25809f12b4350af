//! The shared frame vectors: read, written again to the same bytes, refused with the error they
//! name.

use std::fmt::Write as _;

use spacegrid_core::frame::{ReplyBuilder, ReplyFrame, RequestBuilder, RequestFrame};

const VECTORS: &str = include_str!("../../../tests/vectors/frame.txt");

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.bytes().collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn read_request(frame: &[u8]) -> Result<Vec<String>, &'static str> {
    let frame = RequestFrame::decode(frame).map_err(|error| error.code())?;
    let mut items = vec![format!("stream={}", frame.stream)];
    for one in frame.operations() {
        let (token, codec) = (one.token, one.codec);
        let path = to_hex(token.path);
        let chain: Vec<_> = one.chain.entries().map(to_hex).collect();
        let chain = if chain.is_empty() { "-".to_owned() } else { chain.join(",") };
        items.push(format!(
            "op={} flags={} map={} schema={} number={} token={}.{}.{path}.{} key={} codec={codec} \
             value={} ttl={} version={} chain={chain}",
            one.opcode as u8,
            one.flags,
            one.map,
            one.schema,
            one.number,
            token.stream,
            token.number,
            token.lowest,
            to_hex(one.key),
            to_hex(one.value),
            one.ttl_ms,
            one.expected,
        ));
    }
    Ok(items)
}

fn read_reply(frame: &[u8]) -> Result<Vec<String>, &'static str> {
    let frame = ReplyFrame::decode(frame).map_err(|error| error.code())?;
    let mut items = vec![format!("stream={}", frame.stream)];
    for one in frame.replies() {
        items.push(format!(
            "number={} status={} flags={} codec={} copies={} version={} value={}",
            one.number,
            one.status,
            one.flags,
            one.codec,
            one.copies,
            one.version,
            to_hex(one.value),
        ));
    }
    Ok(items)
}

/// The frame written again; the same bytes where the base is what the builder would choose.
fn write_again(kind: &str, bytes: &[u8]) -> Vec<u8> {
    if kind == "request" {
        let frame = RequestFrame::decode(bytes).unwrap();
        let mut builder = RequestBuilder::new(frame.stream);
        for one in frame.operations() {
            assert_eq!(builder.push(&one).unwrap(), None);
        }
        return builder.finish().unwrap();
    }
    let frame = ReplyFrame::decode(bytes).unwrap();
    let mut builder = ReplyBuilder::new(frame.stream);
    for one in frame.replies() {
        assert_eq!(builder.push(&one), None);
    }
    builder.finish().unwrap()
}

#[test]
fn frames_are_read_written_and_refused_as_the_vectors_say() {
    let mut seen = 0;
    for line in VECTORS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let parts: Vec<_> = line.split('|').map(str::trim).collect();
        let (name, kind, verdict) = (parts[0], parts[1], parts[2]);
        let frame = from_hex(parts[3]);
        let read = if kind == "request" { read_request } else { read_reply };
        match read(&frame) {
            Err(code) => assert_eq!(code, verdict, "{name}"),
            Ok(items) => {
                assert_eq!(verdict, "ok", "{name}");
                assert_eq!(items, parts[4..], "{name}");
                let again = write_again(kind, &frame);
                assert_eq!(read(&again), Ok(items), "{name}");
                if !name.contains("below-each-other") {
                    assert_eq!(to_hex(&again), to_hex(&frame), "{name}");
                }
            }
        }
        seen += 1;
    }
    assert!(seen > 40, "the file holds {seen} vectors");
}
