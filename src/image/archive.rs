//! The tar around the records: members, chunks of pages, digests.
