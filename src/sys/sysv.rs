//! System V shared memory, semaphores and message queues of the calling thread's ipc namespace.

use crate::error::{Context, Result};
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};

/// `struct ipc_perm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    /// The key it is found by; 0 (IPC_PRIVATE) for none.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Who made it.
    pub cuid: u32,
    /// The maker's group.
    pub cgid: u32,
    /// Permission bits; for segments also SHM_DEST and SHM_LOCKED.
    pub mode: u32,
}

/// The segment goes away with its last user.
pub const SHM_DEST: u32 = 0o1000;
/// Its pages stay in memory.
pub const SHM_LOCKED: u32 = 0o2000;

impl From<libc::ipc_perm> for Permissions {
    fn from(p: libc::ipc_perm) -> Self {
        Self {
            key: p.__key,
            uid: p.uid,
            gid: p.gid,
            cuid: p.cuid,
            cgid: p.cgid,
            mode: u32::from(p.mode),
        }
    }
}

fn owner_of(permissions: &Permissions, into: &mut libc::ipc_perm) {
    into.uid = permissions.uid;
    into.gid = permissions.gid;
    into.mode = permissions.mode as _;
}

/// Runs `work` with another effective user and group, on this thread alone: what it makes is made
/// by them.
pub fn as_user<T>(uid: u32, gid: u32, work: impl FnOnce() -> Result<T>) -> Result<T> {
    const KEEP: libc::uid_t = u32::MAX;
    // SAFETY: no pointers; the raw calls, unlike libc's, change the calling thread only.
    let set = |uid: u32, gid: u32, group_first: bool| -> Result<()> {
        let groups = || unsafe { libc::syscall(libc::SYS_setresgid, KEEP, gid, KEEP) };
        // SAFETY: as above.
        let users = || unsafe { libc::syscall(libc::SYS_setresuid, KEEP, uid, KEEP) };
        if group_first {
            Errno::result(groups())?;
            Errno::result(users())?;
        } else {
            Errno::result(users())?;
            Errno::result(groups())?;
        }
        Ok(())
    };
    let before = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    if before == (uid, gid) {
        return work();
    }
    set(uid, gid, true).doing(|| format!("acting as user {uid}, group {gid}"))?;
    let result = work();
    // The right to change the group comes back with the user.
    let back = set(before.0, before.1, false).doing(|| "acting as oneself again");
    match result {
        Ok(value) => back.map(|()| value),
        Err(error) => Err(error.and_cleanup(back)),
    }
}

/// What the kernel says of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentState {
    /// Owner, key, permissions.
    pub permissions: Permissions,
    /// Bytes.
    pub size: u64,
    /// How often it is attached.
    pub attached: u64,
}

/// shmctl(IPC_STAT)
pub fn segment(id: i32) -> Result<SegmentState> {
    // SAFETY: the kernel fills the structure, which is plain numbers.
    let state: libc::shmid_ds = unsafe {
        let mut state = std::mem::zeroed();
        Errno::result(libc::shmctl(id, libc::IPC_STAT, &raw mut state))?;
        state
    };
    Ok(SegmentState {
        permissions: state.shm_perm.into(),
        size: state.shm_segsz as u64,
        attached: state.shm_nattch as u64,
    })
}

/// shmget(IPC_CREAT | IPC_EXCL); returns its id.
pub fn new_segment(key: i32, size: u64, mode: u32) -> Result<i32> {
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | mode as i32;
    // SAFETY: no pointers.
    Ok(Errno::result(unsafe { libc::shmget(key, size, flags) })?)
}

/// shmctl(IPC_SET): owner and permission bits.
pub fn set_segment(id: i32, permissions: &Permissions) -> Result<()> {
    // SAFETY: the kernel reads owner and mode of the structure, which is plain numbers.
    unsafe {
        let mut state: libc::shmid_ds = std::mem::zeroed();
        owner_of(permissions, &mut state.shm_perm);
        Errno::result(libc::shmctl(id, libc::IPC_SET, &raw mut state))?;
    }
    Ok(())
}

/// shmctl(SHM_LOCK)
pub fn lock_segment(id: i32) -> Result<()> {
    // SAFETY: this command takes no pointer.
    Errno::result(unsafe { libc::shmctl(id, libc::SHM_LOCK, std::ptr::null_mut()) })?;
    Ok(())
}

/// shmctl(IPC_RMID)
pub fn remove_segment(id: i32) -> Result<()> {
    // SAFETY: this command takes no pointer.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) })?;
    Ok(())
}

