//! Kinds of memory.

use super::sys::{Area, PAGE};
use super::{Check, SetUp};
use std::error::Error;

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[("memory_private", private)];

/// Full, sparse and untouched areas.
fn private() -> Result<Check, Box<dyn Error>> {
    let full = Area::private(64 * PAGE)?;
    full.fill(1);
    let untouched = Area::private(64 * PAGE)?;
    let sparse = Area::private(4096 * PAGE)?;
    for page in (0..4096).step_by(37) {
        sparse.pages(page, 1).fill(page as u64);
    }
    Ok(Box::new(move |_| {
        full.check("a full area", 1)?;
        untouched.check_zero("an untouched area")?;
        for page in 0..4096 {
            let page_area = sparse.pages(page, 1);
            match page % 37 {
                0 => page_area.check("a written page", page as u64)?,
                _ => page_area.check_zero("a page between")?,
            }
        }
        Ok(())
    }))
}
