//! Address spaces: areas, pages, shared memory, the kernel's own pages.
//!
//! The way out: a [`Collector`] walks the areas of stopped processes and finds the pages that no file
//! holds (PAGEMAP_SCAN); pages that processes share after fork are found by their frame numbers. What
//! it hands over is a list of records and a [`Source`] from which the pages are then read, chunk by
//! chunk, in the order in which they are numbered.
//!
//! The way back: see [`build`].

mod attributes;
pub mod build;
mod collect;
pub mod fill;
pub mod increment;
pub mod live;
mod pages;
pub mod regions;
mod source;

pub use collect::{Ask, Collector, ask};
pub use pages::extents;
pub use source::{Filled, Known, Source};
