//! Records of the kernel, and lines of a stream of records.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reeve_abi::event::Event;
use reeve_flow::names::Namer;
use reeve_flow::time::{Clock, Timestamp};
use reeve_flow::{decode, wire};
use reeve_policy::provenance::Dictionary;

fuzz_target!(|input: &[u8]| {
    if let Ok(event) = decode::event(input) {
        assert_eq!(bytemuck::bytes_of(&event.raw), input, "nothing is lost or made up");
        // Numbers that nobody knows give a record all the same, and one that can be written and read.
        let names = Dictionary::default();
        let namer = Namer { names: &names, node: "node-1", clock: Clock::from_readings(0, Timestamp::default()) };
        let record = namer.record(&event);
        assert_eq!(record.policy_revision, event.raw.revision.0);
        let again = wire::parse_line(1, &wire::encode(&record)).expect("what was written is read");
        assert_eq!(again, wire::Line::Record(Box::new(record)));
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
