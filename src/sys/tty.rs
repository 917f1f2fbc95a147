//! Terminal ioctls; tty_ioctl(4). A master answers for its slave's modes and size.

use crate::error::Result;
use nix::errno::Errno;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

const TCGETS2: libc::c_ulong = 0x802c_542a;
const TCSETS2: libc::c_ulong = 0x402c_542b;
const TIOCGPTLCK: libc::c_ulong = 0x8004_5439;
const TIOCGPKT: libc::c_ulong = 0x8004_5438;
const TIOCGEXCL: libc::c_ulong = 0x8004_5440;
const TIOCGDEV: libc::c_ulong = 0x8004_5432;
const TIOCGPTN: libc::c_ulong = 0x8004_5430;
const TIOCSPTLCK: libc::c_ulong = 0x4004_5431;
const TIOCPKT: libc::c_ulong = 0x5420;

/// `struct termios2`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// c_iflag
    pub input: u32,
    /// c_oflag
    pub output: u32,
    /// c_cflag
    pub control: u32,
    /// c_lflag
    pub local: u32,
    /// c_line
    pub line: u8,
    /// c_cc
    pub characters: [u8; 19],
    /// c_ispeed
    pub input_speed: u32,
    /// c_ospeed
    pub output_speed: u32,
}

/// Rows, columns, width and height in pixels: `struct winsize`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size(pub u16, pub u16, pub u16, pub u16);

fn get<T: Copy>(tty: BorrowedFd<'_>, request: libc::c_ulong) -> Result<T, Errno> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: private callers pair each request with the plain integer structure that the kernel
    // fills for it; zeroes are valid for all of them.
    unsafe {
        Errno::result(libc::ioctl(tty.as_raw_fd(), request, value.as_mut_ptr()))?;
        Ok(value.assume_init())
    }
}

fn set<T: Copy>(tty: BorrowedFd<'_>, request: libc::c_ulong, value: &T) -> Result<(), Errno> {
    // SAFETY: private callers pair each request with the structure that the kernel reads for it.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), request, std::ptr::from_ref(value)) })?;
    Ok(())
}

/// TCGETS2; EIO where the terminal is hung up.
pub fn modes(tty: BorrowedFd<'_>) -> Result<Modes, Errno> {
    get(tty, TCGETS2)
}

/// TCSETS2.
pub fn set_modes(tty: BorrowedFd<'_>, modes: &Modes) -> Result<()> {
    Ok(set(tty, TCSETS2, modes)?)
}

/// TIOCGWINSZ.
pub fn size(tty: BorrowedFd<'_>) -> Result<Size> {
    Ok(get(tty, libc::TIOCGWINSZ)?)
}

/// TIOCSWINSZ. The foreground process group, if there is one, gets SIGWINCH when it differs.
pub fn set_size(tty: BorrowedFd<'_>, size: Size) -> Result<()> {
    Ok(set(tty, libc::TIOCSWINSZ, &size)?)
}

/// TIOCGPTN: N of /dev/pts/N, asked of a master.
pub fn index(master: BorrowedFd<'_>) -> Result<u32> {
    Ok(get(master, TIOCGPTN)?)
}

/// TIOCGPTLCK, asked of a master.
pub fn locked(master: BorrowedFd<'_>) -> Result<bool> {
    Ok(get::<libc::c_int>(master, TIOCGPTLCK)? != 0)
}

/// TIOCSPTLCK, of a master.
pub fn set_locked(master: BorrowedFd<'_>, locked: bool) -> Result<()> {
    Ok(set(master, TIOCSPTLCK, &libc::c_int::from(locked))?)
}

/// TIOCGPKT, asked of a master.
pub fn packet(master: BorrowedFd<'_>) -> Result<bool> {
    Ok(get::<libc::c_int>(master, TIOCGPKT)? != 0)
}

/// TIOCPKT, of a master.
pub fn set_packet(master: BorrowedFd<'_>, packet: bool) -> Result<()> {
    Ok(set(master, TIOCPKT, &libc::c_int::from(packet))?)
}

/// TIOCGEXCL.
pub fn exclusive(tty: BorrowedFd<'_>) -> Result<bool> {
    Ok(get::<libc::c_int>(tty, TIOCGEXCL)? != 0)
}

/// TIOCEXCL.
pub fn set_exclusive(tty: BorrowedFd<'_>) -> Result<()> {
    Ok(set(tty, libc::TIOCEXCL, &0)?)
}

/// TIOCGDEV: major and minor number of the terminal behind /dev/tty and /dev/console; EIO where it is
/// hung up.
pub fn device(tty: BorrowedFd<'_>) -> Result<(u32, u32), Errno> {
    let device: u32 = get(tty, TIOCGDEV)?;
    Ok((
        (device >> 8) & 0xfff,
        (device & 0xff) | ((device >> 12) & 0xf_ff00),
    ))
}

/// Opens /dev/tty (`node`, O_PATH) so that it is the terminal `slave`. Only a member of a session
/// whose terminal that is can: a process of ours becomes one for the moment, gives the terminal up
/// again and ends. `slave` must not be anybody's controlling terminal yet.
pub fn open_controlling(
    node: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
    flags: i32,
) -> Result<std::os::fd::OwnedFd> {
    let path = std::ffi::CString::new(format!("/proc/self/fd/{}", node.as_raw_fd()))
        .map_err(|_| Errno::EINVAL)?;
    let (node, slave) = (path.as_ptr(), slave.as_raw_fd());
    super::child::produce(move || {
        // SAFETY: system calls on numbers and one NUL-terminated path, in a child of ours.
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            libc::signal(libc::SIGCONT, libc::SIG_IGN);
            libc::setsid();
            if libc::ioctl(slave, libc::TIOCSCTTY, 0) != 0 {
                return -1;
            }
            let fd = libc::open(node, flags | libc::O_CLOEXEC | libc::O_NOCTTY);
            let errno = *libc::__errno_location();
            libc::ioctl(slave, libc::TIOCNOTTY);
            *libc::__errno_location() = errno;
            fd
        }
    })
}
