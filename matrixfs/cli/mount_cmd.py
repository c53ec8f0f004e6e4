"""``mount.matrixfs`` and ``mount.fuse.matrixfs``: what mount(8) runs for us (ecosystem.md 6).

Takes mount(8)'s arguments, checks what can be checked before anything is started, and puts the mount process into the
background.  Returns 0 only when the tree is there to be used; else one line and an exit code of mount(8): 1 wrong
arguments or no permission, 2 the system lacks something, 4 our bug, 8 interrupted, 32 the mount failed.
"""

from __future__ import annotations

import contextlib
import getopt
import logging
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from matrixfs.cli import utab
from matrixfs.cli.common import STATE_DIR_DEFAULT, STATE_DIR_VARIABLE, printable, worst_of
from matrixfs.options import MountOptions
from membership.errors import MatrixError

if TYPE_CHECKING:
    from matrixfs.fuse import registry

USAGE, SYSTEM, INTERNAL, INTERRUPTED, FAILED = 1, 2, 4, 8, 32  # mount(8)

log = logging.getLogger(__name__)

_SYNOPSIS = "usage: mount.matrixfs NAME DIR [-fnsv] [-N namespace] [-t type] [-o option,...]"
_FOR_LIBFUSE = {"suid", "nosuid", "dev", "nodev", "exec", "noexec", "async", "sync", "atime", "noatime", "dirsync"}
_FOR_OTHERS = {  # read by mount(8), systemd and fstab's readers, or the default anyway
    "_netdev", "auto", "noauto", "defaults", "fail", "nofail", "user", "users", "nouser", "owner", "group", "rw",
    "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime", "diratime", "nodiratime",
    "silent", "loud", "allow_other", "default_permissions",
}  # fmt: skip
_FOR_OTHERS_PREFIXES = ("x-", "X-", "uhelper=", "helper=", "user=", "comment=")
REMOUNT = "remount"  # in what ``parse`` returns: all options, as mount(8) gave them
_NAME_BYTES_MAX = 64
_REPORT_BYTES_MAX = 65536


class Refused(Exception):
    """Nothing was mounted; ``args`` are the line and mount(8)'s exit code."""

    def __init__(self, line: str, code: int = FAILED) -> None:
        super().__init__(line)
        self.code = code


def parse(arguments: list[str]) -> tuple[MountOptions, dict[str, str]]:
    """mount(8)'s arguments as options and flags ("-f", "-n", "-s", "-v", "-N", REMOUNT).  Raises Refused."""
    try:
        pairs, words = getopt.gnu_getopt(arguments, "fnsvhVN:o:t:")
    except getopt.GetoptError as error:
        raise Refused(f"{error} ({_SYNOPSIS})", USAGE) from None
    flags = dict(pairs)
    if len(words) != 2:
        raise Refused(_SYNOPSIS, USAGE)
    source, directory = words
    if not source or len(os.fsencode(source)) > _NAME_BYTES_MAX or "/" in source or not source.isprintable():
        raise Refused(f"{printable(source)!r} is no name of a filesystem (see matrixctl status)", USAGE)
    options = [option for flag, value in pairs if flag == "-o" for option in value.split(",") if option]
    if REMOUNT in options:
        flags[REMOUNT] = ",".join(options)
    lenient = "-s" in flags or REMOUNT in flags
    state = os.environ.get(STATE_DIR_VARIABLE) or STATE_DIR_DEFAULT
    read_only, local_locks, journal_data, discard = False, False, False, False
    kernel = {"dev": "dev", "suid": "suid"}
    for option in options:
        if option.startswith("state="):
            state = option.removeprefix("state=")
        elif option == "ro":
            read_only = True
        elif option == "rw":
            read_only = False
        elif option == "localflocks":
            local_locks = True
        elif option.startswith("data="):
            journal_data = _is_data_journal(option)
        elif option in ("discard", "nodiscard"):
            discard = option == "discard"
        elif option in _FOR_LIBFUSE:
            kernel[option.removeprefix("no")] = option
        elif option not in _FOR_OTHERS and not option.startswith(_FOR_OTHERS_PREFIXES) and not lenient:
            raise Refused(
                f"unknown mount option {printable(option)!r} (ours: state=DIR, localflocks, data=journal, discard;"
                " others: see mount(8))",
                USAGE,
            )
    state = os.path.abspath(state)
    log_name = "mount-" + re.sub(r"[^\w.+-]", "_", source) + ".log"
    found = MountOptions(
        source=source,
        mountpoint=os.path.realpath(directory),
        state_dir=state,
        read_only=read_only,
        local_locks=local_locks,
        journal_data=journal_data,
        discard=discard,
        kernel_options=tuple(sorted(kernel.values())),
        log_path=os.path.join(state, log_name),
        log_level="debug" if sum(flag == "-v" for flag, _ in pairs) > 1 else "info",
    )
    return found, flags


