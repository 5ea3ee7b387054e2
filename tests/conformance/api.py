"""`xenpm` and `xenpm.aio` used in one and the same way."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import pytest

import xenpm
from xenpm import aio

T = TypeVar("T")

#: how the verbs are called: as they stand, or by an event loop
APIS = ("blocking", "asyncio", "uvloop")


class Api:
    """Makes hosts and domains; those of `xenpm.aio` are wrapped so that they block."""

    def __init__(self, name: str) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        if name == "asyncio":
            self._loop = asyncio.new_event_loop()
        elif name == "uvloop":
            self._loop = pytest.importorskip("uvloop").new_event_loop()
        self._hosts = ExitStack()

    def host(self) -> xenpm.Host:
        """A connection to the host, which `close` closes."""
        if self._loop is None:
            return self._hosts.enter_context(xenpm.Host())
        host = _Blocking(self._loop, self.run(_made(aio.Host)))
        self._hosts.callback(host.close)
        return cast(xenpm.Host, host)

    def domain(self, reference: str) -> xenpm.Domain:
        """A domain on the default connection."""
        if self._loop is None:
            return xenpm.Domain(reference)
        domain = self.run(_made(lambda: aio.Domain(reference)))
        return cast(xenpm.Domain, _Blocking(self._loop, domain))

    @property
    def has_loop(self) -> bool:
        """Whether there is something that could be cancelled."""
        return self._loop is not None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns."""
        assert self._loop is not None
        return self._loop.run_until_complete(coroutine)

    def close(self) -> None:
        self._hosts.close()
        if self._loop is not None:
            self._loop.close()


async def _made(make: Callable[[], T]) -> T:
    return make()


class _Blocking:
    """An object of `xenpm.aio` whose coroutines are run to their ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, inner: Any) -> None:
        self._loop, self._inner = loop, inner

    def __eq__(self, other: object) -> bool:
        return self._inner == _unwrapped(other)  # type: ignore[no-any-return]

    def __hash__(self) -> int:
        return hash(self._inner)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._wrapped(found(*_unwrapped([*args]), **_unwrapped(kwargs)))

        return call

    def _wrapped(self, value: Any) -> Any:
        if inspect.iscoroutine(value):
            return self._wrapped(self._loop.run_until_complete(value))
        if isinstance(value, AsyncIterator):
            return self._iterate(value)
        if hasattr(value, "__aenter__"):
            return self._within(value)
        if isinstance(value, aio.Domain):
            return _Blocking(self._loop, value)
        if isinstance(value, list):
            return [self._wrapped(each) for each in value]
        if isinstance(value, dict):
            return {self._wrapped(key): self._wrapped(each) for key, each in value.items()}
        return value

    def _iterate(self, values: Any) -> Iterator[Any]:
        while True:
            yield self._loop.run_until_complete(values.__anext__())

    @contextmanager
    def _within(self, manager: Any) -> Iterator[Any]:
        value = self._loop.run_until_complete(manager.__aenter__())
        try:
            yield value
        except BaseException as error:
            exit_ = manager.__aexit__(type(error), error, error.__traceback__)
            if not self._loop.run_until_complete(exit_):
                raise
        else:
            self._loop.run_until_complete(manager.__aexit__(None, None, None))


def _unwrapped(value: Any) -> Any:
    if isinstance(value, _Blocking):
        return value._inner
    if isinstance(value, list):
        return [_unwrapped(each) for each in value]
    if isinstance(value, dict):
        return {_unwrapped(key): _unwrapped(each) for key, each in value.items()}
    return value
