//! Checked views of headers (being written).
