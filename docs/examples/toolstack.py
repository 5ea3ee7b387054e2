"""A toolstack in small: a server that suspends and resumes guests for others, on asyncio.

    python toolstack.py /run/toolstack.sock
    echo 'suspend web1' | nc -UN /run/toolstack.sock

A request is a line: ``list``, ``suspend NAME``, ``resume NAME`` or ``sleep``; the answer is a
line of JSON. Any number of clients are served at once. The server resumes only what it has
suspended, and all of that when it ends, also by Ctrl-C or SIGTERM. Everybody who may open the
socket may do all this: it is made for its owner alone.
"""

import asyncio
import json
import os
import signal
import sys

import xenpm
from xenpm import aio

VERBS = {"list": 0, "suspend": 1, "resume": 1, "sleep": 0}  # with how many arguments


class Toolstack:
    """What the server knows: the host, and which guests it has suspended."""

    def __init__(self, host):
        self.host = host
        self.ours = {}  # by UUID
        self.clients = set()  # the tasks that serve them

    async def list(self):
        """All guests, with their states."""
        return {"guests": {each.name: each.state.value for each in await self.host.domains()}}

    async def suspend(self, name):
        """Suspend a guest, and remember it."""
        domain = await self.host.domain(name)
        suspension = await domain.suspend(timeout=20)
        self.ours[domain.uuid] = domain
        return {"milliseconds": suspension.total_ns / 1e6}

    async def resume(self, name):
        """Resume a guest that this server has suspended."""
        domain = self.ours.get((await self.host.domain(name)).uuid)
        if domain is None:
            raise PermissionError(f"{name} was not suspended by this server")
        resumption = await domain.resume()
        self.ours.pop(domain.uuid, None)
        return {"cooperative": resumption.cooperative}

    async def sleep(self):
        """Put the whole host to sleep; what is suspended already stays so."""
        return {"problems": (await self.host.suspend("mem")).problems}

    async def follow(self):
        """Note what becomes of the guests; forget those that others have resumed or destroyed."""
        ends = (xenpm.DomainEventKind.RESUMED, xenpm.DomainEventKind.GONE)
        async for event in self.host.events():
            print(event)
            if event.kind in ends:
                self.ours.pop(event.domain.uuid, None)

    async def answer(self, line):
        """The answer to a request; an error is one, too."""
        verb, *arguments = line.split()
        if VERBS.get(verb) != len(arguments):
            return {"ok": False, "error": "usage", "message": f"verbs and arguments: {VERBS}"}
        try:
            return {"ok": True, **(await getattr(self, verb)(*arguments))}
        except (xenpm.XenError, PermissionError) as error:
            return {"ok": False, "error": type(error).__name__, "message": str(error)}

    async def serve_client(self, reader, writer):
        """Answer one client's requests, one after the other."""
        self.clients.add(asyncio.current_task())
        try:
            while line := (await reader.readline()).decode("utf-8", "replace").strip():
                writer.write(json.dumps(await self.answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # gone, or a line without end
            pass
        finally:
            self.clients.discard(asyncio.current_task())
            writer.close()

    async def end(self):
        """End what is under way, and let go of all guests that this server has suspended."""
        for client in self.clients:
            client.cancel()
        await asyncio.gather(*self.clients, return_exceptions=True)
        for domain in list(self.ours.values()):
            try:
                await domain.resume()
            except xenpm.XenError as error:
                print(f"not resumed: {error}", file=sys.stderr)


async def serve(path, stop):
    """Serve until the event `stop` is set, or nobody tells what becomes of the guests any more."""
    async with aio.Host() as host:
        toolstack = Toolstack(host)
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(toolstack.serve_client, path)
        finally:
            os.umask(before)
        print("at your service")
        waiting = [asyncio.ensure_future(each) for each in (toolstack.follow(), stop.wait())]
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            server.close()
            os.unlink(path)
            for each in waiting:
                each.cancel()
            await toolstack.end()


async def main():
    """Serve until Ctrl-C or SIGTERM."""
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await serve(sys.argv[1], stop)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main())
