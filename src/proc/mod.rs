//! `/proc` text → values: pure parsers with captured samples, and one place of I/O.
