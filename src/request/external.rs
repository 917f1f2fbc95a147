//! What is outside of a container and allowed to be: the other end stays there, and the restore is
//! given something in its place.

use super::wrong;
use crate::error::{Error, Result};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// One thing outside. Written as callers write it: `mnt[/data]:data`, `net[4026531840]:extRootNetNS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum External {
    /// `mnt[POINT]:NAME`: what is mounted there is not looked at; the image has the name.
    Mount {
        /// In the container.
        point: PathBuf,
        /// In the image.
        name: String,
    },
    /// `mnt[]` or `mnt[]:FLAGS`: every mount whose source is outside, under its own path as name.
    /// Flags: `m` also with masters outside, `s` also shared ones.
    MountsAuto {
        /// Slave mounts of masters outside too.
        masters: bool,
        /// Mounts that are shared with the outside too.
        sharing: bool,
    },
    /// `file[MOUNT:INODE]`, both in hexadecimal.
    File {
        /// Mount id.
        mount: u32,
        /// Inode.
        inode: u64,
    },
    /// `tty[RDEV:DEV]`, both in hexadecimal.
    Terminal {
        /// The terminal's number.
        rdev: u64,
        /// The file system it is in.
        dev: u64,
    },
    /// `unix[INODE]`, in decimal.
    Unix {
        /// Inode of the socket.
        inode: u64,
    },
    /// `KIND[INODE]:NAME` for a namespace that is not made anew; the restore is given it by a
    /// descriptor of that name.
    Namespace {
        /// `net` or `pid`.
        kind: String,
        /// Of the namespace.
        inode: u64,
        /// In the image.
        name: String,
    },
    /// `dev[MAJOR/MINOR]:NAME`: a block device that is mounted.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// In the image.
        name: String,
    },
    /// `veth[INNER]:OUTER`, `veth[INNER]:OUTER@BRIDGE`; on the way out the part after the colon may
    /// be missing.
    Veth {
        /// Inside.
        inner: String,
        /// Outside.
        outer: Option<String>,
        /// The bridge of the outer end.
        bridge: Option<String>,
    },
}

impl FromStr for External {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| {
            wrong(
                format!("{text:?} names nothing that can be outside of a container"),
                "give mnt[POINT]:NAME, file[MOUNT:INODE], tty[RDEV:DEV], unix[INODE], net[INODE]:NAME, \
                 pid[INODE]:NAME, dev[MAJOR/MINOR]:NAME or veth[INNER]:OUTER",
            )
        })
    }
}

fn parse(text: &str) -> Option<External> {
    let (kind, rest) = text.split_once('[')?;
    let (inside, rest) = rest.split_once(']')?;
    let name = match rest {
        "" => None,
        rest => Some(rest.strip_prefix(':')?),
    };
    let hexadecimal = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    Some(match (kind, name) {
        ("mnt", flags) if inside.is_empty() => {
            let flags = flags.unwrap_or_default();
            if flags.chars().any(|flag| flag != 'm' && flag != 's') {
                return None;
            }
            External::MountsAuto {
                masters: flags.contains('m'),
                sharing: flags.contains('s'),
            }
        }
        ("mnt", Some(name)) if !name.is_empty() => External::Mount {
            point: inside.into(),
            name: name.into(),
        },
        ("file", None) => {
            let (mount, inode) = inside.split_once(':')?;
            External::File {
                mount: hexadecimal(mount)?.try_into().ok()?,
                inode: hexadecimal(inode)?,
            }
        }
        ("tty", None) => {
            let (rdev, dev) = inside.split_once(':')?;
            External::Terminal {
                rdev: hexadecimal(rdev)?,
                dev: hexadecimal(dev)?,
            }
        }
        ("unix", None) => External::Unix {
            inode: inside.parse().ok()?,
        },
        ("net" | "pid", Some(name)) if !name.is_empty() => External::Namespace {
            kind: kind.into(),
            inode: inside.parse().ok()?,
            name: name.into(),
        },
        ("dev", Some(name)) if !name.is_empty() => {
            let (major, minor) = inside.split_once('/')?;
            External::Device {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                name: name.into(),
            }
        }
        ("veth", outer) if !inside.is_empty() => {
            let (outer, bridge) = match outer {
                None => (None, None),
                Some(outer) => match outer.split_once('@') {
                    Some((outer, bridge)) => (Some(outer.to_owned()), Some(bridge.to_owned())),
                    None => (Some(outer.to_owned()), None),
                },
            };
            External::Veth {
                inner: inside.into(),
                outer,
                bridge,
            }
        }
        _ => return None,
    })
}

impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            External::Mount { point, name } => write!(f, "mnt[{}]:{name}", point.display()),
            External::MountsAuto { masters, sharing } => {
                f.write_str("mnt[]:")?;
                if *masters {
                    f.write_str("m")?;
                }
                if *sharing {
                    f.write_str("s")?;
                }
                Ok(())
            }
            External::File { mount, inode } => write!(f, "file[{mount:x}:{inode:x}]"),
            External::Terminal { rdev, dev } => write!(f, "tty[{rdev:x}:{dev:x}]"),
            External::Unix { inode } => write!(f, "unix[{inode}]"),
            External::Namespace { kind, inode, name } => write!(f, "{kind}[{inode}]:{name}"),
            External::Device { major, minor, name } => write!(f, "dev[{major}/{minor}]:{name}"),
            External::Veth {
                inner,
                outer,
                bridge,
            } => {
                write!(f, "veth[{inner}]")?;
                if let Some(outer) = outer {
                    write!(f, ":{outer}")?;
                }
                if let Some(bridge) = bridge {
                    write!(f, "@{bridge}")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callers_write_is_read_and_written_back() {
        for text in [
            "mnt[/data]:data",
            "mnt[/proc/keys]:/dev/null",
            "mnt[]:",
            "mnt[]:ms",
            "file[1f:2c]",
            "tty[8803:18]",
            "unix[12345]",
            "net[4026531840]:extRootNetNS",
            "pid[4026531836]:extRootPidNS",
            "dev[8/1]:disk",
            "veth[eth0]:veth7",
            "veth[eth0]:veth7@br0",
            "veth[eth0]",
        ] {
            assert_eq!(text.parse::<External>().unwrap().to_string(), text);
        }
        assert_eq!(
            "mnt[]".parse::<External>().unwrap(),
            External::MountsAuto {
                masters: false,
                sharing: false
            }
        );
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for text in [
            "",
            "mnt",
            "mnt[/a]",
            "mnt[/a]:",
            "mnt[]:x",
            "file[1]",
            "file[x:y]",
            "unix[a]",
            "net[1]",
            "soul[1]:a",
            "mnt[/a",
            "mnt[/a]b",
        ] {
            assert!(text.parse::<External>().is_err(), "{text}");
        }
    }
}