def _is_data_journal(option: str) -> bool:
    if option not in {"data=journal", "data=ordered"}:
        raise Refused(f"{printable(option)!r}: choose data=ordered, the default, or data=journal", USAGE)
    return option == "data=journal"


def check(options: MountOptions) -> None:
    """What would fail later with a worse message.  Raises Refused."""
    from matrixfs.fuse import registry

    if os.geteuid() != 0:
        raise Refused("only root may mount (use sudo)", USAGE)
    if not os.path.lexists("/dev/fuse"):
        raise Refused("no /dev/fuse: load the kernel module (modprobe fuse), or give the container the device", SYSTEM)
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        raise Refused(f"can't use /dev/fuse: {error.strerror} (is it given to this container?)", SYSTEM) from None
    busy = registry.mount_at(options.mountpoint)  # before touching it: what is mounted there may hang
    if busy is not None and _is_dead(busy):
        subprocess.run(["umount", "-i", "-l", options.mountpoint], check=False, capture_output=True)
        busy = registry.mount_at(options.mountpoint)
    if busy is not None and busy.fs_type != "autofs":
        what = f"{printable(busy.source)} ({busy.fs_type})"
        raise Refused(f"{options.mountpoint} is busy: {what} is mounted there (umount it, or take another directory)")
    if not os.path.isdir(options.mountpoint):
        known = "not a directory" if os.path.lexists(options.mountpoint) else "no such directory (mkdir it)"
        raise Refused(f"{options.mountpoint}: {known}")
    if not os.path.isdir(options.state_dir):
        raise Refused(f"matrixd is not running here: no {options.state_dir} (start it, or give -o state=DIR)")


def _is_dead(mount: registry.Mount) -> bool:
    """Whether it is a tree of ours whose process is gone: withdrawn, or killed."""
    from matrixfs.fuse import connection, registry
    from membership.processes import is_dying, process_start

    if mount.fs_type != "fuse.matrixfs":
        return False
    connection.cut_off_dying()
    server = registry.read(mount.device)
    if server is None or is_dying(server.pid, server.start_ticks):
        return True
    return process_start(server.pid) != server.start_ticks


class _Report:
    """The mount process's word to the helper that waits: its pid, then "ok" or one line of what is wrong."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._write(f"{os.getpid()}\n")

    def __call__(self, problem: str | None) -> None:
        """The tree is mounted (None), or why it is not.  Only the first word counts."""
        if self._fd >= 0:
            self._write("ok" if problem is None else f"!{problem}")
            os.close(self._fd)
            self._fd = -1

    def _write(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the helper was interrupted
            os.write(self._fd, text.encode(errors="replace")[:_REPORT_BYTES_MAX])


def _become_background(log_path: str, report_fd: int) -> None:
    """The second child: no terminal, no parent, nothing of the caller held but the log and the report."""
    os.chdir("/")
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, log_fd), (2, log_fd)):
        os.dup2(source, target)
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd > 2 and fd != report_fd:
            with contextlib.suppress(OSError):  # the listing's own descriptor
                os.close(fd)


def _serve(options: MountOptions, report: Callable[[str | None], None]) -> int:
    """The mount process; returns its exit code, after the tree was unmounted and flushed."""
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        from matrixfs.node import run_mount

        run_mount(options, report)
        report("the mount process ended before the tree was mounted")
        return 0
    except MatrixError as error:
        failure = error
    except BaseExceptionGroup as group:
        try:
            failure = worst_of(group)
        except BaseExceptionGroup:
            return _failed(options, report)
    except Exception:
        return _failed(options, report)
    log.error("%s", failure)
    report(printable(str(failure)))
    return failure.exit_code


def _failed(options: MountOptions, report: Callable[[str | None], None]) -> int:
    log.error("the mount process failed:\n%s", traceback.format_exc())
    report(f"the mount process failed: see {options.log_path}")
    return INTERNAL


def _start(options: MountOptions) -> int:
    """Fork twice, wait for the word of the mount process.  Returns mount(8)'s exit code."""
    read_end, write_end = os.pipe()
    try:
        os.close(os.open(options.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640))
    except OSError as error:
        raise Refused(f"can't write the log {options.log_path}: {error.strerror}", SYSTEM) from None
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _leave(options, write_end)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as pipe:
        pid = int(pipe.readline() or b"0")
        try:
            word = pipe.read().decode(errors="replace")
        except KeyboardInterrupt:
            if pid:
                os.kill(pid, signal.SIGTERM)
            raise Refused("interrupted", INTERRUPTED) from None
    if word == "ok":
        try:
            utab.add(options.source, options.mountpoint)
        except OSError as error:
            print(f"mount.matrixfs: umount won't wait for the last flush: {error}", file=sys.stderr)
        return 0
    raise Refused(word.removeprefix("!") or f"the mount process died: see {options.log_path}")


