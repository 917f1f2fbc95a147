//! The one place where the test program steps outside of safe Rust: system calls as values, and
//! memory at addresses that it chose itself.

use nix::errno::Errno;
use std::io;

/// A libc call as a value: `call!(libc::getpid())`, an errno where it returns -1.
macro_rules! call {
    ($call:expr) => {{
        // SAFETY: every pointer that the test program hands to the kernel is to something that
        // lives across the call; the kernel checks the rest.
        #[allow(unused_unsafe, reason = "some calls are safe in libc")]
        let result = unsafe { $call };
        if result == -1 {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(result)
        }
    }};
}
pub(crate) use call;

/// fork(2), called while there is a single thread.
pub fn fork() -> io::Result<i32> {
    call!(libc::fork())
}

/// The errno of an error of [`call!`].
pub fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// An area of memory that stays mapped as long as the program runs.
#[derive(Clone, Copy)]
pub struct Area {
    /// Where it begins.
    pub start: usize,
    /// Its length in bytes.
    pub len: usize,
}

/// The size of a page.
pub const PAGE: usize = 4096;

impl Area {
    /// mmap(2) of `len` bytes; `fd` -1 for anonymous memory.
    pub fn map(len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> io::Result<Self> {
        // SAFETY: the kernel chooses the place; nothing that exists is replaced.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start as usize,
            len,
        })
    }

    /// Anonymous private memory, readable and writable.
    pub fn private(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        Self::map(len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    }

    /// Anonymous memory exactly here, whatever was here before.
    pub fn map_here(self, prot: i32, flags: i32) -> io::Result<Self> {
        // SAFETY: the caller owns the addresses and has nothing there any more.
        let start = unsafe { libc::mmap(self.pointer(), self.len, prot, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(self)
    }

    /// shmat(2) of a segment of so many pages.
    pub fn attach(id: i32, pages: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses the place; nothing that exists is replaced.
        let start = unsafe { libc::shmat(id, std::ptr::null(), 0) } as usize;
        if start == usize::MAX {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start,
            len: pages * PAGE,
        })
    }

    /// shmdt(2).
    pub fn detach(self) -> io::Result<()> {
        call!(libc::shmdt(self.pointer())).map(drop)
    }

    /// Its address for the kernel.
    pub fn pointer(self) -> *mut libc::c_void {
        self.start as *mut libc::c_void
    }

    /// The part from `page` on, `pages` long.
    pub fn pages(self, page: usize, pages: usize) -> Self {
        assert!((page + pages) * PAGE <= self.len);
        Self {
            start: self.start + page * PAGE,
            len: pages * PAGE,
        }
    }

    /// mprotect(2).
    pub fn protect(self, prot: i32) -> io::Result<()> {
        call!(libc::mprotect(self.pointer(), self.len, prot)).map(drop)
    }

    /// madvise(2).
    pub fn advise(self, advice: i32) -> io::Result<()> {
        call!(libc::madvise(self.pointer(), self.len, advice)).map(drop)
    }

    /// The word at `index`, read for real.
    pub fn get(self, index: usize) -> u64 {
        assert!((index + 1) * 8 <= self.len);
        // SAFETY: inside of an area that stays mapped; callers made it readable.
        unsafe { (self.start as *const u64).add(index).read_volatile() }
    }

    /// Sets the word at `index`.
    pub fn set(self, index: usize, value: u64) {
        assert!((index + 1) * 8 <= self.len);
        // SAFETY: inside of an area that stays mapped; callers made it writable.
        unsafe { (self.start as *mut u64).add(index).write_volatile(value) }
    }

    /// Writes zeros to all of it.
    pub fn clear(self) {
        for index in 0..self.len / 8 {
            self.set(index, 0);
        }
    }

    /// Writes `mov eax, value; ret` to its beginning.
    pub fn write_function_returning(self, value: u32) {
        let value = u64::from(value);
        self.set(0, 0xc3 << 40 | value << 8 | 0xb8);
    }

    /// Calls what [`Area::write_function_returning`] wrote.
    pub fn call_function(self) -> u32 {
        // SAFETY: the area holds that function, and callers made it executable.
        let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(self.start) };
        function()
    }

    /// Fills it with what [`Area::check`] expects for the same `seed`.
    pub fn fill(self, seed: u64) {
        for index in 0..self.len / 8 {
            self.set(index, word(seed, index));
        }
    }

    /// Whether it holds what [`Area::fill`] wrote.
    pub fn check(self, what: &str, seed: u64) -> Result<(), String> {
        self.check_with(what, |index| word(seed, index))
    }

    /// Whether it holds nothing but zeros.
    pub fn check_zero(self, what: &str) -> Result<(), String> {
        self.check_with(what, |_| 0)
    }

    fn check_with(self, what: &str, expected: impl Fn(usize) -> u64) -> Result<(), String> {
        for index in 0..self.len / 8 {
            let (found, expected) = (self.get(index), expected(index));
            if found != expected {
                let address = self.start + index * 8;
                return Err(format!(
                    "{what}: {found:#x} at {address:#x}, not {expected:#x}"
                ));
            }
        }
        Ok(())
    }
}

