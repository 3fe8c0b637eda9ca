//! The bytes that cross the kernel boundary, defined once.
