"""broadcaster with its Redis backend: two processes exchange messages. It does not subscribe again
when its connection was closed."""

import asyncio

from broadcaster import Broadcast
from common import ROLE, URL, numbered, ready, subscribers


async def peer() -> None:
    async with Broadcast(URL) as broadcast:
        async with broadcast.subscribe("to-peer") as subscriber:
            await subscribers("to-peer", 1)
            ready()
            async for event in subscriber:
                if event.message == "leave":
                    break
                await broadcast.publish("to-main", event.message)
        await subscribers("to-peer", 0)
        await broadcast.publish("to-main", "left")


async def main() -> None:
    async with Broadcast(URL) as broadcast, broadcast.subscribe("to-main") as subscriber:
        await subscribers("to-main", 1)

        async def there_and_back(messages: list[str]) -> None:
            for message in messages:
                await broadcast.publish("to-peer", message)
            for message in messages:
                event = await subscriber.get()
                assert (event.channel, event.message) == ("to-main", message), event

        await there_and_back(numbered("first"))

        await broadcast.publish("to-peer", "leave")
        assert (await subscriber.get()).message == "left"
        # A second subscriber in the same process receives the same, once.
        async with broadcast.subscribe("to-main") as second:
            await broadcast.publish("to-peer", "unread")
            await broadcast.publish("to-main", "to both")
            assert (await subscriber.get()).message == "to both"
            assert (await second.get()).message == "to both"


asyncio.run(peer() if ROLE == "peer" else main())
