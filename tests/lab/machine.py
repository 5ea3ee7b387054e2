"""One emulated computer with Xen and dom0 on it: started from a snapshot, then thrown away."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from . import cache, qemu
from .cache import LabError
from .image import Image

MEMORY = "6G"
XEN_OPTIONS = "dom0_mem=2048M,max:2048M console=com1 com1=115200 loglvl=all guest_loglvl=all"
# Emulated memory starts zeroed, so Xen need not see to it; no hardware, no side channels.
XEN_OPTIONS += " bootscrub=0 spec-ctrl=no"
LINUX_OPTIONS = "root=/dev/vda rw console=hvc0 net.ifnames=0 mitigations=off"

SAVE_ATTEMPTS = 40

# The commands that running a machine takes, and the Debian packages that bring them.
TOOLS = {qemu.NAME: "qemu-system-x86", "qemu-img": "qemu-utils", "ssh": "openssh-client"}

# After the first wake the emulated chipset has forgotten how to sleep; see `Machine.sleep_quirk`.
SLEEP_QUIRK = "setpci -s 00:1f.0 40.l=00000601; setpci -s 00:1f.0 44.b=80"


class QemuError(LabError):
    """QEMU refused a command or is gone."""


class LoadError(QemuError):
    """QEMU cannot continue from a saved state."""


class Qmp:
    """QEMU's control connection: commands, and the events that arrive in between."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""
        self.events: collections.deque[dict[str, Any]] = collections.deque(maxlen=1000)

    def greet(self, timeout: float = 30) -> None:
        """Take QEMU's greeting and leave its negotiation mode."""
        self._message(time.monotonic() + timeout, "the greeting of QEMU")
        self.command("qmp_capabilities")

    def command(self, name: str, timeout: float = 60, **arguments: object) -> Any:
        """Run one command and return what it returns."""
        request = {
            "execute": name,
            "arguments": {k.replace("_", "-"): v for k, v in arguments.items()},
        }
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as gone:
            raise QemuError(f"QEMU is gone, asked to {name}: {gone}") from gone
        deadline = time.monotonic() + timeout
        while True:
            message = self._message(deadline, f"the answer to {name}")
            if "error" in message:
                raise QemuError(f"QEMU refused {name}: {message['error'].get('desc')}")
            if "return" in message:
                return message["return"]

    def wait_event(
        self, name: str, timeout: float, accept: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> dict[str, Any]:
        """The data of the next event of that name, also of one that came before; it is taken."""
        deadline = time.monotonic() + timeout
        while True:
            for event in list(self.events):
                if event["event"] == name and accept(event.get("data", {})):
                    self.events.remove(event)
                    return dict(event.get("data", {}))
            self._message(deadline, f"the event {name}")

    def forget_events(self) -> None:
        """Drop the events that have arrived, before provoking one that is then waited for."""
        while self._buffer or select.select([self._socket], [], [], 0)[0]:
            self._message(time.monotonic() + 5, "a whole message")
        self.events.clear()

    def _message(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                raise QemuError(f"waited in vain for {what}")
            data = self._receive()
            if not data:
                raise QemuError(f"QEMU ended while waiting for {what}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self.events.append(message)
        return message

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Machine:
    """A running emulated computer; use `Machine.start` or, to make snapshots, `Machine.launch`."""

    def __init__(
        self, image: Image, directory: Path, process: subprocess.Popen[bytes], qmp: Qmp
    ) -> None:
        self.image = image
        self.release = image.release
        self.directory = directory
        self.qmp = qmp
        self._process = process
        self._port = 0

    # ---- starting and ending ----

    @staticmethod
    @contextlib.contextmanager
    def start(release: str, scene: str = "trio") -> Iterator[Machine]:
        """A fresh host of a scene, its guests counting, ready for commands."""
        from . import snapshots

        with snapshots.start(release, scene) as machine:
            yield machine

    @staticmethod
    @contextlib.contextmanager
    def launch(
        image: Image, directory: Path, disk: Path, memory: Path, *, share: bool, state: Path | None
    ) -> Iterator[Machine]:
        """Start QEMU on a disk and a memory file, from a saved state or from the beginning."""
        with cache.turn():
            yield from Machine._run(image, directory, _storage(disk, memory, share=share), state)

    @staticmethod
    def _run(
        image: Image,
        directory: Path,
        storage: list[str],
        state: Path | None,
        *,
        cont: bool = True,
    ) -> Iterator[Machine]:
        ours, theirs = socket.socketpair()
        command = [*qemu_command(image), *storage]
        command += ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}"]
        command += ["-mon", "chardev=qmp,mode=control"]
        command += ["-chardev", f"file,id=com1,path={directory / 'serial.log'}"]
        command += ["-serial", "chardev:com1"]
        if state:
            command += ["-incoming", "defer"]
        with (directory / "qemu.log").open("wb") as log:
            process = subprocess.Popen(
                cache.dying_with_us(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        machine = Machine(image, directory, process, Qmp(ours))
        try:
            try:
                machine._begin(state, cont=cont)
            except QemuError as problem:
                said = (directory / "qemu.log").read_text(errors="replace").strip()
                raise type(problem)(f"{problem}; QEMU said: {said or 'nothing'}") from problem
            yield machine
        finally:
            machine._end()

    def _begin(self, state: Path | None, *, cont: bool) -> None:
        self.qmp.greet()
        capabilities = ["events", "x-ignore-shared"]
        self.qmp.command(
            "migrate-set-capabilities",
            capabilities=[{"capability": name, "state": True} for name in capabilities],
        )
        if state:
            self._load(state)
            if cont:
                self.qmp.command("cont")
        network = self.qmp.command("human-monitor-command", command_line="info usernet")
        match = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", network)
        if not match:
            raise QemuError(f"no forwarded port in: {network}")
        self._port = int(match.group(1))

    def _load(self, state: Path) -> None:
        try:
            self.qmp.command("migrate-incoming", uri=f"exec:cat {state}")
            ended = self.qmp.wait_event("MIGRATION", 60, _migration_ended)
        except QemuError as gone:
            raise LoadError(f"QEMU ended while it loaded the saved state: {gone}") from gone
        if ended["status"] != "completed":
            raise LoadError("QEMU could not load the saved state")

    def _end(self) -> None:
        self.disconnect()
        self._process.kill()
        self._process.wait()
        self.qmp.close()

    @property
    def alive(self) -> bool:
        """Whether QEMU runs. It ends when the machine is powered off, is reset, or Xen panics."""
        return self._process.poll() is None

    def wait_end(self, timeout: float) -> None:
        """Wait until QEMU has ended by itself."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired as late:
            raise LabError(f"the machine still runs after {timeout:.0f} s") from late

    def save(self, state: Path, scratch_disk: Path, memory: Path) -> None:
        """Stop the machine and write its state; disk and memory are in their files already.

        QEMU writes, but cannot load, the state of a processor that is inside a PVH guest at that
        moment. So each state is tried out, and another moment is taken if it does not load.
        """
        self.disconnect()
        self.qmp.command("migrate-set-parameters", max_bandwidth=2**40)
        for _ in range(SAVE_ATTEMPTS):
            self.qmp.command("stop")
            self.qmp.command("migrate", uri=f"exec:cat > {state}")
            ended = self.qmp.wait_event("MIGRATION", 120, _migration_ended)
            if ended["status"] != "completed":
                raise QemuError("QEMU could not save its state")
            if self._loads(state, scratch_disk, memory):
                self.qmp.command("quit")
                self.wait_end(60)
                return
            self.qmp.command("cont")
            # Nothing tells when no processor is inside a guest.
            time.sleep(0.1)
        raise QemuError(f"no loadable state in {SAVE_ATTEMPTS} attempts")

    def _loads(self, state: Path, disk: Path, memory: Path) -> bool:
        with cache.scratch("load") as directory:
            storage = _storage(disk, memory, share=False)
            trial = contextlib.contextmanager(Machine._run)
            try:
                with trial(self.image, directory, storage, state, cont=False):
                    return True
            except LoadError:
                return False

    # ---- commands in dom0 ----

    def ssh_command(self, *words: str, tty: bool = False) -> list[str]:
        """The ssh command line for a command in dom0; to be run in `directory`."""
        options = [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ControlPath=ssh",
            "ConnectTimeout=30",
            "Ciphers=chacha20-poly1305@openssh.com",
        ]
        command = ["ssh", "-F", "none", "-i", str(self.image.ssh_key), "-p", str(self._port)]
        command += [f"-o{option}" for option in options]
        if tty:
            command.append("-tt")
        return [*command, "root@127.0.0.1", *words]

    def connect(self, timeout: float = 180) -> None:
        """Open the connection that all commands share once dom0 answers; set dom0's clock."""
        deadline = time.monotonic() + timeout
        master = [*self.ssh_command()[:-1], "-M", "-N", "-f", "root@127.0.0.1"]
        complaints = self.directory / "ssh-connect.log"
        while True:
            left = max(1.0, deadline - time.monotonic())
            # No event says that sshd listens; a refused connection comes back at once.
            # To a file, for the shared connection that stays would keep a pipe open.
            with contextlib.suppress(subprocess.TimeoutExpired), complaints.open("w") as errors:
                done = subprocess.run(
                    master,
                    cwd=self.directory,
                    timeout=left,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    check=False,
                )
                if done.returncode == 0:
                    break
            self._check_alive()
            if time.monotonic() > deadline:
                raise LabError(
                    f"dom0 did not answer in {timeout:.0f} s; ssh said:\n"
                    f"{complaints.read_text()}\nXen's last words:\n{self.last_words()}"
                )
            time.sleep(0.25)
        self.ssh(f"date -s @{time.time():.3f} >/dev/null")

    def disconnect(self) -> None:
        """Close the shared connection, if it is open."""
        if (self.directory / "ssh").exists():
            command = self.ssh_command()
            subprocess.run(
                [*command[:-1], "-O", "exit", command[-1]],
                cwd=self.directory,
                timeout=30,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )

    def ssh(
        self,
        command: str,
        *,
        timeout: float = 60,
        check: bool = True,
        input_: bytes | IO[bytes] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command in dom0; an error, unless told otherwise, when it fails."""
        words = self.ssh_command(command)
        # subprocess wants either what to send or where to read it from.
        source: dict[str, Any] = (
            {"input": input_}
            if isinstance(input_, bytes)
            else {"stdin": input_ or subprocess.DEVNULL}
        )
        try:
            done = subprocess.run(
                words,
                cwd=self.directory,
                timeout=timeout,
                capture_output=True,
                check=False,
                **source,
            )
        except subprocess.TimeoutExpired as late:
            self._check_alive()
            raise LabError(f"in dom0, not done after {timeout:.0f} s: {command}") from late
        result = subprocess.CompletedProcess(
            command,
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )
        if done.returncode == 255:
            self._check_alive()
        if check and done.returncode:
            raise LabError(
                f"in dom0, status {done.returncode}: {command}\n{result.stdout}{result.stderr}"
            )
        return result

    def stream(self, command: str, on_line: Callable[[str], None], *, timeout: float) -> int:
        """Run a command in dom0 and hand over each line of its output as it comes; its status."""
        deadline = time.monotonic() + timeout
        process = subprocess.Popen(
            cache.dying_with_us(self.ssh_command(command)),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        pending = b""
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                    unfinished = pending.decode(errors="replace")
                    raise LabError(f"not done after {timeout:.0f} s, at: {unfinished}")
                data = os.read(process.stdout.fileno(), 65536)
                *lines, pending = (pending + data).split(b"\n")
                for line in [*lines, *([pending] if not data and pending else [])]:
                    on_line(line.decode(errors="replace").rstrip("\r"))
                if not data:
                    break
            status = process.wait(max(1.0, deadline - time.monotonic()))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if status == 255:
            self._check_alive()
        return status

    def put(self, local: Path, remote: str, *, timeout: float = 120) -> None:
        """Copy a file into dom0."""
        with local.open("rb") as source:
            self.ssh(f"cat > {remote}", input_=source, timeout=timeout)

    def get(self, remote: str, local: Path, *, timeout: float = 120) -> None:
        """Copy a file out of dom0."""
        local.write_bytes(self.read(remote, timeout=timeout))

    def read(self, remote: str, *, timeout: float = 120) -> bytes:
        """The content of a file in dom0."""
        done = subprocess.run(
            self.ssh_command(f"cat {remote}"),
            cwd=self.directory,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        if done.returncode:
            raise LabError(
                f"reading {remote} in dom0: {done.stderr.decode(errors='replace').strip()}"
            )
        return done.stdout

    # ---- what a test may want besides ----

    def sleep_quirk(self) -> None:
        """Put right, before each S3, what the emulated chipset forgot at the last wake."""
        self.ssh(SLEEP_QUIRK)

    def through_sleep(
        self, command: str, *, seconds: float | None = 5.0, timeout: float = 300
    ) -> tuple[int, str]:
        """Run a command in dom0 that puts the machine to sleep, wake it, and wait for the end.

        Args:
            command: a shell command.
            seconds: how long the machine sleeps; None: it is not to sleep at all.
            timeout: seconds until it sleeps, and again from its wake-up to the command's end.

        Returns:
            The command's exit status, and all that it has written.
        """
        if seconds is not None:
            self.sleep_quirk()
        self.qmp.forget_events()
        # not a child of the connection, which does not outlive the sleep
        done = "/root/through-sleep"
        script = (
            f"{{ {command}\n}} > {done}.out 2>&1\n"
            f"echo $? > {done}.new; mv {done}.new {done}.status\n"
        )
        self.ssh(f"rm -f {done}.* && cat > {done}", input_=script.encode())
        self.ssh(f"setsid sh {done} </dev/null >/dev/null 2>&1 &")
        if seconds is not None:
            self.wake_after(seconds, timeout)
        self.ssh(
            f"timeout {timeout} sh -c 'until [ -e {done}.status ]; do sleep 0.2; done'",
            timeout=timeout + 30,
        )
        if seconds is None and any(event["event"] == "SUSPEND" for event in self._events()):
            raise LabError(f"the machine has slept: {command}")
        return int(self.read(f"{done}.status")), self.read(f"{done}.out").decode(errors="replace")

    def wake_after(self, seconds: float, timeout: float = 120) -> None:
        """Wait until the machine sleeps, at most `timeout`, and wake it so many seconds later."""
        self.qmp.wait_event("SUSPEND", timeout)
        time.sleep(seconds)  # the length of the sleep; nothing is waited for
        self.qmp.command("system_wakeup")
        self.qmp.wait_event("WAKEUP", 60)
        self.disconnect()
        self.connect()

    def _events(self) -> list[dict[str, Any]]:
        self.qmp.command("query-status")  # takes the events that have come
        return list(self.qmp.events)

    def serial_log(self) -> str:
        """All that Xen and dom0's kernel have written since this machine was started."""
        return (self.directory / "serial.log").read_text(errors="replace")

    def last_words(self, lines: int = 25) -> str:
        """The end of the serial log."""
        return "\n".join(self.serial_log().splitlines()[-lines:])

    def _check_alive(self) -> None:
        if not self.alive:
            raise QemuError(f"the machine is gone; Xen's last words:\n{self.last_words()}")


def qemu_command(image: Image) -> list[str]:
    """What every machine of a release has in common; a saved state fits only to the very same."""
    linux = f"{image.kernel} {LINUX_OPTIONS}".replace(",", ",,")
    return [
        str(qemu.qemu()),
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "qemu64,+svm,+npt",
        "-m",
        MEMORY,
        "-smp",
        "2",
        "-machine",
        "q35,kernel-irqchip=split,memory-backend=ram",
        "-device",
        "intel-iommu",
        "-kernel",
        str(image.xen),
        "-append",
        XEN_OPTIONS,
        "-initrd",
        f"{linux},{image.initrd}",
        "-device",
        "virtio-blk-pci,drive=disk,addr=2",
        "-netdev",
        "user,id=n0,hostfwd=tcp:127.0.0.1:0-:22",
        "-device",
        "virtio-net-pci,netdev=n0,addr=3,romfile=",
        "-netdev",
        "user,id=n1",
        "-device",
        "e1000e,netdev=n1,addr=0x10,romfile=",
    ]


def _storage(disk: Path, memory: Path, *, share: bool) -> list[str]:
    backend = f"memory-backend-file,id=ram,size={MEMORY},mem-path={memory}"
    return [
        "-drive",
        f"file={disk},if=none,id=disk,cache=unsafe",
        "-object",
        f"{backend},share={'on' if share else 'off'}",
    ]


def qemu_version() -> str:
    """The version of QEMU, part of what a saved state depends on."""
    cache.require(TOOLS)
    return cache.run(qemu.NAME, "--version").splitlines()[0]


def _migration_ended(data: dict[str, Any]) -> bool:
    return data.get("status") in ("completed", "failed", "cancelled")
