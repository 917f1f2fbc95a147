//! Seizing, stopping, registers, batches, bare processes to build in.