/// The word number `index` of the pattern `seed`; never 0.
pub fn word(seed: u64, index: usize) -> u64 {
    let mixed = (seed << 32 ^ index as u64).wrapping_add(1);
    let mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29) | 1
}

/// What lies beside a thread's own data.
pub mod thread_words {
    unsafe extern "C" {
        /// Where glibc put the rseq area, relative to the thread pointer.
        static __rseq_offset: isize;
    }

    /// The number of the processor that this thread's rseq area shows.
    pub fn rseq_cpu() -> u32 {
        let thread_pointer: usize;
        // SAFETY: on x86-64 the word at %fs:0 is the thread pointer; the rseq area at the
        // offset that glibc tells is as long-lived as the thread; cpu_id is its second word.
        unsafe {
            std::arch::asm!("mov {}, fs:0", out(reg) thread_pointer, options(nostack, readonly));
            let area = thread_pointer.wrapping_add_signed(__rseq_offset) as *const u32;
            area.add(1).read_volatile()
        }
    }
}

/// A seccomp filter that refuses one call.
pub struct BpfFilter([libc::sock_filter; 4]);

impl BpfFilter {
    /// One that refuses the call `number` with `errno`.
    pub fn refusing(number: i64, errno: i32) -> Self {
        let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        };
        let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let give = libc::BPF_RET | libc::BPF_K;
        Self([
            step(load, 0, 0, 0),
            step(equal, 0, 1, number as u32),
            step(give, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
            step(give, 0, 0, libc::SECCOMP_RET_ALLOW),
        ])
    }

    /// Puts it on this thread.
    pub fn install(mut self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: self.0.len() as u16,
            filter: self.0.as_mut_ptr(),
        };
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        call!(libc::syscall(libc::SYS_seccomp, mode, 0, &program)).map(drop)
    }
}

/// Goes `depth` calls down, runs `inside` there, and on the way up looks whether every frame still
/// holds what was put there.
pub fn deep_stack(depth: u64, seed: u64, inside: &mut dyn FnMut()) -> Result<(), String> {
    let mut frame = [0_u64; 256];
    for (index, place) in frame.iter_mut().enumerate() {
        *place = word(seed * 1000 + depth, index);
    }
    let frame = std::hint::black_box(&mut frame);
    match depth {
        0 => inside(),
        _ => deep_stack(depth - 1, seed, inside)?,
    }
    let good = |(index, found): (usize, &u64)| *found == word(seed * 1000 + depth, index);
    if frame.iter().enumerate().all(good) {
        Ok(())
    } else {
        Err(format!("the frame at depth {depth} changed"))
    }
}

/// Moves the break and returns where it was before.
pub fn move_break(bytes: isize) -> io::Result<usize> {
    // SAFETY: glibc's allocator copes with others that move the break.
    let before = unsafe { libc::sbrk(bytes) } as usize;
    if before == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    Ok(before)
}

/// The value that came with a queued signal or a timer's.
pub fn signal_value(info: &libc::siginfo_t) -> usize {
    // SAFETY: a plain word at a fixed place; other kinds of signals hold something else there.
    unsafe { info.si_value().sival_ptr as usize }
}

/// Registers that hold known values across a sleep, and are looked at afterwards.
pub mod registers {
    use super::word;
    use std::arch::asm;

    #[repr(align(64))]
    struct Table([u64; 256]);

    fn table(seed: u64) -> Table {
        Table(std::array::from_fn(|index| word(seed, index)))
    }

    fn wait(milliseconds: i64) -> libc::timespec {
        libc::timespec {
            tv_sec: 0,
            tv_nsec: milliseconds * 1_000_000,
        }
    }

