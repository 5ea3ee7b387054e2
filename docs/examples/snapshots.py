"""Takes a snapshot of several guests' disks at one moment, in which none of them writes."""

import asyncio
import sys
from contextlib import AsyncExitStack

import xenpm
from xenpm import aio


async def snapshot_all(names, snapshot, timeout=20):
    """Suspend all guests, call `snapshot(name)` for each, and let them go on.

    One that cannot be suspended calls it off: the others go on, and the error is raised.
    """
    async with aio.Host() as host, AsyncExitStack() as down:
        domains = [await host.domain(name) for name in names]
        blocks = [domain.suspended(timeout=timeout) for domain in domains]
        entered = await asyncio.gather(
            *[down.enter_async_context(block) for block in blocks], return_exceptions=True
        )
        for outcome in entered:
            if isinstance(outcome, BaseException):
                raise outcome
        for name in names:
            snapshot(name)


if __name__ == "__main__":
    try:
        asyncio.run(snapshot_all(sys.argv[1:], print))
    except xenpm.XenError as error:
        sys.exit(f"no snapshots: {error}")
