//! ptrace(2) requests that nix lacks or hides: register sets, signal masks and queues, rseq,
//! seccomp filters.

use crate::error::Result;
use nix::errno::Errno;
use std::ffi::c_void;
use std::ptr;

/// `struct user_regs_struct` of x86-64, as NT_PRSTATUS delivers it.
pub type UserRegs = libc::user_regs_struct;

/// Options of PTRACE_SEIZE and PTRACE_SETOPTIONS.
pub mod options {
    /// Kill the tracee when its tracer ends. Never on a process that is being checkpointed.
    pub const EXITKILL: u64 = 1 << 20;
    /// Do not run the tracee's seccomp filters (needs CAP_SYS_ADMIN and a tracer without seccomp).
    pub const SUSPEND_SECCOMP: u64 = 1 << 21;
}

const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;
const PTRACE_PEEKSIGINFO: libc::c_uint = 0x4209;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: libc::c_uint = 0x420d;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4210;

/// One request whose pointer argument, if it is one, is valid for what the request does with it.
///
/// # Safety
/// `data` has to be what `request` expects.
unsafe fn request(
    request: libc::c_uint,
    tid: i32,
    addr: usize,
    data: *mut c_void,
) -> Result<i64, Errno> {
    // SAFETY: promised by the caller.
    Errno::result(unsafe { libc::ptrace(request, tid, addr as *mut c_void, data) })
}

/// Attaches without stopping; PTRACE_SEIZE.
pub fn seize(tid: i32, options: u64) -> Result<(), Errno> {
    // SAFETY: the data argument is a plain number.
    unsafe { request(libc::PTRACE_SEIZE, tid, 0, options as *mut c_void)? };
    Ok(())
}

/// Asks a seized thread to stop; PTRACE_INTERRUPT.
pub fn interrupt(tid: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    unsafe { request(libc::PTRACE_INTERRUPT, tid, 0, ptr::null_mut())? };
    Ok(())
}

/// Lets a stopped thread run, delivering `signal` (0: none); PTRACE_CONT.
pub fn cont(tid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: the data argument is a plain number.
    unsafe { request(libc::PTRACE_CONT, tid, 0, signal as usize as *mut c_void)? };
    Ok(())
}

/// Lets a stopped thread make one instruction; PTRACE_SINGLESTEP. A `syscall` instruction counts as
/// one: the trap comes after the call has returned.
pub fn singlestep(tid: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    unsafe { request(libc::PTRACE_SINGLESTEP, tid, 0, ptr::null_mut())? };
    Ok(())
}

/// Lets a stopped thread go, delivering `signal` (0: none); PTRACE_DETACH.
pub fn detach(tid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: the data argument is a plain number.
    unsafe { request(libc::PTRACE_DETACH, tid, 0, signal as usize as *mut c_void)? };
    Ok(())
}

/// Replaces the options; PTRACE_SETOPTIONS.
pub fn set_options(tid: i32, options: u64) -> Result<(), Errno> {
    // SAFETY: the data argument is a plain number.
    unsafe { request(libc::PTRACE_SETOPTIONS, tid, 0, options as *mut c_void)? };
    Ok(())
}

/// General registers, segment bases and orig_rax; PTRACE_GETREGSET NT_PRSTATUS.
pub fn registers(tid: i32) -> Result<UserRegs, Errno> {
    let mut registers = std::mem::MaybeUninit::<UserRegs>::zeroed();
    let mut iov = libc::iovec {
        iov_base: registers.as_mut_ptr().cast(),
        iov_len: size_of::<UserRegs>(),
    };
    // SAFETY: the iovec covers exactly `registers`, which is plain integers.
    unsafe {
        request(
            libc::PTRACE_GETREGSET,
            tid,
            NT_PRSTATUS,
            (&raw mut iov).cast(),
        )?;
        Ok(registers.assume_init())
    }
}

/// Sets what [`registers`] reads.
pub fn set_registers(tid: i32, registers: &UserRegs) -> Result<(), Errno> {
    let mut iov = libc::iovec {
        iov_base: ptr::from_ref(registers).cast_mut().cast(),
        iov_len: size_of::<UserRegs>(),
    };
    // SAFETY: the kernel only reads through this iovec.
    unsafe {
        request(
            libc::PTRACE_SETREGSET,
            tid,
            NT_PRSTATUS,
            (&raw mut iov).cast(),
        )?
    };
    Ok(())
}

