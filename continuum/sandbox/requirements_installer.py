"""The program inside a builder: installs a list of requirements and puts what came of it into a layer.

Standard library only, Python 3.8 and newer, started as the runner is: its text comes through stdin, then a configuration
(u32 length, JSON). Root of the builder, with next to no rights, it runs uv and the compiler as the sandbox's user in a
tmpfs, whose size is the limit. Then nothing of that user runs any more, and root copies plain files and directories, with
modes of its own choice, into the layer. It prints one line of JSON and ends; when its stdin ends first, the worker is gone,
and so is everything here.

    {"bytes": 123456, "files": 12}      or      {"step": "install", "code": 1, "said": "error: No solution found ..."}
"""

import ctypes
import errno
import json
import os
import select
import signal
import stat
import subprocess
import sys

BUILD = "/build"
LAYER = "/layer"
CACHE = BUILD + "/cache"
SITE = BUILD + "/site"
LIST = BUILD + "/requirements.txt"
SAID = "/tmp/said"
CERTIFICATES = "/tmp/certificates.pem"
MOST_SAID = 16384
MOST_NAME = 1000
BLOCK = 4096
PR_SET_NO_NEW_PRIVS = 38

libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """A step that did not do its part, how its program ended (None: not by itself), and what it said."""

    def __init__(self, step, code, said):
        super().__init__(said)
        self.answer = {"step": step, "code": code, "said": said}


def read_exactly(length):
    data = b""
    while len(data) < length:
        part = os.read(0, length - len(data))
        if not part:
            os._exit(1)
        data += part
    return data


def read_configuration():
    return json.loads(read_exactly(int.from_bytes(read_exactly(4), "big")).decode())


def prepare(config):
    os.mkdir(SITE)
    os.chmod(SITE, 0o777)
    files = {LIST: config["requirements"], CERTIFICATES: config["certificates"]}
    for path, text in files.items():
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o644)


def install(config):
    # Not on the command line, where an index's password could be read.
    environment = {"UV_DEFAULT_INDEX": config["index"], "UV_CACHE_DIR": CACHE}
    if config["certificates"]:
        environment["SSL_CERT_FILE"] = CERTIFICATES
    command = [config["uv"], "--no-config", "--no-progress", "--no-python-downloads", "pip", "install"]
    command += ["--python", sys.executable, "--target", SITE, "--only-binary", ":all:", "--link-mode", "hardlink"]
    command += ["--requirements", LIST]
    if config["hashes"]:
        command.append("--require-hashes")
    code, said = run_as_user(command, environment, config["uid"])
    if code != 0:
        raise Failed("install", code, said)


def compile_all(config):
    """Bytecode, for nobody can write it beside the sources later. What does not compile stays source."""
    command = [sys.executable, "-I", "-m", "compileall", "-qq", "-r", "100", "-d", config["place"]]
    run_as_user([*command, "--invalidation-mode", "unchecked-hash", SITE], {}, config["uid"])


def run_as_user(command, environment, uid):
    """Run a program as the sandbox's user to its end; return how it ended and what it said."""

    def become_user():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    usual = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": BUILD,
        "TMPDIR": BUILD,
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "UV_HTTP_TIMEOUT": "30",
        "UV_CONCURRENT_DOWNLOADS": "4",
        "UV_CONCURRENT_INSTALLS": "2",
        "TOKIO_WORKER_THREADS": "2",
    }
    with open(SAID, "w+b") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**usual, **environment},
            cwd=BUILD,
            preexec_fn=become_user,
            start_new_session=True,
        )
        while process.poll() is None:
            if select.select([0], [], [], 0.02)[0]:
                os._exit(1)  # the worker is gone; all other processes of the container end with its first
        end_everything()
        return process.returncode, read_both_ends(said).decode("utf-8", "replace")


def read_both_ends(file):
    """Of what a program said, the beginning, which says what went wrong, and the end, which says why."""
    half, size = MOST_SAID // 2, file.seek(0, os.SEEK_END)
    file.seek(0)
    if size <= MOST_SAID:
        return file.read()
    beginning = file.read(half)
    file.seek(size - half)
    # Whole words, for the worker to find an index's password in them.
    return beginning[: beginning.rfind(b" ") + 1] + b"\n[...]\n" + file.read().partition(b" ")[2]


def end_everything():
    """Kill all others; see them gone."""
    try:
        while True:
            os.kill(-1, signal.SIGKILL)
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def copy_tree(source, target, max_mb):
    """Copy a directory's content, files and directories only; return (bytes on disk, files)."""
    size = count = 0
    left = max_mb * 1024 * 1024
    directories = [(source, target)]  # as deep as the file system lets them be
    while directories:
        here, there = directories.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                name, copy = entry.path[len(source) + 1 :], os.path.join(there, entry.name)
                if stat.S_ISDIR(mode):
                    os.mkdir(copy, 0o755)
                    directories.append((entry.path, copy))
                    size += BLOCK
                elif stat.S_ISREG(mode):
                    # A file with holes is larger than the room that it takes in the tmpfs, and holes are not kept.
                    length = copy_file(entry.path, copy, 0o755 if mode & stat.S_IXUSR else 0o644, left)
                    if length is None:
                        raise Failed("copy", None, "with %s, it has over %d MB" % (name[:MOST_NAME], max_mb))
                    left -= length
                    size, count = size + (length + BLOCK - 1) // BLOCK * BLOCK, count + 1
                else:
                    raise Failed("copy", None, "%s is neither a file nor a directory" % name[:MOST_NAME])
    return size, count


def copy_file(source, target, mode, most):
    """Return how many bytes it has; None when there are more than `most`."""
    length = 0
    reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        while True:
            data = os.read(reader, 1 << 20)
            if not data:
                return length
            length += len(data)
            if length > most:
                return None
            while data:
                data = data[os.write(writer, data) :]
    finally:
        os.close(reader)
        os.close(writer)


def sync(directory):
    """A layer that is called complete must be so after a power failure, too."""
    descriptor = os.open(directory, os.O_RDONLY)
    if libc.syncfs(descriptor) != 0:
        raise OSError(ctypes.get_errno(), "syncfs")
    os.close(descriptor)


def build(config):
    os.umask(0o022)
    prepare(config)
    install(config)
    compile_all(config)
    try:
        os.unlink(SITE + "/.lock")  # uv's own
    except FileNotFoundError:
        pass
    size, count = copy_tree(SITE, LAYER, config["max_mb"])
    sync(LAYER)
    return {"bytes": size, "files": count}


try:
    answer = build(read_configuration())
except Failed as failure:
    answer = failure.answer
except OSError as problem:
    full = problem.errno == errno.ENOSPC
    answer = {"step": "host" if full else "start", "code": None, "said": str(problem)}
os.write(1, json.dumps(answer).encode() + b"\n")
