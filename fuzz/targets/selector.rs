//! The selector language: what is read is written back and read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reeve_policy::selector;

fuzz_target!(|text: &str| {
    if let Ok(read) = selector::parse(text) {
        let written = read.to_string();
        let again = selector::parse(&written).unwrap_or_else(|error| panic!("{written:?}: {error}"));
        assert_eq!(again.to_string(), written);
        assert_eq!(again, read, "{written:?}");
    }
    if let Err(error) = selector::parse_namespaces(text) {
        assert!(error.position <= text.len(), "{error}");
    }
});
