//! Binding a socket so that nobody meets it half made (R13).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::os::socket;

/// A bound and listening socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    folder: OwnedFd,
    path: PathBuf,
    inode: u64,
}

/// Held while the umask is off.
static BINDING: Mutex<()> = Mutex::new(());

/// Connections that may wait for a thread.
const BACKLOG: i32 = 128;

impl Listener {
    /// Binds under a temporary name with its final mode, then renames it into place. The folder
    /// should be one that only this daemon can write. A stale socket there is replaced; anything
    /// else is an error, and nothing is deleted (A87).
    ///
    /// # Errors
    /// `AlreadyExists` for a foreign object at the path; else as the kernel says.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        let bad = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "a socket path needs a file name",
            )
        };
        let parent = path.parent().ok_or_else(bad)?;
        let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(bad)?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
        let folder = rustix::fs::open(parent, flags, Mode::empty())?;
        if let Ok(old) = std::fs::symlink_metadata(path)
            && !old.file_type().is_socket()
        {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} is there and is not a socket", path.display()),
            ));
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        socket::pass_credentials(&socket)?;
        // Older kernels let them come; they are disarmed and closed as they do.
        let _ = socket::refuse_descriptors(&socket);
        // The file takes its mode from the socket's own, less the umask, which is the whole
        // process's: one at a time. Files are made with modes of their own and do not need it.
        // Through the descriptor no path is too long for a socket address.
        let temporary = format!(".{name}.new");
        let _ = rustix::fs::unlinkat(&folder, &temporary, rustix::fs::AtFlags::empty());
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))?;
        let through = format!("/proc/self/fd/{}/{temporary}", raw(&folder));
        let address = SocketAddrUnix::new(through.as_str())?;
        let bound = {
            let _one = BINDING.lock().unwrap_or_else(PoisonError::into_inner);
            let umask = rustix::process::umask(Mode::empty());
            let bound = rustix::net::bind(&socket, &address);
            rustix::process::umask(umask);
            bound
        };
        bound?;
        rustix::net::listen(&socket, BACKLOG)?;
        rustix::fs::renameat(&folder, &temporary, &folder, name)?;
        let inode = rustix::fs::statat(&folder, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Self {
            socket,
            folder,
            path: path.to_owned(),
            inode: inode.st_ino,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn raw(fd: &OwnedFd) -> i32 {
    use std::os::fd::AsRawFd as _;
    fd.as_raw_fd()
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(name) = self.path.file_name() else {
            return;
        };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        // Only our own socket: a successor may already listen under this name.
        if rustix::fs::statat(&self.folder, name, flags).is_ok_and(|s| s.st_ino == self.inode) {
            let _ = rustix::fs::unlinkat(&self.folder, name, rustix::fs::AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("hf-listener-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_socket_appears_with_its_final_mode_and_goes_with_its_listener() {
        let folder = folder("mode");
        let path = folder.join("a.sock");
        let first = Listener::bind(&path, 0o660).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let second = Listener::bind(&path, 0o666).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
        drop(second);
        assert!(!path.exists());
        std::fs::remove_dir(folder).unwrap();
    }

    #[test]
    fn a87_a_foreign_object_at_the_path_is_an_error_and_stays() {
        let folder = folder("foreign");
        let path = folder.join("a.sock");
        std::fs::create_dir(&path).unwrap();
        assert!(Listener::bind(&path, 0o660).is_err());
        std::fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(Listener::bind(&path, 0o660).is_err());
        assert!(path.is_symlink());
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_dir(folder).unwrap();
    }

    #[test]
    fn a_path_longer_than_a_socket_address_is_reached_through_its_folder() {
        let top = folder("long");
        let deep = top.join("d".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let listener = Listener::bind(&deep.join("a.sock"), 0o600).unwrap();
        assert!(deep.join("a.sock").exists());
        drop(listener);
        std::fs::remove_dir(deep).unwrap();
        std::fs::remove_dir(top).unwrap();
    }
}
