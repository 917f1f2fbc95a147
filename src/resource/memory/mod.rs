//! Memory: areas, pages, and what processes share of them.
