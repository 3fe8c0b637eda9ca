//! Records of the kernel, and lines of a stream of records.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reeve_abi::event::Event;
use reeve_flow::{decode, wire};

fuzz_target!(|input: &[u8]| {
    if let Ok(event) = decode::event(input) {
        assert_eq!(bytemuck::bytes_of(&event.raw), input, "nothing is lost or made up");
    }
    // Any length: the front part as a whole record.
    if let Some(front) = input.get(..size_of::<Event>()) {
        assert!(!matches!(decode::event(front), Err(decode::DecodeError::Size { .. })));
    }
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(wire::Line::Record(record)) = wire::parse_line(1, text)
    {
        let again = wire::parse_line(1, &wire::encode(&record)).expect("what was written is read");
        assert_eq!(again, wire::Line::Record(record));
    }
});
