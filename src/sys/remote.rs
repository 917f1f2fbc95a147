//! Reading and writing another process's memory: process_vm_readv(2), process_vm_writev(2),
//! `/proc/PID/mem`.

use nix::errno::Errno;

fn transfer(
    number: libc::c_long,
    host_pid: i32,
    local: &[libc::iovec],
    remote: &[libc::iovec],
) -> Result<usize, Errno> {
    // SAFETY: the callers pass local iovecs that cover slices they hold for as long as this lasts;
    // remote ones are checked by the kernel.
    let moved = Errno::result(unsafe {
        libc::syscall(
            number,
            host_pid,
            local.as_ptr(),
            local.len(),
            remote.as_ptr(),
            remote.len(),
            0usize,
        )
    })?;
    usize::try_from(moved).map_err(|_| Errno::EFAULT)
}

/// Reads from `address` on, as much as is readable up to `buffer.len()`; returns bytes read. Areas
/// without PROT_READ are refused (EFAULT), unlike through `/proc/PID/mem`.
pub fn read(host_pid: i32, address: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let local = [libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    }];
    let remote = [libc::iovec {
        iov_base: address as *mut _,
        iov_len: buffer.len(),
    }];
    transfer(libc::SYS_process_vm_readv, host_pid, &local, &remote)
}

/// Reads the pieces `(address, length)`, at most 1024 (IOV_MAX), one after the other into `buffer`,
/// whose length is their sum; returns bytes read.
pub fn read_pieces(
    host_pid: i32,
    pieces: &[(u64, usize)],
    buffer: &mut [u8],
) -> Result<usize, Errno> {
    let local = [libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    }];
    let remote: Vec<_> = pieces
        .iter()
        .map(|&(address, length)| libc::iovec {
            iov_base: address as *mut _,
            iov_len: length,
        })
        .collect();
    transfer(libc::SYS_process_vm_readv, host_pid, &local, &remote)
}

/// Writes `bytes` at `address`; returns bytes written. Areas without PROT_WRITE are refused.
pub fn write(host_pid: i32, address: u64, bytes: &[u8]) -> Result<usize, Errno> {
    let local = [libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }];
    let remote = [libc::iovec {
        iov_base: address as *mut _,
        iov_len: bytes.len(),
    }];
    transfer(libc::SYS_process_vm_writev, host_pid, &local, &remote)
}

/// The most pieces that one call takes (IOV_MAX).
pub const MOST_PIECES: usize = 1024;

/// Writes each piece to its address, at most [`MOST_PIECES`]; all of them, or an error.
pub fn write_scattered(host_pid: i32, pieces: &[(u64, &[u8])]) -> Result<(), Errno> {
    let mut local: Vec<_> = pieces
        .iter()
        .map(|(_, bytes)| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        })
        .collect();
    let mut remote: Vec<_> = pieces
        .iter()
        .map(|(address, bytes)| libc::iovec {
            iov_base: *address as *mut _,
            iov_len: bytes.len(),
        })
        .collect();
    let mut done = 0;
    while done < pieces.len() {
        let mut written = transfer(
            libc::SYS_process_vm_writev,
            host_pid,
            &local[done..],
            &remote[done..],
        )?;
        if written == 0 {
            return Err(Errno::EFAULT);
        }
        // It stops short where a page cannot be had; the next call says why.
        while done < pieces.len() && written >= local[done].iov_len {
            written -= local[done].iov_len;
            done += 1;
        }
        if done < pieces.len() {
            local[done].iov_base = local[done].iov_base.wrapping_byte_add(written);
            local[done].iov_len -= written;
            remote[done].iov_base = remote[done].iov_base.wrapping_byte_add(written);
            remote[done].iov_len -= written;
        }
    }
    Ok(())
}
