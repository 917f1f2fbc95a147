//! The system calls that batches are made of, typed. Arguments in the order of their man pages.

use super::batch::{Arg, Batch, RemoteAddr, RemoteFd};

/// A system call that can be pushed onto a [`Batch`].
pub trait Call {
    /// What its result is, when it succeeds.
    type Output: FromWord;
    /// Its name in error messages.
    const NAME: &'static str;
    /// Its number and arguments.
    fn encode(self, batch: &mut Batch) -> (i64, [Arg; 6]);
}

/// What a result word can be read as.
pub trait FromWord {
    /// Reads a successful result.
    fn from_word(word: u64) -> Self;
}

impl FromWord for () {
    fn from_word(_: u64) -> Self {}
}

impl FromWord for u64 {
    fn from_word(word: u64) -> Self {
        word
    }
}

impl FromWord for i32 {
    fn from_word(word: u64) -> Self {
        word as i32
    }
}

impl FromWord for RemoteAddr {
    fn from_word(word: u64) -> Self {
        RemoteAddr(word)
    }
}

impl FromWord for RemoteFd {
    fn from_word(word: u64) -> Self {
        RemoteFd(word as i32)
    }
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident { $($field:ident),* } = $number:ident ( $($argument:expr),* ) -> $output:ty;)*) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name { $(#[expect(missing_docs, reason = "as in the man page")] pub $field: Arg),* }

        impl Call for $name {
            type Output = $output;
            const NAME: &'static str = stringify!($name);
            fn encode(self, _: &mut Batch) -> (i64, [Arg; 6]) {
                let $name { $($field),* } = self;
                let mut arguments = [Arg::Value(0); 6];
                let given: &[Arg] = &[$(Arg::from($argument)),*];
                arguments[..given.len()].copy_from_slice(given);
                (libc::$number, arguments)
            }
        }
    )* };
}

