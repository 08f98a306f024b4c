"""Starts one leased server, waits for it, and writes its start, end and exit code durably.

``python -m gpuslice.node.supervisor LEASE_DIR …`` detaches itself and returns as soon as its
record says ``created``. From then on it needs nobody: node, service and hub may end, the server
and its supervisor go on.

It starts nothing unless it wins the lease's marker (see ``leasedir``) *and* the service agrees.
The server's end is the end of the process started here; what that process leaves behind is
killed, but not billed. The end is the start plus the time on the boot clock, so that a wall clock
that is set meanwhile cannot change a bill.

Standard library only, so that it starts fast and stays small.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from gpuslice.node.ask import Service, Start, StartRefusedError
from gpuslice.node.leasedir import LeaseDir, Record, TornFile, cut_off
from gpuslice.node.procs import all_processes, descendants, read_process, send_signal
from gpuslice.units import boot_id, boottime_us

#: The log is cut when it is longer; its end is kept beside it.
LOG_LIMIT = 8 << 20
LOG_KEEP = 1 << 20
#: How patient a stop is that does not say so.
DEFAULT_GRACE_S = 10.0

_LEFTOVERS_GRACE_S = 2.0
_TICK_S = 5.0
#: Not only the operating system's: ``spec.json`` may be gone or torn.
_LAUNCH_PROBLEMS = (
    OSError, LookupError, ValueError, TypeError, TornFile, subprocess.SubprocessError
)  # fmt: skip
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


class Supervisor:
    """The life of one server, from ``created`` to the end of the last process it left."""

    def __init__(self, lease: LeaseDir, service: Service) -> None:
        self.lease = lease
        self.service = service
        me = read_process(os.getpid())
        assert me is not None
        self.record = Record("created", boot_id(), me.pid, me.start_ticks)
        self.child_pid = 0
        self.kill_at: float | None = None

    def create(self) -> None:
        self._write("created")

    def run(self) -> None:
        """Blocks until nothing of the server is left. SIGCHLD and SIGTERM must be blocked."""
        try:
            start, child = self._start()
        except StartRefusedError as refusal:
            self._write("refused", message=str(refusal))
            return
        code, message = self._watch(child) if child else (127, self.record.message)
        finished_us = start.started_us + boottime_us() - start.boottime_us
        self._write_end(finished_us, code, message)
        self._clean_up()

    # --- starting ---------------------------------------------------------------------------

    def _start(self) -> tuple[Start, subprocess.Popen[bytes] | None]:
        if not self.lease.claim():
            raise StartRefusedError("the slice was taken back before the server started")
        start = self.service.ask_to_start(self.lease.lease_id, _told_to_stop)
        if _told_to_stop():
            raise StartRefusedError("stopped before it started")
        # The point of no return: the fence takes this marker away, or we do.
        if not self.lease.start():
            raise StartRefusedError("the slice was taken back before the server started")
        # Durable before the child exists: a child without a record would run unbilled.
        self._write("running", started_us=start.started_us, started_boottime_us=start.boottime_us)
        return start, self._launch()

    def _launch(self) -> subprocess.Popen[bytes] | None:
        try:
            spec = self.lease.read_json("spec.json") or {}
            with self.lease.log.open("ab") as log:
                child = subprocess.Popen(
                    spec["argv"],
                    env=spec["env"],
                    cwd=spec["cwd"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                    preexec_fn=_become_child,
                )
        except _LAUNCH_PROBLEMS as problem:
            message = f"the server could not be started: {problem}"[:400]
            self.record = replace(self.record, message=message)
            return None
        self.child_pid = child.pid
        process = read_process(child.pid)
        ticks = process.start_ticks if process else None
        try:
            self._write("running", child_pid=child.pid, child_ticks=ticks)
        except OSError as problem:
            # Only a help for the node in case we are killed; no reason to end a server.
            _say(f"event=record-not-written lease={self.lease.lease_id} problem={problem!r}")
        return child

    # --- waiting ----------------------------------------------------------------------------

    def _watch(self, child: subprocess.Popen[bytes]) -> tuple[int, str | None]:
        """Waits for the child, reaps whatever ends meanwhile, carries out a stop."""
        while (code := self._reap()) is None:
            wait = _TICK_S
            if self.kill_at is not None:
                wait = max(0.1, min(wait, self.kill_at - time.monotonic()))
            received = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, wait)
            if received is not None and received.si_signo == signal.SIGTERM:
                self._begin_stop()
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                self._signal_all(signal.SIGKILL)
            _limit_log(self.lease.log)
        child.returncode = code
        return code, _explain(code, asked=self.kill_at is not None)

    def _begin_stop(self) -> None:
        try:
            grace = float((self.lease.read_json("stop.json") or {})["grace_s"])
        except (TornFile, KeyError, TypeError, ValueError):
            grace = DEFAULT_GRACE_S
        kill_at = time.monotonic() + grace
        if self.kill_at is not None:
            # A second, less patient stop shortens the first, and never lengthens it. The server
            # is not signalled again: it may be ending, and die of it instead.
            self.kill_at = min(kill_at, self.kill_at)
            return
        self.kill_at = kill_at
        try:
            os.killpg(self.child_pid, signal.SIGTERM)
        except ProcessLookupError:
            # It has left its group; its pid is ours as long as we have not reaped it.
            os.kill(self.child_pid, signal.SIGTERM)

    def _reap(self) -> int | None:
        """Collects everything that has ended; the server's exit code if it was among it."""
        code = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return code
            if pid == 0:
                return code
            if pid == self.child_pid:
                code = os.waitstatus_to_exitcode(status)

    # --- ending -----------------------------------------------------------------------------

    def _write_end(self, finished_us: int, code: int, message: str | None) -> None:
        """The end is known only here: a full disk must not lose it."""
        while True:
            try:
                self._write("exited", finished_us=finished_us, exit_code=code, message=message)
                return
            except OSError as problem:
                _say(f"event=record-not-written lease={self.lease.lease_id} problem={problem!r}")
                self._signal_all(signal.SIGKILL)
                self._reap()
                if not self.lease.path.exists():
                    return  # somebody removed the lease's folder by hand: nobody will ever read it
                time.sleep(1)

    def _clean_up(self) -> None:
        """Ends all that the server left. As their reaper we are told when there is none."""
        if self.kill_at is None or time.monotonic() < self.kill_at:
            self._signal_all(signal.SIGTERM)
            gentle_until = time.monotonic() + _LEFTOVERS_GRACE_S
            while _has_children() and time.monotonic() < gentle_until:
                signal.sigtimedwait({signal.SIGCHLD}, 0.1)
        while _has_children():
            self._signal_all(signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, 0.1)

    def _signal_all(self, signum: signal.Signals) -> None:
        for process in descendants(all_processes(), [os.getpid()]):
            send_signal(process.pid, process.start_ticks, signum)

    def _write(self, state: str, **changes: object) -> None:
        self.record = replace(self.record, state=state, **changes)  # type: ignore[arg-type]
        self.lease.write_record(self.record)


