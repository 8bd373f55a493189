"""Starts and stops a real `kalamdb serve` on its own data directory and port.

The test fixtures import `Server`. As a program it runs one command against a fresh server:

    python server.py [--flushed] -- COMMAND ARG...

The command finds the server through KALAMDB_URL, KALAMDB_HOST, KALAMDB_PORT and KALAMDB_PASSWORD. The exit
code is the command's, or 1 when the server logged an error or did not stop cleanly. With --flushed the server
flushes every row at once.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

ROOT_PASSWORD = "correct horse battery"
READY = re.compile(r"listening on (\S+):(\d+)")
STARTED_WITHIN_S = 60
STOPPED_WITHIN_S = 30
# A healthy server logs none of these, whatever its clients send. The exception is panics inside the arrow
# crates: malformed IPC messages cause them, and the server catches them and answers INVALID_ARGUMENT.
UNEXPECTED = re.compile(r'\bERROR\b|"level":"ERROR"|panicked at (?!\S*/arrow-)|stack overflow')

# Settings of a server whose rows become cold as soon as they are written.
FLUSHED = ("--set", "flush_policy=rows:1", "--set", "flush_check_interval_ms=1")


def binary() -> pathlib.Path:
    """Returns the server under test: KALAMDB_BIN, or else the dev build in cargo's target directory."""
    named = os.environ.get("KALAMDB_BIN")
    if named:
        return pathlib.Path(named)
    target = os.environ.get("CARGO_TARGET_DIR") or pathlib.Path.home() / ".cache" / "kalamdb-target"
    return pathlib.Path(target) / "debug" / "kalamdb"


class Server:
    """One server process; `start` and `stop` may be repeated on the same data directory."""

    def __init__(self, data_dir, node_id="node-1", extra_args=(), extra_env=None):
        self.data_dir = pathlib.Path(data_dir)
        self.node_id = node_id
        self.extra_args = list(extra_args)
        self.extra_env = dict(extra_env or {})
        self.log = []  # every line of stdout and stderr, over all starts
        self.process = None
        self.host = self.port = None

    @property
    def url(self):
        return f"grpc://{self.host}:{self.port}"

    @property
    def target(self):
        return f"{self.host}:{self.port}"

    def start(self):
        # The caller's own settings must not reach the server under test.
        env = {name: value for name, value in os.environ.items() if not name.startswith("KALAMDB_")}
        env["KALAMDB_ROOT_PASSWORD"] = ROOT_PASSWORD
        env.update(self.extra_env)
        self.process = subprocess.Popen(
            [binary(), "serve", "--data-dir", self.data_dir, "--listen", "127.0.0.1:0", "--http-listen", "off",
             "--node-id", self.node_id, *self.extra_args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True, errors="replace")
        self.ready = threading.Event()
        self.readers = [threading.Thread(target=self._read, args=(pipe,), daemon=True)
                        for pipe in (self.process.stdout, self.process.stderr)]
        for reader in self.readers:
            reader.start()
        if not self.ready.wait(STARTED_WITHIN_S) or self.process.poll() is not None:
            self.process.kill()
            raise RuntimeError("the server did not start:\n" + "\n".join(self.log[-40:]))
        return self

    def _read(self, pipe):
        for line in pipe:
            self.log.append(line.rstrip("\n"))
            found = READY.search(line)
            if found and pipe is self.process.stdout:
                self.host, self.port = found.group(1), int(found.group(2))
                self.ready.set()
        # The output ended without the ready line: the process is gone, so wake the waiter.
        self.ready.set()

    def stop(self):
        """Asks the server to drain and waits for it; fails unless the exit code is 0."""
        self.process.send_signal(signal.SIGTERM)
        code = self._wait()
        assert code == 0, f"the server left with {code}:\n" + "\n".join(self.log[-40:])

    def kill(self):
        """Kills the server without a shutdown, like a power loss."""
        self.process.kill()
        self._wait()

    def _wait(self):
        try:
            code = self.process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("the server did not stop in time:\n" + "\n".join(self.log[-40:])) from None
        for reader in self.readers:
            reader.join()
        return code

    def restart(self):
        self.stop()
        return self.start()

    def alive(self):
        return self.process.poll() is None

    def unexpected(self):
        """Returns log lines that no test may cause."""
        return [line for line in self.log if UNEXPECTED.search(line)]


def run(command, extra_args=()):
    data_dir = tempfile.mkdtemp(prefix="kalamdb-clients-")
    server = Server(pathlib.Path(data_dir) / "data", extra_args=extra_args).start()
    try:
        env = dict(os.environ, KALAMDB_URL=server.url, KALAMDB_HOST=server.host, KALAMDB_PORT=str(server.port),
                   KALAMDB_PASSWORD=ROOT_PASSWORD)
        code = subprocess.call(command, env=env)
        server.stop()
    finally:
        if server.alive():
            server.kill()
        shutil.rmtree(data_dir, ignore_errors=True)
    for line in server.unexpected():
        print("unexpected in the server's log:", line, file=sys.stderr)
        code = code or 1
    return code


if __name__ == "__main__":
    arguments = sys.argv[1:]
    extra_args = ()
    if arguments[:1] == ["--flushed"]:
        arguments, extra_args = arguments[1:], FLUSHED
    if arguments[:1] != ["--"] or len(arguments) < 2:
        sys.exit(__doc__)
    sys.exit(run(arguments[1:], extra_args))
