"""The conversation with a device model, over a real socket."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenpm.qmp import Conversation, QmpModels

GREETING = b'{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}\r\n'
DONE = b'{"return": {}}\r\n'


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "qmp-libxl-5"))
        server.listen(1)
        server.settimeout(10)
        yield server


@pytest.fixture
def models(tmp_path: Path) -> QmpModels:
    return QmpModels(tmp_path)


def say(client: socket.socket, job: Conversation, data: bytes) -> None:
    client.sendall(data)
    job.work()


def asked(client: socket.socket) -> str:
    return str(json.loads(client.recv(4096))["execute"])


def status(name: str) -> bytes:
    return b'{"return": {"status": "%s", "running": false}}\r\n' % name.encode()


@pytest.mark.parametrize("command", ["stop", "cont"])
def test_command(qemu: socket.socket, models: QmpModels, command: str) -> None:
    job = models.ask(5, command)
    client, _ = qemu.accept()
    with client:
        assert job.descriptors
        job.work()  # nothing has come yet
        say(client, job, GREETING)
        assert asked(client) == "qmp_capabilities"
        say(client, job, DONE)
        assert asked(client) == command
        say(client, job, b'{"event": "STOP", "timestamp": {}}\r\n')
        say(client, job, DONE[:5])
        say(client, job, DONE[5:])
        assert asked(client) == "query-status"
        say(client, job, status("paused"))
        assert not job.descriptors
        assert job.output == "paused"
        assert (job.result().status, job.result().error) == (None, "")
        assert client.recv(1) == b"", "the connection is in the way of the next one"


def test_only_asked_how_it_is(qemu: socket.socket, models: QmpModels) -> None:
    job = models.ask(5, "")
    client, _ = qemu.accept()
    with client:
        say(client, job, GREETING)
        say(client, job, DONE)
        assert [json.loads(line)["execute"] for line in client.recv(4096).splitlines()] == [
            "qmp_capabilities",
            "query-status",
        ]
        say(client, job, status("running"))
        assert job.result().output == "running"


def test_no_model(models: QmpModels) -> None:
    job = models.ask(5, "stop")
    assert job.done
    assert job.result().status == errno.ENOENT
    assert "qmp-libxl-5" in job.result().error


def test_dead_model(qemu: socket.socket, models: QmpModels) -> None:
    qemu.close()
    assert models.ask(5, "stop").result().status == errno.ECONNREFUSED


@pytest.mark.usefixtures("qemu")
def test_others_wait_already(models: QmpModels) -> None:
    waiting = [models.ask(5, "stop") for _ in range(2)]
    assert models.ask(5, "stop").result().status == errno.EAGAIN
    for job in waiting:
        job.close()


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (b'{"error": {"class": "GenericError", "desc": "Not now"}}\n', "refuses stop: Not now"),
        (b"nonsense\n", "makes no sense"),
        (b"[]\n", "makes no sense"),
        (b"7\n", "makes no sense"),
        (b"\xff\xfe\n", "makes no sense"),
        (b"[" * 60_000 + b"\n", "makes no sense"),
        (b'{"error": 7}\n', "makes no sense"),
        (b'{"returns": {}}\n', "makes no sense"),
    ],
)
def test_answers_that_are_none(
    qemu: socket.socket, models: QmpModels, said: bytes, what: str
) -> None:
    job = models.ask(5, "stop")
    client, _ = qemu.accept()
    with client:
        say(client, job, GREETING)
        say(client, job, DONE)
        say(client, job, said)
        assert job.done
        assert what in job.result().error
        assert job.result().output == ""


@pytest.mark.parametrize("after", [b"", GREETING, GREETING + DONE])
def test_model_dies(qemu: socket.socket, models: QmpModels, after: bytes) -> None:
    job = models.ask(5, "stop")
    client, _ = qemu.accept()
    if after:
        say(client, job, after)
    client.close()
    job.work()
    assert job.done
    assert job.result().status in (errno.EPIPE, errno.ECONNRESET)


def test_model_that_does_not_stop_writing(qemu: socket.socket, models: QmpModels) -> None:
    job = models.ask(5, "stop")
    client, _ = qemu.accept()
    with client:
        for _ in range(40):
            if not job.done:
                say(client, job, b"x" * 60_000)
    assert "does not stop writing" in job.result().error


def test_let_go_of(qemu: socket.socket, models: QmpModels) -> None:
    job = models.ask(5, "stop")
    client, _ = qemu.accept()
    with client:
        job.signal(15)
        job.close()
        job.close()
        assert job.done
        assert client.recv(1) == b""
