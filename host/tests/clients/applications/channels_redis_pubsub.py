"""Django Channels' Pub/Sub layer: two processes exchange messages, by channel and by group."""

import asyncio

from channels_redis.pubsub import RedisPubSubChannelLayer
from common import PEER, ROLE, URL, numbered, ready, reconnected, subscribers
from redis.exceptions import ConnectionError

GROUP = "asgi__group__chat"


async def retried(send, *arguments) -> None:
    """The layer subscribes again when its connections were closed; the first message that it sends
    then fails."""
    try:
        await send(*arguments)
    except ConnectionError:
        await send(*arguments)


async def peer(layer: RedisPubSubChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add("chat", channel)
    await subscribers(channel, 1)
    await subscribers(GROUP, 1)
    ready(channel)
    while (message := await layer.receive(channel))["type"] != "leave":
        await retried(layer.send, message["from"], {**message, "type": "echo"})
    await layer.group_discard("chat", channel)
    await subscribers(GROUP, 1)
    await layer.send(message["from"], {"type": "left"})


async def main(layer: RedisPubSubChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add("chat", channel)
    await subscribers(channel, 1)
    await subscribers(GROUP, 2)

    async def by_channel(texts: list[str]) -> None:
        for text in texts:
            await retried(layer.send, PEER, {"type": "say", "from": channel, "text": text})
        for text in texts:
            message = await layer.receive(channel)
            assert message == {"type": "echo", "from": channel, "text": text}, message

    async def by_group(texts: list[str]) -> None:
        for text in texts:
            await layer.group_send("chat", {"type": "say", "from": channel, "text": text})
        received = {"say": [], "echo": []}
        for _ in range(2 * len(texts)):
            message = await layer.receive(channel)
            received[message["type"]].append(message["text"])
        assert received == {"say": texts, "echo": texts}, received

    for name in ["first", "second"]:
        await by_channel(numbered(name))
        await by_group(numbered(name))
        if name == "first":
            await reconnected()

    await layer.send(PEER, {"type": "leave", "from": channel})
    assert await layer.receive(channel) == {"type": "left"}
    await layer.group_send("chat", {"type": "say", "text": "to the one that stayed"})
    assert (await layer.receive(channel))["text"] == "to the one that stayed"


async def run() -> None:
    layer = RedisPubSubChannelLayer(hosts=[URL])
    await (peer(layer) if ROLE == "peer" else main(layer))
    await layer.flush()


asyncio.run(run())
