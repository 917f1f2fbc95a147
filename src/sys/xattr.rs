//! Extended attributes; xattr(7). Final symbolic links are followed, so that `/proc/self/fd/N` is
//! the file behind a descriptor.

use crate::error::{Context, Result};
use nix::errno::Errno;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The names; none where the file system has no attributes.
pub fn list(path: &Path) -> Result<Vec<Vec<u8>>> {
    let c_path = c_string(path.as_os_str().as_bytes())?;
    let names = grow(|buffer| {
        // SAFETY: `c_path` is NUL-terminated; the kernel fills at most `buffer.len()` bytes.
        unsafe { libc::listxattr(c_path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    });
    match names {
        Ok(names) => Ok(names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect()),
        Err(Errno::EOPNOTSUPP | Errno::EBADF | Errno::EPERM) => Ok(Vec::new()),
        Err(errno) => Err(errno).doing(|| format!("listing attributes of {}", path.display())),
    }
}

/// The value of one.
pub fn get(path: &Path, name: &[u8]) -> Result<Vec<u8>> {
    let (c_path, c_name) = (c_string(path.as_os_str().as_bytes())?, c_string(name)?);
    grow(|buffer| {
        // SAFETY: both names are NUL-terminated; the kernel fills at most `buffer.len()` bytes.
        unsafe {
            libc::getxattr(
                c_path.as_ptr(),
                c_name.as_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            )
        }
    })
    .doing(|| format!("reading an attribute of {}", path.display()))
}

/// Sets one.
pub fn set(path: &Path, name: &[u8], value: &[u8]) -> Result<()> {
    let (c_path, c_name) = (c_string(path.as_os_str().as_bytes())?, c_string(name)?);
    // SAFETY: both names are NUL-terminated; the kernel reads `value.len()` bytes.
    Errno::result(unsafe {
        libc::setxattr(
            c_path.as_ptr(),
            c_name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    })
    .doing(|| {
        let name = String::from_utf8_lossy(name).into_owned();
        format!("setting attribute {name} of {}", path.display())
    })?;
    Ok(())
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    Ok(CString::new(bytes).map_err(|_| Errno::EINVAL)?)
}

/// Calls until the buffer is large enough; 64 KiB is the most that the kernel has.
fn grow(call: impl Fn(&mut [u8]) -> isize) -> Result<Vec<u8>, Errno> {
    for size in [1 << 10, 1 << 16] {
        let mut buffer = vec![0_u8; size];
        match Errno::result(call(&mut buffer)) {
            Ok(len) => {
                buffer.truncate(len.cast_unsigned());
                return Ok(buffer);
            }
            Err(Errno::ERANGE) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::ERANGE)
}