def _leave(options: MountOptions, report_fd: int) -> NoReturn:
    code = INTERNAL
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        _become_background(options.log_path, report_fd)
        code = _serve(options, _Report(report_fd))
    finally:
        logging.shutdown()
        os._exit(code)  # what Python would run at exit belongs to the helper


def main(arguments: list[str] | None = None) -> NoReturn:
    """The command."""
    if arguments is None:
        arguments = sys.argv[1:]
    if "-V" in arguments or "--version" in arguments:
        from matrixfs import __version__

        print(f"mount.matrixfs {__version__}")
        sys.exit(0)
    if arguments in (["-h"], ["--help"]):
        print(_SYNOPSIS)
        sys.exit(0)
    try:
        options, flags = parse(arguments)
        if "-N" in flags:
            _enter_namespace(flags["-N"], arguments)
        if REMOUNT in flags:
            _remount(options.mountpoint, flags[REMOUNT].split(","), fake="-f" in flags)
        check(options)
        if "-v" in flags:
            print(f"mount.matrixfs: {options.source} on {options.mountpoint}, log in {options.log_path}")
        sys.exit(0 if "-f" in flags else _start(options))
    except Refused as refused:
        print(f"mount.matrixfs: {refused}", file=sys.stderr)
        sys.exit(refused.code)


def _remount(mountpoint: str, wanted: list[str], *, fake: bool) -> NoReturn:
    """Change what the kernel can change of a mounted tree (``remount``).  Raises Refused."""
    from matrixfs.cli import remount
    from matrixfs.fuse import registry

    mount = registry.mount_at(mountpoint)
    if mount is None or mount.fs_type != "fuse.matrixfs":
        raise Refused(f"no tree of ours is mounted on {mountpoint}")
    arguments = remount.served_with(mount)
    if arguments is None:
        raise Refused(f"the mount process of {mountpoint} is gone: unmount and mount again")
    if reason := remount.problem(wanted, parse(arguments)[0]):
        raise Refused(f"{reason}: unmount and mount again")
    try:
        if not fake:
            remount.remount(mountpoint, wanted)
    except OSError as error:
        raise Refused(f"can't remount {mountpoint}: {error.strerror}") from None
    sys.exit(0)


def _enter_namespace(namespace: str, arguments: list[str]) -> NoReturn:
    """Begin again inside the mount namespace, a process number or a file."""
    at = arguments.index(next(word for word in arguments if word.startswith("-N")))
    rest = arguments[:at] + arguments[at + (2 if arguments[at] == "-N" else 1) :]
    where = f"--mount=/proc/{namespace}/ns/mnt" if namespace.isdigit() else f"--mount={namespace}"
    try:
        os.execvp("nsenter", ["nsenter", where, sys.executable, "-m", __spec__.name, *rest])  # noqa: S606
    except OSError as error:
        raise Refused(f"can't enter the namespace {printable(namespace)}: {error.strerror}", SYSTEM) from None


if __name__ == "__main__":
    main()