/// The XSAVE area (standard format, every enabled component); PTRACE_GETREGSET NT_X86_XSTATE.
pub fn xstate(tid: i32) -> Result<Vec<u8>, Errno> {
    // AMX tile data makes the largest area known today, 11 KiB; the kernel reports what it filled.
    let mut area = vec![0u8; 64 << 10];
    let mut iov = libc::iovec {
        iov_base: area.as_mut_ptr().cast(),
        iov_len: area.len(),
    };
    // SAFETY: the iovec covers exactly `area`.
    unsafe {
        request(
            libc::PTRACE_GETREGSET,
            tid,
            NT_X86_XSTATE,
            (&raw mut iov).cast(),
        )?
    };
    area.truncate(iov.iov_len);
    Ok(area)
}

/// Sets what [`xstate`] reads. EINVAL or EFAULT when the area is not of this CPU's size.
pub fn set_xstate(tid: i32, area: &[u8]) -> Result<(), Errno> {
    let mut iov = libc::iovec {
        iov_base: area.as_ptr().cast_mut().cast(),
        iov_len: area.len(),
    };
    // SAFETY: the kernel only reads through this iovec.
    unsafe {
        request(
            libc::PTRACE_SETREGSET,
            tid,
            NT_X86_XSTATE,
            (&raw mut iov).cast(),
        )?
    };
    Ok(())
}

/// The blocked signals, bit n-1 for signal n; PTRACE_GETSIGMASK.
pub fn signal_mask(tid: i32) -> Result<u64, Errno> {
    let mut mask = 0u64;
    // SAFETY: eight bytes are written to eight bytes.
    unsafe { request(PTRACE_GETSIGMASK, tid, 8, (&raw mut mask).cast())? };
    Ok(mask)
}

/// Sets what [`signal_mask`] reads; SIGKILL and SIGSTOP stay unblocked whatever is asked.
pub fn set_signal_mask(tid: i32, mask: u64) -> Result<(), Errno> {
    let mut mask = mask;
    // SAFETY: eight bytes are read from eight bytes.
    unsafe { request(PTRACE_SETSIGMASK, tid, 8, (&raw mut mask).cast())? };
    Ok(())
}

/// The size of `siginfo_t`.
pub const SIGINFO_SIZE: usize = 128;

/// Which queue of pending signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// The thread's own.
    Thread,
    /// The one that all threads of the process share.
    Process,
}

/// Pending signals with their siginfo, in the order of the queue, taken from nobody;
/// PTRACE_PEEKSIGINFO. With si_code as the kernel holds it.
pub fn peek_signals(tid: i32, queue: Queue) -> Result<Vec<[u8; SIGINFO_SIZE]>, Errno> {
    #[repr(C)]
    struct PeekArguments {
        off: u64,
        flags: u32,
        nr: i32,
    }
    const AT_ONCE: usize = 32;
    let mut found = Vec::new();
    loop {
        let mut arguments = PeekArguments {
            off: found.len() as u64,
            flags: u32::from(queue == Queue::Process),
            nr: AT_ONCE as i32,
        };
        let mut buffer = [[0u8; SIGINFO_SIZE]; AT_ONCE];
        // SAFETY: the kernel writes at most `nr` siginfo of 128 bytes to `buffer`.
        let count = unsafe {
            request(
                PTRACE_PEEKSIGINFO,
                tid,
                (&raw mut arguments) as usize,
                buffer.as_mut_ptr().cast(),
            )?
        };
        let count = usize::try_from(count).unwrap_or(0);
        found.extend_from_slice(&buffer[..count.min(AT_ONCE)]);
        if count < AT_ONCE {
            return Ok(found);
        }
    }
}

/// The siginfo of the signal that a thread is stopped at; PTRACE_GETSIGINFO.
pub fn siginfo(tid: i32) -> Result<[u8; SIGINFO_SIZE], Errno> {
    let mut info = [0u8; SIGINFO_SIZE];
    // SAFETY: siginfo_t is 128 bytes.
    unsafe { request(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr().cast())? };
    Ok(info)
}

