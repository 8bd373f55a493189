//! ORDER BY, OFFSET and the frames of windows.
//!
//! | file | its one job |
//! |---|---|
//! | `sorts` | expressions that ORDER BY repeats |
//! | `sort_keys` | comparisons in sort keys |
//! | `offsets` | OFFSET without LIMIT |
//! | `frames` | RANGE frames |

pub(super) mod frames;
pub(super) mod offsets;
pub(super) mod sort_keys;
pub(super) mod sorts;
