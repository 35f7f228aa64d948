//! A kernel of 2021 on a newer one: without process descriptors of peers and facts by them (R1).
#![expect(unsafe_code, reason = "a system-call filter is laid on by prctl")]

use std::io;

const SO_PASSPIDFD: u32 = 76;
const SO_PEERPIDFD: u32 = 77;
/// Part of every process-descriptor question: `_IOWR(0xFF, 11, 64 bytes)`.
const PIDFD_GET_INFO: u32 = 0xC040_FF0B;

/// From now on this process, and whatever it becomes, meets the answers of an older kernel:
/// `ENOPROTOOPT` for the two socket options, `ENOTTY` for the ioctl.
///
/// # Errors
/// As the system says.
pub fn forget_process_descriptors() -> io::Result<()> {
    // Offsets in `struct seccomp_data`: the call's number, then from 16 its arguments, 8 bytes
    // each, lower half first on every machine we build for.
    const NUMBER: u32 = 0;
    const SECOND: u32 = 24;
    const THIRD: u32 = 32;
    let load = |offset| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    let equal = |value, yes, no| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no);
    let answer = |value| step(libc::BPF_RET | libc::BPF_K, value, 0, 0);
    let error = |errno: i32| libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
    let call = |number: libc::c_long| u32::try_from(number).unwrap_or(u32::MAX);
    let mut program = [
        load(NUMBER),
        equal(call(libc::SYS_getsockopt), 3, 0),
        equal(call(libc::SYS_setsockopt), 2, 0),
        equal(call(libc::SYS_ioctl), 6, 0),
        answer(libc::SECCOMP_RET_ALLOW),
        // Either socket option; nobody asks for these numbers at another level.
        load(THIRD),
        equal(SO_PEERPIDFD, 1, 0),
        equal(SO_PASSPIDFD, 0, 1),
        answer(error(libc::ENOPROTOOPT)),
        answer(libc::SECCOMP_RET_ALLOW),
        load(SECOND),
        equal(PIDFD_GET_INFO, 0, 1),
        answer(error(libc::ENOTTY)),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: prctl with a plain number changes this process only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `filter` points at `program`, with its true length; the kernel copies it.
    let laid = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const filter,
        )
    };
    if laid == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    let code = u16::try_from(code).unwrap_or(u16::MAX);
    libc::sock_filter { code, jt, jf, k }
}
