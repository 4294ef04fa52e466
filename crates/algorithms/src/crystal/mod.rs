//! Crystal.
