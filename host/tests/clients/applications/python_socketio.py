"""python-socketio with AsyncRedisManager: two servers in two processes, a client of each."""

import asyncio

import socketio
from aiohttp import web
from common import PEER, ROLE, URL, numbered, ready, reconnected, subscribers


class Node:
    """A server with the handlers of the application, on a free port."""

    def __init__(self) -> None:
        self.client_left = asyncio.Event()
        self.server = socketio.AsyncServer(
            async_mode="aiohttp", client_manager=socketio.AsyncRedisManager(URL)
        )
        self.server.on("say", self.say)
        self.server.on("join", self.server.enter_room)
        self.server.on("leave", self.server.leave_room)
        self.server.on("disconnect", self.disconnected)

    async def say(self, _sid: str, room: str | None, text: str) -> None:
        await self.server.emit("said", text, room=room)

    async def disconnected(self, _sid: str, _reason: str) -> None:
        self.client_left.set()

    async def start(self) -> str:
        application = web.Application()
        self.server.attach(application)
        self.runner = web.AppRunner(application)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self.server.shutdown()
        await self.runner.cleanup()


class Client:
    """A Socket.IO client and what it received."""

    def __init__(self) -> None:
        self.received = asyncio.Queue()
        self.knocks = set()
        self.left = asyncio.Event()
        self.client = socketio.AsyncClient()
        self.client.on("said", self.said)
        self.client.on("disconnect", self.disconnected)

    async def disconnected(self, _reason: str) -> None:
        self.left.set()

    async def said(self, text: str) -> None:
        if text.startswith("knock"):
            self.knocks.add(text)
        else:
            await self.received.put(text)

    async def expect(self, texts: list[str]) -> None:
        for text in texts:
            received = await self.received.get()
            assert received == text, f"{received} instead of {text}"


async def peer() -> None:
    node = Node()
    ready(await node.start())
    await node.client_left.wait()
    await node.stop()


async def main() -> None:
    node = Node()
    here, there = Client(), Client()
    await here.client.connect(await node.start(), transports=["websocket"])
    await there.client.connect(PEER, transports=["websocket"])
    await subscribers("socketio", 2)

    async def exchange(name: str) -> None:
        for client in [here, there]:
            texts = numbered(name)
            # A call waits for the end of the handler. Handlers of one client run concurrently.
            for text in texts:
                await client.client.call("say", (None, text))
            await here.expect(texts)
            await there.expect(texts)

    await exchange("first")
    await reconnected()
    # A manager pauses for a second before it reads what it is subscribed to.
    while "knock here" not in there.knocks or "knock there" not in here.knocks:
        await here.client.call("say", (None, "knock here"))
        await there.client.call("say", (None, "knock there"))
    await exchange("second")

    # To a room with a client of the other server.
    await there.client.call("join", "red")
    await here.client.emit("say", ("red", "to red"))
    await there.expect(["to red"])
    await there.client.call("leave", "red")
    await here.client.emit("say", ("red", "to no client"))

    # From a process that only emits.
    emitter = socketio.AsyncRedisManager(URL, write_only=True)
    await emitter.emit("said", "from outside")
    await here.expect(["from outside"])
    await there.expect(["from outside"])
    assert here.received.empty() and there.received.empty()

    # A server disconnects a client of the other, which ends then.
    await node.server.disconnect(there.client.get_sid())
    await there.left.wait()
    await here.client.disconnect()
    await node.stop()


asyncio.run(peer() if ROLE == "peer" else main())
