//! setdomainname(2).

use crate::error::Result;
use nix::errno::Errno;

/// Sets the NIS domain name of the calling thread's uts namespace.
pub fn setdomainname(name: &str) -> Result<()> {
    // SAFETY: pointer and length describe `name`.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) })?;
    Ok(())
}
