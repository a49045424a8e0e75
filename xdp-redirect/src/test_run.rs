//! `BPF_PROG_TEST_RUN` with live frames: the kernel makes frames, and a program sends them.

use std::io;

/// `BPF_PROG_TEST_RUN` and `BPF_F_TEST_XDP_LIVE_FRAMES` (`linux/bpf.h`).
const PROG_TEST_RUN: libc::c_int = 10;
const LIVE_FRAMES: u32 = 2;

/// `union bpf_attr` for `BPF_PROG_TEST_RUN` (`linux/bpf.h`).
#[derive(Default)]
#[repr(C)]
pub(crate) struct TestRun {
    pub prog_fd: u32,
    pub retval: u32,
    pub data_size_in: u32,
    pub data_size_out: u32,
    pub data_in: u64,
    pub data_out: u64,
    pub repeat: u32,
    pub duration: u32,
    pub ctx_size_in: u32,
    pub ctx_size_out: u32,
    pub ctx_in: u64,
    pub ctx_out: u64,
    pub flags: u32,
    pub cpu: u32,
    pub batch_size: u32,
    pub padding: u32,
}
const _: () = assert!(size_of::<TestRun>() == 80);

impl TestRun {
    /// Makes the call with live frames.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Safety
    /// `data_in` and `ctx_in` point at as many bytes as are said, through the call, which reads them;
    /// there is nothing for it to write to.
    pub(crate) unsafe fn with_live_frames(mut self) -> io::Result<()> {
        self.flags = LIVE_FRAMES;
        // SAFETY: the kernel's structure for this command, of the size passed; what it points to is
        // the caller's to answer for.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw const self, size_of::<Self>())
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
