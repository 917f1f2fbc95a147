"""Eight threads, sqlite, a subprocess behind pipes, an unlinked file and epoll; each round checks all
of them and is counted aloud."""

import hashlib
import os
import select
import socket
import sqlite3
import subprocess
import sys
import threading
import time

CHILD = """
import sys
for line in sys.stdin:
    print(int(line) + 1, flush=True)
"""


class Chain(threading.Thread):
    """Hashes its own hash over and over; now and then all of it is done again and compared."""

    def __init__(self, name):
        super().__init__(name=name, daemon=True)
        self.step, self.digest, self.lock = 0, name.encode(), threading.Lock()

    def run(self):
        while True:
            with self.lock:
                self.digest = hashlib.sha256(self.digest).digest()
                self.step += 1
            time.sleep(0.01)

    def check(self):
        with self.lock:
            step, digest = self.step, self.digest
        again = self.name.encode()
        for _ in range(step):
            again = hashlib.sha256(again).digest()
        assert again == digest, f"chain {self.name} broke before step {step}"


def set_up_files():
    database = sqlite3.connect("/tmp/many.sqlite", isolation_level=None)
    database.execute("pragma journal_mode=wal")
    database.execute("create table numbers (n integer primary key, square integer)")
    unlinked = open("/tmp/many.unlinked", "w+b", buffering=0)
    os.unlink("/tmp/many.unlinked")
    return database, unlinked


def main():
    chains = [Chain(f"chain-{number}") for number in range(8)]
    for chain in chains:
        chain.start()
    database, unlinked = set_up_files()
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    poller = select.epoll()
    pairs = [socket.socketpair() for _ in range(16)]
    by_fd = {ours.fileno(): ours for ours, _ in pairs}
    for fd in by_fd:
        poller.register(fd, select.EPOLLIN)

    print("ready", flush=True)
    n = 0
    while True:
        n += 1
        # An open transaction holds locks of the file while everything else is done.
        database.execute("begin immediate")
        database.execute("insert into numbers values (?, ?)", (n, n * n))
        child.stdin.write(f"{n}\n")
        answer = int(child.stdout.readline())
        assert answer == n + 1, f"the child answered {answer} to {n}"
        unlinked.write(n.to_bytes(8, "little"))
        for _, theirs in pairs:
            theirs.send(n.to_bytes(8, "little"))
        waiting = set(by_fd)
        while waiting:
            for fd, _ in poller.poll(30):
                got = int.from_bytes(by_fd[fd].recv(8), "little")
                assert got == n, f"{got} came through epoll, not {n}"
                waiting.discard(fd)
        time.sleep(0.02)
        database.execute("commit")
        count, total = database.execute("select count(*), sum(n) from numbers").fetchone()
        assert (count, total) == (n, n * (n + 1) // 2), f"{count} rows, sum {total} at {n}"
        content = os.pread(unlinked.fileno(), 8 * n + 8, 0)
        assert content == b"".join(i.to_bytes(8, "little") for i in range(1, n + 1)), "the unlinked file"
        if n % 10 == 0:
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)
            for chain in chains:
                chain.check()
        assert threading.active_count() == 9, "threads are missing"
        print(f"Round {n}", flush=True)


try:
    main()
except BaseException as error:
    print(f"damaged: {error!r}", flush=True)
    raise
