"""Decoding in processes of their own, of what the native module leaves to Python.

Threads that need the interpreter for every image get it in turns, with each other and with the training loop; processes
have one each. What goes to a process is small (where the bytes of some items lie, or the bytes themselves from a user's
`Source`, which need not be picklable): it reads, checks and decodes them, into memory that it shares, and what is
wrong comes back as it would have been raised here. From there pixels are copied to their place, a twentieth of the
time of decoding them: so batches may lie anywhere, in pinned memory too.

Started by command and not by `multiprocessing`, which would run the user's script again where it has no
`if __name__ == "__main__"`; never by a fork, in which other threads' locks stay locked. They end with the socket to the
process that started them, however that ends, and hear nothing of a Ctrl-C, which is for that one.
"""

import atexit
import contextlib
import mmap
import os
import socket
import subprocess
import sys
import threading
from multiprocessing import spawn
from multiprocessing.connection import Connection

import numpy as np

from prunefast.data import decode, native
from prunefast.data.storage import Storage
from prunefast.errors import MachineError

_START = "import sys; sys.path[:] = sys.argv[3:]; from prunefast.data.processes import serve; serve(*sys.argv[1:3])"


class _Process:
    """One process, for one thread at a time. `alive` until it is seen to have ended."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        ours, theirs = socket.socketpair()
        self._descriptor = os.memfd_create("prunefast-decode")
        self._memory: mmap.mmap | None = None
        numbers = (theirs.fileno(), self._descriptor)
        command = [os.fsdecode(spawn.get_executable()), "-c", _START, *map(str, numbers), *sys.path]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=numbers, process_group=0
            )
        except OSError as error:
            ours.close()
            os.close(self._descriptor)
            raise MachineError(
                f"decoding: no process can be started ({error.strerror}); set {native.DECODE_VARIABLE}=threads"
            ) from None
        finally:
            theirs.close()
        self._connection = Connection(ours.detach())
        self.alive = True

    def decode(
        self, records: Storage | list[bytes], side: int, out: np.ndarray, corners: np.ndarray | None
    ) -> tuple[int, str] | None:
        """`decode.decode_windows` of these records, there."""
        try:
            if self._memory is None or len(self._memory) < out.nbytes:
                os.ftruncate(self._descriptor, out.nbytes)
                self._memory = mmap.mmap(self._descriptor, out.nbytes)
            self._connection.send((records, side, out.shape, corners))
            answer = self._connection.recv()
        except (EOFError, OSError):
            self.alive = False
            raise MachineError(f"decoding: {self._how_it_ended()}; set {native.DECODE_VARIABLE}=threads") from None
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            out[...] = np.frombuffer(self._memory, np.uint8, out.nbytes).reshape(out.shape)
        return answer

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(1.0)
            if status < 0:
                return f"a process was killed by signal {-status} (out of memory, or by somebody)"
            return f"a process ended with status {status}"
        return "a process does not answer"

    def end(self) -> None:
        if self._owner == os.getpid():
            self._process.kill()  # holds nothing that is not here
            self._process.wait()
        else:  # of the process that this one was forked from
            self._process.returncode = 0
        self._connection.close()
        os.close(self._descriptor)


class DecodeProcesses:
    """As many processes as threads ask at the same time. They stay until this process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._all: list[_Process] = []

    def decode(
        self, storage: Storage, items: np.ndarray, side: int, out: np.ndarray, corners: np.ndarray | None
    ) -> tuple[int, str] | None:
        """Items of a storage as `decode.decode_windows` gives them, the same errors, and MachineError for a process
        that was lost.
        """
        records = storage.part(items) if storage.native else storage.read_many(items)
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is None:
            process = _Process()
            with self._lock:
                self._all.append(process)
        try:
            return process.decode(records, side, out, corners)
        finally:
            with self._lock:
                if process not in self._all:
                    pass  # ended meanwhile, by `end`
                elif process.alive:
                    self._idle.append(process)
                else:
                    self._all.remove(process)
                    process.end()

    def end(self) -> None:
        with self._lock:
            processes, self._all, self._idle = self._all, [], []
        for process in processes:
            process.end()


_shared = DecodeProcesses()


def shared() -> DecodeProcesses | None:
    """This process' own; None where threads decode."""
    return _shared if native.in_processes() else None


def _begin_anew() -> None:
    global _shared
    theirs, _shared = _shared, DecodeProcesses()
    for process in theirs._all:  # not under its lock, which another thread of the parent's may have held
        process.end()


os.register_at_fork(after_in_child=_begin_anew)
atexit.register(lambda: _shared.end())


def serve(connection_number: str, memory_number: str) -> None:
    """What such a process does."""
    connection, descriptor = Connection(int(connection_number)), int(memory_number)
    memory: mmap.mmap | None = None
    while True:
        try:
            records, side, shape, corners = connection.recv()
        except (EOFError, ConnectionError):  # nobody asks any more
            return
        answer: tuple[int, str] | Exception | None
        try:
            size = int(np.prod(shape))
            if memory is None or len(memory) < size:
                memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
            out = np.frombuffer(memory, np.uint8, size).reshape(shape)
            blobs = records if isinstance(records, list) else records.read_many(np.arange(len(out)))
            answer = decode.decode_windows(blobs, side, out, corners)
        except Exception as error:  # whatever it is, it is raised where it was asked for
            answer = error
        with contextlib.suppress(ConnectionError):
            connection.send(answer)