/// The file behind a segment, by attaching it for a moment (which sets its attach and detach time and
/// its last user). Bytes beyond its size, up to the end of the page, are not in it.
pub fn open_segment(id: i32, writable: bool) -> Result<File> {
    let flags = if writable { 0 } else { libc::SHM_RDONLY };
    // SAFETY: a new mapping at an address of the kernel's choice, that nobody here looks at.
    let address = unsafe { libc::shmat(id, std::ptr::null(), flags) };
    if address.addr() == usize::MAX {
        return Err(Errno::last()).doing(|| format!("attaching segment {id}"));
    }
    let opened = open_mapping(address.addr() as u64, writable);
    // SAFETY: the mapping that was made above, of which no reference exists.
    let detached = Errno::result(unsafe { libc::shmdt(address) });
    let file = opened?;
    detached.doing(|| format!("detaching segment {id}"))?;
    Ok(file)
}

/// Opens what this process has mapped at `start`.
fn open_mapping(start: u64, writable: bool) -> Result<File> {
    const DIRECTORY: &str = "/proc/self/map_files";
    let prefix = format!("{start:x}-");
    for entry in std::fs::read_dir(DIRECTORY).doing(|| format!("reading {DIRECTORY}"))? {
        let entry = entry.doing(|| format!("reading {DIRECTORY}"))?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            return OpenOptions::new()
                .read(true)
                .write(writable)
                .open(entry.path())
                .doing(|| format!("opening {}", entry.path().display()));
        }
    }
    Err(Errno::ENOENT).doing(|| format!("looking for {start:x} in {DIRECTORY}"))
}

/// Bytes of a page.
const PAGE: usize = 4096;

/// What lies behind the last byte of such a file in its last page: read(2) does not show it, but
/// whoever has mapped the file does see it.
pub fn read_tail(file: &File, size: u64) -> Result<Vec<u8>> {
    with_last_page(file, size, false, |page, at| page[at..].to_vec())
}

/// Writes it.
pub fn write_tail(file: &File, size: u64, tail: &[u8]) -> Result<()> {
    with_last_page(file, size, true, |page, at| {
        let room = &mut page[at..];
        let length = room.len().min(tail.len());
        room[..length].copy_from_slice(&tail[..length]);
    })
}

fn with_last_page<T>(
    file: &File,
    size: u64,
    writable: bool,
    work: impl FnOnce(&mut [u8], usize) -> T,
) -> Result<T> {
    let at = (size % PAGE as u64) as usize;
    let start = size - at as u64;
    let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
    let mut page = [0; PAGE];
    // SAFETY: one page of a file that reaches into that page, mapped, copied from or to, unmapped;
    // no reference to it is made, since others may write to it.
    unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            protection,
            libc::MAP_SHARED,
            file.as_fd().as_raw_fd(),
            start as libc::off_t,
        );
        if address == libc::MAP_FAILED {
            return Err(Errno::last()).doing(|| "mapping the last page of a segment");
        }
        std::ptr::copy_nonoverlapping(address.cast(), page.as_mut_ptr(), PAGE);
        let result = work(&mut page, at);
        if writable {
            let tail = address.cast::<u8>().add(at);
            std::ptr::copy_nonoverlapping(page[at..].as_ptr(), tail, PAGE - at);
        }
        libc::munmap(address, PAGE);
        Ok(result)
    }
}

/// semctl(IPC_STAT) and semctl(GETALL): permissions and values.
pub fn semaphores(id: i32) -> Result<(Permissions, Vec<u16>)> {
    // SAFETY: the kernel fills the structure, and then as many values as that says the set has: a
    // set never changes its length.
    unsafe {
        let mut state: libc::semid_ds = std::mem::zeroed();
        Errno::result(libc::semctl(id, 0, libc::IPC_STAT, &raw mut state))?;
        let mut values = vec![0_u16; state.sem_nsems as usize];
        Errno::result(libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()))?;
        Ok((state.sem_perm.into(), values))
    }
}

/// semget(IPC_CREAT | IPC_EXCL); returns the id.
pub fn new_semaphores(key: i32, count: usize, mode: u32) -> Result<i32> {
    let count = i32::try_from(count).map_err(|_| Errno::EINVAL)?;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | mode as i32;
    // SAFETY: no pointers.
    Ok(Errno::result(unsafe { libc::semget(key, count, flags) })?)
}

/// semctl(SETALL) and semctl(IPC_SET) on a set that [`new_semaphores`] made with as many values.
pub fn set_semaphores(id: i32, permissions: &Permissions, values: &[u16]) -> Result<()> {
    let count = semaphores(id)?.1.len();
    if count != values.len() {
        return Err(Errno::EINVAL.into());
    }
    // SAFETY: the kernel reads as many values as the set has, then owner and mode of the structure.
    unsafe {
        Errno::result(libc::semctl(id, 0, libc::SETALL, values.as_ptr()))?;
        let mut state: libc::semid_ds = std::mem::zeroed();
        owner_of(permissions, &mut state.sem_perm);
        Errno::result(libc::semctl(id, 0, libc::IPC_SET, &raw mut state))?;
    }
    Ok(())
}

