//! One door for developers and users.

fn main() {}
