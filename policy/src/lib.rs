//! Facts in, desired kernel state out.