/// A thread's rseq registration as (address, length, signature, flags); address 0 when there is none.
pub fn rseq(tid: i32) -> Result<(u64, u32, u32, u32), Errno> {
    #[repr(C)]
    #[derive(Default)]
    struct Configuration {
        pointer: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut configuration = Configuration::default();
    // SAFETY: the kernel writes at most the size passed as addr.
    unsafe {
        request(
            PTRACE_GET_RSEQ_CONFIGURATION,
            tid,
            size_of::<Configuration>(),
            (&raw mut configuration).cast(),
        )?
    };
    Ok((
        configuration.pointer,
        configuration.size,
        configuration.signature,
        configuration.flags,
    ))
}

/// Whether a thread's system calls are turned into signals (prctl(2), PR_SET_SYSCALL_USER_DISPATCH).
/// EIO on kernels before 6.4, which do not tell.
pub fn dispatches_system_calls(tid: i32) -> Result<bool, Errno> {
    // Mode, address of the selector, start and length of the code that is let through.
    let mut configuration = [0u64; 4];
    // SAFETY: the kernel writes exactly the size passed as addr.
    unsafe {
        request(
            PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
            tid,
            size_of_val(&configuration),
            configuration.as_mut_ptr().cast(),
        )?
    };
    Ok(configuration[0] != 0)
}

/// The classic BPF program of seccomp filter `index` (0 is the one installed first, whatever
/// ptrace(2) says), 8 bytes an instruction, or `None` past the end; PTRACE_SECCOMP_GET_FILTER.
pub fn seccomp_filter(tid: i32, index: usize) -> Result<Option<Vec<u8>>, Errno> {
    // SAFETY: a null data pointer asks for the length only.
    let length = match unsafe { request(PTRACE_SECCOMP_GET_FILTER, tid, index, ptr::null_mut()) } {
        Ok(length) => usize::try_from(length).unwrap_or(0),
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let mut program = vec![0u8; length * 8];
    // SAFETY: the kernel writes `length` instructions of 8 bytes; filters never change.
    unsafe {
        request(
            PTRACE_SECCOMP_GET_FILTER,
            tid,
            index,
            program.as_mut_ptr().cast(),
        )?
    };
    Ok(Some(program))
}

/// The flags of seccomp filter `index`; PTRACE_SECCOMP_GET_METADATA.
pub fn seccomp_flags(tid: i32, index: u64) -> Result<u64, Errno> {
    let mut metadata = [index, 0u64];
    // SAFETY: struct seccomp_metadata is two u64; the size is passed as addr.
    unsafe {
        request(
            PTRACE_SECCOMP_GET_METADATA,
            tid,
            16,
            metadata.as_mut_ptr().cast(),
        )?
    };
    Ok(metadata[1])
}

/// The robust futex list of a thread as (head, length); get_robust_list(2).
pub fn robust_list(tid: i32) -> Result<(u64, u64), Errno> {
    let mut head = 0u64;
    let mut length = 0u64;
    // SAFETY: both pointers are to eight writable bytes.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            tid,
            &raw mut head,
            &raw mut length,
        )
    })?;
    Ok((head, length))
}

/// What waiting for a traced thread found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Stopped by PTRACE_INTERRUPT, by birth under CLONE_PTRACE, or in a group-stop, whose signal is
    /// then not SIGTRAP (PTRACE_EVENT_STOP).
    Stop {
        /// SIGTRAP or the stop signal.
        signal: i32,
    },
    /// About to receive a signal, or trapped after a single step.
    Signal(i32),
    /// Any other ptrace event.
    Other(i32),
    /// It has exited, with this status (as in wait(2)).
    Gone(i32),
}

fn event(status: i32) -> Event {
    if !libc::WIFSTOPPED(status) {
        return Event::Gone(status);
    }
    match status >> 16 {
        0 => Event::Signal(libc::WSTOPSIG(status)),
        libc::PTRACE_EVENT_STOP => Event::Stop {
            signal: libc::WSTOPSIG(status),
        },
        other => Event::Other(other),
    }
}

/// Waits for the next event of one traced thread (`tid` > 0) or of any that the calling thread traces or
/// has made (-1). `None` when `hang` is
/// false and nothing has happened. ECHILD when there is nothing to wait for.
pub fn wait(tid: i32, hang: bool) -> Result<Option<(i32, Event)>, Errno> {
    let mut status = 0;
    let flags = libc::__WALL | libc::__WNOTHREAD | if hang { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: `status` is writable; no rusage is asked for.
        match Errno::result(unsafe { libc::wait4(tid, &raw mut status, flags, ptr::null_mut()) }) {
            Ok(0) => return Ok(None),
            Ok(found) => return Ok(Some((found, event(status)))),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
