//! The uts namespace: host name and domain name.

use crate::error::{Context, Result};
use crate::image::namespaces::uts::Uts;
use crate::sys;
use std::os::fd::BorrowedFd;

/// Reads the names of the namespace behind `namespace`.
pub fn capture(namespace: BorrowedFd<'_>) -> Result<Uts> {
    sys::ns::inside(&[namespace], || {
        let names = nix::sys::utsname::uname().doing(|| "uname")?;
        Ok(Uts {
            hostname: names.nodename().to_string_lossy().into_owned(),
            domainname: names.domainname().to_string_lossy().into_owned(),
        })
    })
}

/// Sets the names, from a thread that is inside the new namespace.
pub fn rebuild(record: &Uts) -> Result<()> {
    nix::unistd::sethostname(&record.hostname)
        .doing(|| format!("setting the host name {:?}", record.hostname))?;
    sys::uts::setdomainname(&record.domainname)
        .doing(|| format!("setting the domain name {:?}", record.domainname))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ns::{Kind, fresh, fresh_with};
    use std::os::fd::AsFd;

    #[test]
    fn names_come_back() {
        let record = Uts {
            hostname: "box-7".into(),
            domainname: "example.org".into(),
        };
        let fd = fresh_with(Kind::Uts, || rebuild(&record)).unwrap();
        assert_eq!(capture(fd.as_fd()).unwrap(), record);
        let fd = fresh(Kind::Uts).unwrap();
        assert_ne!(capture(fd.as_fd()).unwrap(), record);
    }
}