def _has_children() -> bool:
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return True
        except ChildProcessError:
            return False


def _told_to_stop() -> bool:
    return signal.SIGTERM in signal.sigpending()


def _become_child() -> None:
    """Runs in the child before exec: nothing of the supervisor's signal set-up may leak into it."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # Without its supervisor nobody would see its end, so it ends with it.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _explain(code: int, *, asked: bool) -> str | None:
    if code == -signal.SIGKILL and not asked:
        return "killed by signal 9: by the machine when memory ran out, or by somebody"
    if code < 0 and not asked:
        return f"killed by signal {-code}"
    return None


def _limit_log(log: Path) -> None:
    """Keeps the end of an overlong log in ``server.log.1`` and empties it (it is appended to)."""
    try:
        if log.stat().st_size <= LOG_LIMIT:
            return
        with log.open("rb+") as old, cut_off(log).open("wb") as kept:
            old.seek(-LOG_KEEP, os.SEEK_END)
            shutil.copyfileobj(old, kept, LOG_KEEP)
            old.truncate(0)
    except OSError as problem:
        _say(f"event=log-not-limited problem={problem!r}")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gpuslice.node.supervisor", description=__doc__)
    parser.add_argument("lease_dir", type=Path)
    parser.add_argument("--service-url", required=True)
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--patience", type=float, default=10.0)
    arguments = parser.parse_args(argv)
    ready, created = os.pipe()
    if os.fork() > 0:
        os.close(created)
        # End of file without the byte: the supervisor died before it wrote its record.
        return 0 if os.read(ready, 1) else 1
    os.setsid()
    os.close(ready)
    return _supervise(arguments, created)


def _supervise(arguments: argparse.Namespace, created: int) -> int:
    # An ignored SIGCHLD would be inherited and lose us the exit codes.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become the reaper of the server's processes")
    service = Service(arguments.service_url, arguments.token_file, arguments.patience)
    supervisor = Supervisor(LeaseDir(arguments.lease_dir), service)
    supervisor.create()
    os.write(created, b"1")
    os.close(created)
    supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
