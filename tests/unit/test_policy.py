"""Policies: the file of settings, the xenstore node, and who is heard first."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpm import ConfigError
from xenpm.policy import (
    OnFailure,
    OnHookFailure,
    Policy,
    Rule,
    Settings,
    merge,
    parse_rule,
    read_settings,
)
from xenpm.types import DomainRef

from .checks import outcome_of

UUID_ = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
WEB = DomainRef(3, UUID(UUID_).bytes, "web1")


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return tmp_path / "xenpm.conf"


# -- the file


def test_without_a_file_the_defaults_hold(conf: Path) -> None:
    assert read_settings(conf) == Settings()
    assert Settings().rule(WEB) == Rule()


def test_everything_said(conf: Path) -> None:
    conf.write_text(
        f"""\
# of the whole
[host]
timeout = 120
hook-timeout = 2.5
on-hook-failure = undo
save-directory = /srv/saved

[default]
policy = suspend
on-failure = undo
; of some
[domain web1]
policy = pause
timeout = 9

[domain {UUID_.upper()}]
timeout = 7
[domain my guest]
policy = abort
"""
    )
    settings = read_settings(conf)
    assert settings == Settings(
        timeout=120,
        hook_timeout=2.5,
        on_hook_failure=OnHookFailure.UNDO,
        save_directory=Path("/srv/saved"),
        default=Rule(Policy.SUSPEND, OnFailure.UNDO),
        domains={
            "web1": Rule(Policy.PAUSE, timeout=9),
            UUID_: Rule(timeout=7),
            "my guest": Rule(Policy.ABORT),
        },
    )
    assert settings.rule(WEB) == Rule(Policy.PAUSE, OnFailure.UNDO, 7)
    other = WEB._replace(handle=bytes(16))
    assert settings.rule(other) == Rule(Policy.PAUSE, OnFailure.UNDO, 9)
    assert settings.rule(other._replace(name="")) == Rule(Policy.SUSPEND, OnFailure.UNDO)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[hosts]\n", 1, "[default], [domain NAME-or-UUID]"),
        ("\n[domain]\n", 2, "unknown section"),
        ("[host]\n[default] x\n", 2, "key = value"),
        ("[host x]\n", 1, "unknown section"),
        ("[ host ]\n", 1, "unknown section"),
        ("[ ]\n", 1, "unknown section"),
        ("[default a]\n", 1, "unknown section"),
        ("[DEFAULT]\npolicy = leave\n", 1, "unknown section"),
        ("[host]\npolicy = leave\n", 2, "hook-timeout"),
        ("[default]\nPolicy = leave\n", 2, "unknown key 'Policy'"),
        ("[default]\n\npolicy = sleep\n", 3, "one of suspend, pause, save, leave, abort"),
        ("[default]\npolicy =\n", 2, "not ''"),
        ("[default]\npolicy = leave\n  pause\n", 2, "one of"),
        ("[host]\nsave-directory = saved\n", 2, "must be an absolute path"),
        ("[default]\non-failure = abort\n", 2, "one of pause, undo"),
        ("[host]\non-hook-failure = pause\n", 2, "one of ignore, undo"),
        ("[host]\ntimeout = soon\n", 2, "seconds"),
        ("[host]\ntimeout = 0\n", 2, "seconds"),
        ("[host]\nhook-timeout = nan\n", 2, "seconds"),
        ("[domain a]\ntimeout = 86401\n", 2, "seconds"),
        ("policy = leave\n", 1, "[section]"),
        ("[default]\nleave\n", 2, "key = value"),
        ("[default]\npolicy = leave\npolicy = leave\n", 3, "already"),
        ("[host]\n[default]\n[host]\n", 3, "already"),
        (f"[domain {UUID_}]\n[domain {UUID_.upper()}]\n", 2, "already"),
        ("[domain a]\n[domain  a]\n", 2, "already"),
    ],
)
def test_mistakes_in_the_file(conf: Path, text: str, line: int, words: str) -> None:
    conf.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_settings(conf)
    assert (caught.value.source, caught.value.line) == (str(conf), line)
    assert words in str(caught.value)


def test_not_utf8(conf: Path) -> None:
    conf.write_bytes(b"[host]\n# gr\xfcn\n")
    with pytest.raises(ConfigError, match="UTF-8") as caught:
        read_settings(conf)
    assert caught.value.line == 2


def test_unreadable(conf: Path) -> None:
    conf.mkdir()
    with pytest.raises(ConfigError, match=os.strerror(21)):
        read_settings(conf)


@given(st.text(alphabet="[]=#;\n\t defaulthosmin:policy\u2028\x00", max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("conf") / "xenpm.conf"
    path.write_bytes(text.encode())
    error = outcome_of(lambda: read_settings(path))
    assert not isinstance(error, ConfigError) or error.line is not None


# -- the node in xenstore


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", Rule()),
        (" suspend\n", Rule(Policy.SUSPEND)),
        ("suspend timeout=60 on-failure=undo", Rule(Policy.SUSPEND, OnFailure.UNDO, 60)),
        ("on-failure=pause  abort", Rule(Policy.ABORT, OnFailure.PAUSE)),
        ("timeout=.5", Rule(timeout=0.5)),
    ],
)
def test_rule(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("sleep", 1, "one of suspend, pause, save, leave, abort"),
        ("leave save", 7, "more than one policy"),
        ("leave  timeout=x", 8, "seconds"),
        ("leave timeout=1 timeout=2", 17, "more than one timeout"),
        ("policy=leave", 1, "unknown word"),
        ("on_failure=undo", 1, "on-failure=pause|undo"),
        ("timeout", 1, "one of suspend"),
        ("=", 1, "unknown word"),
    ],
)
def test_mistakes_in_a_rule(text: str, column: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rule(text, "/local/domain/3/xenpm/policy")
    assert caught.value.source == "/local/domain/3/xenpm/policy"
    assert (caught.value.line, caught.value.column) == (1, column)
    assert words in str(caught.value)


@given(st.text(max_size=40))
def test_any_rule_is_read_or_refused(text: str) -> None:
    rule = outcome_of(lambda: parse_rule(text))
    assert isinstance(rule, ConfigError) or parse_rule(str(rule)) == rule


# -- who is heard


def test_first_said_wins() -> None:
    call = Rule(on_failure=OnFailure.UNDO)
    node = Rule(Policy.LEAVE, OnFailure.PAUSE)
    file = Rule(Policy.ABORT, timeout=4)
    assert merge(call, node, file) == Rule(Policy.LEAVE, OnFailure.UNDO, 4)
    assert merge() == Rule()


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r"])
def test_place_after_other_line_ends(separator: str, tmp_path: Path) -> None:
    """Lines end where configparser and an editor see them end."""
    path = tmp_path / "xenpm.conf"
    path.write_bytes(f"[host]\n# a{separator}b\ntimeout = soon\n".encode())
    with pytest.raises(ConfigError, match=r"xenpm.conf:3: must be seconds"):
        read_settings(path)