calls! {
    /// mmap(2), all arguments.
    Mmap { address, length, protection, flags, fd, offset } = SYS_mmap(address, length, protection, flags, fd, offset) -> RemoteAddr;
    /// mprotect(2)
    Mprotect { address, length, protection } = SYS_mprotect(address, length, protection) -> ();
    /// brk(2); returns the end of the heap, also when it cannot be moved.
    Brk { end } = SYS_brk(end) -> u64;
    /// munmap(2)
    Munmap { address, length } = SYS_munmap(address, length) -> ();
    /// mremap(2) with MREMAP_MAYMOVE | MREMAP_FIXED: moves an area as it is.
    Move { address, length, to } = SYS_mremap(address, length, length, 3u64, to) -> RemoteAddr;
    /// madvise(2)
    Madvise { address, length, advice } = SYS_madvise(address, length, advice) -> ();
    /// mlock2(2)
    Mlock { address, length, flags } = SYS_mlock2(address, length, flags) -> ();
    /// mlockall(2)
    Mlockall { flags } = SYS_mlockall(flags) -> ();
    /// mseal(2), since Linux 6.10.
    Mseal { address, length } = SYS_mseal(address, length, 0u64) -> ();
    /// shmat(2)
    Shmat { id, address, flags } = SYS_shmat(id, address, flags) -> RemoteAddr;
    /// mbind(2)
    Mbind { address, length, mode, nodes, maxnode, flags } = SYS_mbind(address, length, mode, nodes, maxnode, flags) -> ();
    /// prctl(2)
    Prctl { option, arg2, arg3, arg4, arg5 } = SYS_prctl(option, arg2, arg3, arg4, arg5) -> i32;
    /// arch_prctl(2)
    ArchPrctl { option, address } = SYS_arch_prctl(option, address) -> ();
    /// clone3(2); `arguments` is a `struct clone_args`.
    Clone3 { arguments, size } = SYS_clone3(arguments, size) -> i32;
    /// exit(2): this thread ends.
    Exit { status } = SYS_exit(status) -> ();
    /// exit_group(2): the process ends.
    ExitGroup { status } = SYS_exit_group(status) -> ();
    /// wait4(2)
    Wait4 { pid, status, options } = SYS_wait4(pid, status, options, 0u64) -> i32;
    /// waitid(2)
    Waitid { which, id, info, options } = SYS_waitid(which, id, info, options, 0u64) -> ();
    /// setsid(2)
    Setsid {} = SYS_setsid() -> i32;
    /// setpgid(2)
    Setpgid { pid, pgid } = SYS_setpgid(pid, pgid) -> ();
    /// kill(2)
    Kill { pid, signal } = SYS_kill(pid, signal) -> ();
    /// close(2)
    Close { fd } = SYS_close(fd) -> ();
    /// close_range(2)
    CloseRange { first, last, flags } = SYS_close_range(first, last, flags) -> ();
    /// dup3(2); fails with EINVAL when both are the same.
    Dup3 { old, new, flags } = SYS_dup3(old, new, flags) -> RemoteFd;
    /// fcntl(2)
    Fcntl { fd, command, argument } = SYS_fcntl(fd, command, argument) -> i32;
    /// flock(2)
    Flock { fd, operation } = SYS_flock(fd, operation) -> ();
    /// ioctl(2)
    Ioctl { fd, request, argument } = SYS_ioctl(fd, request, argument) -> i32;
    /// pidfd_getfd(2)
    PidfdGetfd { pidfd, fd } = SYS_pidfd_getfd(pidfd, fd, 0u64) -> RemoteFd;
    /// openat(2)
    Openat { directory, path, flags, mode } = SYS_openat(directory, path, flags, mode) -> RemoteFd;
    /// chdir(2)
    Chdir { path } = SYS_chdir(path) -> ();
    /// fchdir(2)
    Fchdir { fd } = SYS_fchdir(fd) -> ();
    /// chroot(2)
    Chroot { path } = SYS_chroot(path) -> ();
    /// umask(2)
    Umask { mask } = SYS_umask(mask) -> i32;
    /// setns(2)
    Setns { fd, kind } = SYS_setns(fd, kind) -> ();
    /// unshare(2)
    Unshare { flags } = SYS_unshare(flags) -> ();
    /// fsopen(2)
    Fsopen { name, flags } = SYS_fsopen(name, flags) -> RemoteFd;
    /// fsconfig(2)
    Fsconfig { fd, command, key, value, aux } = SYS_fsconfig(fd, command, key, value, aux) -> ();
    /// fsmount(2)
    Fsmount { fd, flags, attributes } = SYS_fsmount(fd, flags, attributes) -> RemoteFd;
    /// epoll_ctl(2)
    EpollCtl { epoll, operation, fd, event } = SYS_epoll_ctl(epoll, operation, fd, event) -> ();
    /// rt_sigaction(2)
    RtSigaction { signal, action, old } = SYS_rt_sigaction(signal, action, old, 8u64) -> ();
    /// sigaltstack(2). Checks that the given size is enough for a frame; never touches the stack.
    Sigaltstack { stack, old } = SYS_sigaltstack(stack, old) -> ();
    /// rt_sigqueueinfo(2)
    RtSigqueueinfo { pid, signal, info } = SYS_rt_sigqueueinfo(pid, signal, info) -> ();
    /// rt_tgsigqueueinfo(2)
    RtTgsigqueueinfo { pid, tid, signal, info } = SYS_rt_tgsigqueueinfo(pid, tid, signal, info) -> ();
    /// rt_sigtimedwait(2)
    RtSigtimedwait { set, info, timeout } = SYS_rt_sigtimedwait(set, info, timeout, 8u64) -> i32;
    /// getitimer(2)
    Getitimer { which, value } = SYS_getitimer(which, value) -> ();
    /// setitimer(2)
    Setitimer { which, value } = SYS_setitimer(which, value, 0u64) -> ();
    /// timer_create(2)
    TimerCreate { clock, event, id } = SYS_timer_create(clock, event, id) -> ();
    /// timer_settime(2)
    TimerSettime { id, flags, value } = SYS_timer_settime(id, flags, value, 0u64) -> ();
    /// timer_gettime(2)
    TimerGettime { id, value } = SYS_timer_gettime(id, value) -> ();
    /// timer_getoverrun(2)
    TimerGetoverrun { id } = SYS_timer_getoverrun(id) -> i32;
    /// timer_delete(2)
    TimerDelete { id } = SYS_timer_delete(id) -> ();
    /// set_tid_address(2)
    SetTidAddress { address } = SYS_set_tid_address(address) -> i32;
    /// set_robust_list(2)
    SetRobustList { head, length } = SYS_set_robust_list(head, length) -> ();
    /// rseq(2)
    Rseq { address, length, flags, signature } = SYS_rseq(address, length, flags, signature) -> ();
    /// personality(2)
    Personality { persona } = SYS_personality(persona) -> i32;
    /// setgroups(2)
    Setgroups { count, list } = SYS_setgroups(count, list) -> ();
    /// setresuid(2)
    Setresuid { real, effective, saved } = SYS_setresuid(real, effective, saved) -> ();
    /// setresgid(2)
    Setresgid { real, effective, saved } = SYS_setresgid(real, effective, saved) -> ();
    /// setfsuid(2); returns the previous one, whether it worked or not.
    Setfsuid { uid } = SYS_setfsuid(uid) -> i32;
    /// setfsgid(2); returns the previous one, whether it worked or not.
    Setfsgid { gid } = SYS_setfsgid(gid) -> i32;
    /// capset(2)
    Capset { header, data } = SYS_capset(header, data) -> ();
    /// seccomp(2)
    Seccomp { operation, flags, arguments } = SYS_seccomp(operation, flags, arguments) -> i32;
    /// prlimit(2)
    Prlimit { pid, resource, new, old } = SYS_prlimit64(pid, resource, new, old) -> ();
    /// sched_setattr(2)
    SchedSetattr { tid, attributes } = SYS_sched_setattr(tid, attributes, 0u64) -> ();
    /// sched_setaffinity(2)
    SchedSetaffinity { tid, length, mask } = SYS_sched_setaffinity(tid, length, mask) -> ();
    /// ioprio_set(2)
    IoprioSet { which, who, value } = SYS_ioprio_set(which, who, value) -> ();
    /// membarrier(2)
    Membarrier { command, flags, cpu } = SYS_membarrier(command, flags, cpu) -> i32;
    /// getpid(2); harmless, for tests.
    Getpid {} = SYS_getpid() -> i32;
    /// getppid(2)
    Getppid {} = SYS_getppid() -> i32;
    /// semop(2)
    Semop { id, operations, count } = SYS_semop(id, operations, count) -> ();
    /// semctl(2)
    Semctl { id, index, command, argument } = SYS_semctl(id, index, command, argument) -> i32;
    /// restart_syscall(2)
    RestartSyscall {} = SYS_restart_syscall() -> ();
    /// nanosleep(2)
    Nanosleep { request, remaining } = SYS_nanosleep(request, remaining) -> ();
    /// clock_nanosleep(2)
    ClockNanosleep { clock, flags, request, remaining } = SYS_clock_nanosleep(clock, flags, request, remaining) -> ();
    /// poll(2)
    Poll { descriptors, count, timeout } = SYS_poll(descriptors, count, timeout) -> i32;
    /// futex(2), FUTEX_WAIT.
    FutexWait { address, operation, value, timeout } = SYS_futex(address, operation, value, timeout) -> ();
    /// arch_prctl(2) with an option whose result is the answer.
    ArchGet { option, address } = SYS_arch_prctl(option, address) -> i32;
    /// get_mempolicy(2) of the thread; `nodes` has room for `most` bits.
    GetMempolicy { mode, nodes, most } = SYS_get_mempolicy(mode, nodes, most, 0u64, 0u64) -> ();
    /// set_mempolicy(2)
    SetMempolicy { mode, nodes, most } = SYS_set_mempolicy(mode, nodes, most) -> ();
    /// userfaultfd(2)
    Userfaultfd { flags } = SYS_userfaultfd(flags) -> RemoteFd;
}
