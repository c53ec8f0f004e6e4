"""The steps of the cases: system calls by name, with results that can be compared (an errno is one).

Runs in a process of its own (``runner``), as root, which takes on other users' rights in between.  Results hold
nothing that two filesystems may rightly do differently: inode numbers, sizes of directories, absolute times.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import stat
import time
from collections.abc import Iterator
from typing import Any

from tests.posix.cases import Case, Step
from tests.posix.file_steps import call, content
from tests.posix.flag_steps import FlagSteps
from tests.posix.range_steps import RangeSteps

LOOKS = frozenset((
    "stat", "lstat", "readlink", "names", "content", "sparse", "blocks", "moved", "statvfs", "tree", "order",
    "flags", "project",
))  # fmt: skip
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_EACCESS, AT_EMPTY_PATH = -100, 0x100, 0x200, 0x1000
CLONE_NEWNS = 0x20000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
SLACK_NS = 2 * 10**9  # how far a new time may be from now
PAST_NS = 10**18  # September 2001


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("ns", ctypes.c_long)]


def described(found: os.stat_result) -> dict[str, object]:
    """The attributes that are the same everywhere."""
    kind = stat.S_IFMT(found.st_mode)
    told: dict[str, object] = {
        "mode": oct(found.st_mode), "nlink": found.st_nlink, "uid": found.st_uid, "gid": found.st_gid,
    }  # fmt: skip
    if kind in (stat.S_IFREG, stat.S_IFLNK):
        told["size"] = found.st_size
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        told["rdev"] = found.st_rdev
    return told


def times(found: os.stat_result) -> dict[str, int]:
    return {"a": found.st_atime_ns, "m": found.st_mtime_ns, "c": found.st_ctime_ns}


class Steps(FlagSteps, RangeSteps):
    """One case's steps on the directories that are the same one on several mounts.

    Args:
        directories: descriptors of the case's directory, one for each mount.
        mount: where changes are done.
        across: looks are done on the other mounts, each step so asking whether the nodes agree; else where changes are.
    """

    _private = False  # whether this process has mounts of its own

    def __init__(self, directories: list[int], mount: int, *, across: bool) -> None:
        self._directories = directories
        self._across = across and len(directories) > 1
        self._mount = self._at = mount
        self._looked = mount
        self._user: tuple[int, int, tuple[int, ...]] = (0, 0, ())
        super().__init__()
        self.sockets: list[socket.socket] = []
        self._marks: dict[str, dict[str, int]] = {}
        self._bound = b""

    # ---- the driver ----

    def run(self, case: Case) -> list[object]:
        """The case's results, one for each step."""
        results: list[object] = []
        os.umask(0)
        try:
            for step in case.steps:
                results.append(self._one(step))
        finally:
            self._end()
        return results

    def _one(self, step: Step) -> object:
        name, *arguments = step
        if name in LOOKS and self._across:
            self._looked = (self._looked + 1) % len(self._directories)
            if self._looked == self._mount:
                self._looked = (self._looked + 1) % len(self._directories)
            self._go(self._looked)
        else:
            self._go(self._mount)
        try:
            return getattr(self, name)(*arguments)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
        except ValueError as error:  # Python saw by itself that it can't be
            return str(error)

    def _go(self, mount: int) -> None:
        if self._at != mount:
            with self._as_root():
                os.fchdir(self._directories[mount])
            self._at = mount

    @contextlib.contextmanager
    def _as_root(self) -> Iterator[None]:
        user = self._user
        if user[0]:
            self.become(0, 0, ())
        yield
        if user[0]:
            self.become(*user)

    def _end(self) -> None:
        self.become(0, 0, ())
        self.unkeep_all()
        for opened in self.files.values():
            with contextlib.suppress(OSError):
                os.close(opened)
        for each in self.sockets:
            each.close()
        for mapped in self.maps.values():
            mapped.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.umask(0)
        if self._bound:
            call("umount2", self._bound, MNT_DETACH)

    def become(self, uid: int, gid: int, groups: tuple[int, ...]) -> None:
        """Take on a user's rights; root's are kept in reserve."""
        os.setresuid(0, 0, 0)
        os.setgroups(list(groups))
        os.setresgid(gid, gid, 0)
        os.setresuid(uid, uid, 0)
        self._user = (uid, gid, groups)

    def move_to(self, mount: int) -> None:
        """Do the next changes on another mount."""
        self._mount = mount % len(self._directories)

    def umask(self, mask: int) -> None:
        os.umask(mask)

    def limit_size(self, size: int) -> None:
        """RLIMIT_FSIZE; SIGXFSZ is ignored, so that EFBIG shows."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def repeat(self, count: int, step: Step) -> object:
        """A step ``count`` times, with its number in the path for "%d"; the first result that is not as the first."""
        results = []
        for number in range(count):
            numbered = [part % number if isinstance(part, str) and "%d" in part else part for part in step]
            results.append(self._one(tuple(numbered)))
            if results[-1] != results[0]:
                return number, results[-1]
        return results[0]

    def read_only(self) -> None:
        """Have the case's directory mounted read-only over itself, for this process."""
        if not self._private:
            call("unshare", CLONE_NEWNS)
            call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
            Steps._private = True
        here = os.fsencode(os.getcwd())
        call("mount", here, here, None, MS_BIND, None)
        call("mount", None, here, None, MS_BIND | MS_REMOUNT | MS_RDONLY, None)
        self._bound = here
        os.close(self._directories[self._mount])
        os.chdir(here)
        self._directories[self._mount] = os.open(here, os.O_RDONLY | os.O_DIRECTORY)

    def restore(self, made: tuple[Step, ...]) -> None:
        """Do again those steps whose path has gone."""
        for step in made:
            if not os.path.lexists(step[2] if step[0] == "symlink" else step[1]):
                self._one(step)

    # ---- names ----

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def mkfifo(self, path: str, mode: int) -> None:
        os.mkfifo(path, mode)

    def mknod(self, path: str, mode: int, device: int) -> None:
        os.mknod(path, mode, device)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)

    def link(self, old: str, new: str, *, follow: bool = False) -> None:
        os.link(old, new, follow_symlinks=follow)

    def link_file(self, key: str, new: str) -> None:
        """A name for an open file, by /proc."""
        os.link(f"/proc/self/fd/{self.files[key]}", new, follow_symlinks=True)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def renameat2(self, old: str, new: str, flags: int) -> None:
        call("renameat2", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)

    def bind(self, path: str) -> None:
        self.sockets.append(socket.socket(socket.AF_UNIX))
        self.sockets[-1].bind(path)
        self.sockets[-1].listen()

    def connect(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(path)

    def inside(self, key: str, step: Step) -> object:
        """A step with an open directory as the working directory."""
        name, *arguments = step
        os.fchdir(self.files[key])
        try:
            return getattr(self, name)(*arguments)
        finally:
            os.fchdir(self._directories[self._at])

    def fault_io(self, name: str, key: str, count: int) -> int:
        """read(2) or write(2) with a buffer that is nowhere."""
        return call(name, self.files[key], ctypes.c_void_p(1), ctypes.c_size_t(count))

    def efault(self, name: str, *arguments: Any) -> int:
        """A call of libc with None for a pointer to nowhere."""
        nowhere = ctypes.c_void_p(1)
        converted = [
            nowhere if each is None else os.fsencode(each) if isinstance(each, str) else each for each in arguments
        ]
        return call(name, *converted)

    # ---- attributes ----

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def fchmod(self, key: str, mode: int) -> None:
        os.fchmod(self.files[key], mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(path, uid, gid)

    def lchown(self, path: str, uid: int, gid: int) -> None:
        os.lchown(path, uid, gid)

    def fchown(self, key: str, uid: int, gid: int) -> None:
        os.fchown(self.files[key], uid, gid)

    def utimens(self, path: str, accessed: tuple[int, int], modified: tuple[int, int], *, follow: bool = True) -> None:
        """utimensat(2) with (seconds, nanoseconds), UTIME_NOW and UTIME_OMIT among them."""
        both = (Timespec * 2)(Timespec(*accessed), Timespec(*modified))
        call("utimensat", AT_FDCWD, os.fsencode(path), both, 0 if follow else AT_SYMLINK_NOFOLLOW)

    def utimes_of_link(self, path: str, accessed: tuple[int, int], modified: tuple[int, int]) -> None:
        self.utimens(path, accessed, modified, follow=False)

    def utime_now(self, path: str) -> None:
        """utimensat(2) without times."""
        call("utimensat", AT_FDCWD, os.fsencode(path), None, 0)

    def stat(self, path: str) -> object:
        return described(os.stat(path))

    def lstat(self, path: str) -> object:
        return described(os.lstat(path))

    def fstat(self, key: str) -> object:
        return described(os.fstat(self.files[key]))

    def stamps(self, path: str) -> object:
        """Access and modification time as they are: for times that a case has set."""
        found = os.lstat(path)
        return found.st_atime_ns, found.st_mtime_ns

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def names(self, path: str) -> object:
        return sorted(os.listdir(path))

    names_here = names  # the same on the mount of the changes
    readlink_here = readlink
    lstat_here = lstat

    def access(self, path: str, mode: int, flags: int = 0) -> None:
        """faccessat2(2), which is system call 439 everywhere."""
        call("syscall", 439, AT_FDCWD, os.fsencode(path), mode, flags)

    def statvfs(self, path: str) -> object:
        found = os.statvfs(path)
        return found.f_namemax, found.f_bsize, found.f_flag & (os.ST_RDONLY | os.ST_NOSUID)

    def mark(self, *paths: str) -> None:
        """Set the times to long ago, and remember them; ``moved`` then tells which have changed."""
        for path in paths:
            os.utime(path, ns=(PAST_NS, PAST_NS), follow_symlinks=False)
        for path in paths:
            self._marks[path] = times(os.lstat(path))

    def mark_ahead(self, path: str, seconds: int) -> None:
        """As ``mark``, with times to come."""
        os.utime(path, ns=(PAST_NS, time.time_ns() + seconds * 10**9))
        self.remember(path)

    def remember(self, path: str) -> None:
        """As ``mark``, with the times it has."""
        self._marks[path] = times(os.lstat(path))

    def moved(self, path: str) -> str:
        """Which of atime, mtime, ctime have changed; with "!" when one is not about now."""
        now = time.time_ns()
        old, new = self._marks[path], times(os.lstat(path))
        changed = "".join(name for name in "amc" if old[name] != new[name])
        odd = any(abs(new[name] - now) > SLACK_NS for name in changed)
        return changed + "!" * odd

    moved_here = moved
    remember_here = remember

    def mark_if(self, path: str) -> None:
        """As ``mark``, for what may not be there."""
        if os.path.lexists(path):
            self.mark(path)

    def order(self, path: str) -> object:
        """Of something new: whether all its times are about now."""
        found = times(os.lstat(path))
        return [abs(each - time.time_ns()) < SLACK_NS for each in found.values()]

    def fchdir(self, key: str) -> None:
        os.fchdir(self.files[key])
        self._at = -1  # the next step goes back

    def while_running(self, path: str, step: Step) -> object:
        """A step's result while ``path`` (a copy of sleep) runs."""
        pid = os.posix_spawn(path, [path, "100"], {})
        try:
            return self._one(step)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)



def tree(top: str) -> object:
    """Everything below, with attributes, targets and contents."""
    found: dict[str, object] = {}
    _collect(top, found)
    return found


def _collect(path: str, found: dict[str, object]) -> None:
    try:
        status = os.lstat(path)
    except OSError as error:
        found[path] = errno.errorcode[error.errno or 0]
        return
    told = described(status)
    if stat.S_ISLNK(status.st_mode):
        told["target"] = os.readlink(path)
    elif stat.S_ISREG(status.st_mode) and status.st_size <= 1 << 22:
        told["content"] = content(path)
    found[path] = told
    if stat.S_ISDIR(status.st_mode):
        for name in sorted(os.listdir(path)):
            _collect(os.path.join(path, name), found)