/// What the kernel says of a message queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Owner, key, permissions.
    pub permissions: Permissions,
    /// Bytes in it.
    pub bytes: u64,
    /// Messages in it.
    pub messages: u64,
    /// Bytes that it may hold.
    pub limit: u64,
}

/// msgctl(IPC_STAT)
pub fn queue(id: i32) -> Result<QueueState> {
    // SAFETY: the kernel fills the structure, which is plain numbers.
    let state: libc::msqid_ds = unsafe {
        let mut state = std::mem::zeroed();
        Errno::result(libc::msgctl(id, libc::IPC_STAT, &raw mut state))?;
        state
    };
    Ok(QueueState {
        permissions: state.msg_perm.into(),
        bytes: state.__msg_cbytes as u64,
        messages: state.msg_qnum as u64,
        limit: state.msg_qbytes as u64,
    })
}

/// The message at place `index` with its type, without taking it (MSG_COPY); none behind the last.
/// `most` is at least its length.
pub fn peek(id: i32, index: u64, most: usize) -> Result<Option<(i64, Vec<u8>)>> {
    const HEAD: usize = size_of::<libc::c_long>();
    let mut buffer = vec![0_u8; HEAD + most];
    // SAFETY: the kernel writes the type and at most `most` bytes.
    let got = Errno::result(unsafe {
        libc::msgrcv(
            id,
            buffer.as_mut_ptr().cast(),
            most,
            index as libc::c_long,
            libc::MSG_COPY | libc::IPC_NOWAIT,
        )
    });
    let length = match got {
        Ok(length) => length as usize,
        Err(Errno::ENOMSG) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let (head, text) = buffer.split_at(HEAD);
    let kind = i64::from_ne_bytes(head.try_into().map_err(|_| Errno::EINVAL)?);
    Ok(Some((kind, text[..length].to_vec())))
}

/// msgget(IPC_CREAT | IPC_EXCL); returns the id.
pub fn new_queue(key: i32, mode: u32) -> Result<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | mode as i32;
    // SAFETY: no pointers.
    Ok(Errno::result(unsafe { libc::msgget(key, flags) })?)
}

/// msgsnd(2), without waiting for room.
pub fn send(id: i32, kind: i64, text: &[u8]) -> Result<()> {
    let mut buffer = kind.to_ne_bytes().to_vec();
    buffer.extend(text);
    // SAFETY: the kernel reads the type and as many bytes as follow it.
    Errno::result(unsafe {
        libc::msgsnd(id, buffer.as_ptr().cast(), text.len(), libc::IPC_NOWAIT)
    })?;
    Ok(())
}

/// msgctl(IPC_SET): owner, permission bits, limit. Beyond kernel.msgmnb that takes CAP_SYS_RESOURCE.
pub fn set_queue(id: i32, permissions: &Permissions, limit: u64) -> Result<()> {
    // SAFETY: the kernel reads owner, mode and limit of the structure, which is plain numbers.
    unsafe {
        let mut state: libc::msqid_ds = std::mem::zeroed();
        owner_of(permissions, &mut state.msg_perm);
        state.msg_qbytes = limit as _;
        Errno::result(libc::msgctl(id, libc::IPC_SET, &raw mut state))?;
    }
    Ok(())
}

/// For tests.
#[cfg(test)]
pub mod testing {
    use super::*;

    /// A segment that this process has attached until it is dropped.
    #[derive(Debug)]
    pub struct Attached(usize);

    impl Attached {
        /// Attaches it.
        pub fn new(id: i32) -> Result<Self> {
            // SAFETY: a new mapping that nobody looks at.
            let address = unsafe { libc::shmat(id, std::ptr::null(), 0) };
            assert_ne!(address.addr(), usize::MAX, "{}", Errno::last());
            Ok(Self(address.expose_provenance()))
        }
    }

    impl Drop for Attached {
        fn drop(&mut self) {
            // SAFETY: the mapping made above, of which no reference exists.
            unsafe { libc::shmdt(std::ptr::with_exposed_provenance(self.0)) };
        }
    }

    /// For `setup` of a [`sleeper`](crate::sys::testing::sleeper): enters the ipc namespace behind
    /// descriptor `fd` and moves the first semaphores of set `id`, to be undone at its end. 0 on
    /// success.
    pub fn undoing(fd: i32, id: i32, moves: &[i16]) -> i32 {
        // SAFETY: no pointers.
        let mut result = unsafe { libc::setns(fd, libc::CLONE_NEWIPC) };
        for (number, &by) in moves.iter().enumerate().filter(|(_, by)| **by != 0) {
            let mut operation = libc::sembuf {
                sem_num: number as u16,
                sem_op: by,
                sem_flg: libc::SEM_UNDO as i16,
            };
            // SAFETY: the kernel reads one structure.
            result |= unsafe { libc::semop(id, &raw mut operation, 1) };
        }
        result
    }
}