    /// Fills all vector registers that the processor has, sleeps, and says whether they are the same.
    pub fn keep_vectors(seed: u64, milliseconds: i64) -> bool {
        let before = table(seed);
        let mut after = Table([0; 256]);
        let wait = wait(milliseconds);
        let words = if is_x86_feature_detected!("avx512f") {
            // SAFETY: both tables are as long as 32 registers of 64 bytes; the call changes
            // nothing but rax, rcx and r11; everything touched is declared.
            unsafe { avx512(&before, &mut after, &wait) };
            256
        } else if is_x86_feature_detected!("avx") {
            // SAFETY: as above, with 16 registers of 32 bytes.
            unsafe { avx(&before, &mut after, &wait) };
            64
        } else {
            // SAFETY: as above, with 16 registers of 16 bytes, which every x86-64 has.
            unsafe { sse(&before, &mut after, &wait) };
            32
        };
        before.0[..words] == after.0[..words]
    }

    macro_rules! across_a_sleep {
        ($name:ident, $feature:literal, $move:literal, $register:literal, $size:literal,
         [$($number:literal)*], $($out:tt)*) => {
            #[target_feature(enable = $feature)]
            unsafe fn $name(before: &Table, after: &mut Table, wait: &libc::timespec) {
                // SAFETY: the caller's promise.
                unsafe {
                    asm!(
                        $(concat!($move, " ", $register, $number, ", [r12 + ", $number, " * ", $size, "]"),)*
                        "mov eax, 35",
                        "xor esi, esi",
                        "syscall",
                        $(concat!($move, " [r13 + ", $number, " * ", $size, "], ", $register, $number),)*
                        in("r12") before.0.as_ptr(),
                        in("r13") after.0.as_mut_ptr(),
                        in("rdi") wait,
                        out("rax") _, out("rcx") _, out("rsi") _, out("r11") _,
                        $($out)*
                    );
                }
            }
        };
    }

    across_a_sleep!(
        sse, "sse2", "movups", "xmm", 16, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15],
        out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
        out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
        out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
    );
    across_a_sleep!(
        avx, "avx", "vmovups", "ymm", 32, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15],
        out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
        out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
        out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
    );
    across_a_sleep!(
        avx512, "avx512f", "vmovups", "zmm", 64,
        [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31],
        out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
        out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
        out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _,
        out("zmm17") _, out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _,
        out("zmm22") _, out("zmm23") _, out("zmm24") _, out("zmm25") _, out("zmm26") _,
        out("zmm27") _, out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
    );

    /// Sets the rounding modes of SSE and x87 and the x87 stack, sleeps, and says whether all is the same.
    pub fn keep_controls(seed: u64, milliseconds: i64) -> bool {
        // Rounding mode, and some exceptions' flags raised.
        let mxcsr = 0x1f80_u32 | (seed as u32 % 4) << 13 | (seed as u32 % 7);
        let control = 0x037f_u16 ^ ((seed as u16 % 4) << 10);
        let mut found = (0_u32, 0_u16);
        let values = [word(seed, 0) as i64 >> 12, word(seed, 1) as i64 >> 12];
        let mut stack = [0_i64; 2];
        let (usual_mxcsr, usual_control) = (0x1f80_u32, 0x037f_u16);
        let wait = wait(milliseconds);
        // SAFETY: the usual control words are loaded again before compiled code goes on; the x87 stack
        // is as empty as before; the call changes nothing but rax, rcx and r11.
        unsafe {
            asm!(
                "ldmxcsr [{mxcsr}]",
                "fldcw [{control}]",
                "fild qword ptr [{values}]",
                "fild qword ptr [{values} + 8]",
                "mov eax, 35",
                "xor esi, esi",
                "syscall",
                "stmxcsr [{found_mxcsr}]",
                "fnstcw [{found_control}]",
                "fistp qword ptr [{stack} + 8]",
                "fistp qword ptr [{stack}]",
                "ldmxcsr [{usual_mxcsr}]",
                "fldcw [{usual_control}]",
                mxcsr = in(reg) &mxcsr,
                control = in(reg) &control,
                values = in(reg) values.as_ptr(),
                stack = in(reg) stack.as_mut_ptr(),
                found_mxcsr = in(reg) &mut found.0,
                found_control = in(reg) &mut found.1,
                usual_mxcsr = in(reg) &usual_mxcsr,
                usual_control = in(reg) &usual_control,
                in("rdi") &wait,
                out("rax") _, out("rcx") _, out("rsi") _, out("r11") _,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            );
        }
        found == (mxcsr, control) && stack == values
    }
}
