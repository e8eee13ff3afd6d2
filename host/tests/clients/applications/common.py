"""What the Python applications share: the words of the command line, and waiting for the server."""

import asyncio
import sys

from redis import asyncio as redis

PORT, ROLE = int(sys.argv[1]), sys.argv[2]
# What the peer printed after `ready`.
PEER = sys.argv[4] if len(sys.argv) > 4 else ""
URL = f"redis://127.0.0.1:{PORT}"
COUNT = 100


def numbered(name: str) -> list[str]:
    return [f"{name} {number} é" for number in range(COUNT)]


def ready(text: str = "") -> None:
    print("ready", text, flush=True)


async def subscribers(channel: str, count: int) -> None:
    """Waits until the channel has this number of subscribers. The libraries do not wait for the
    acknowledgement of a SUBSCRIBE or UNSUBSCRIBE."""
    async with redis.Redis(port=PORT) as client:
        while (await client.pubsub_numsub(channel))[0][1] != count:
            pass


async def reconnected() -> None:
    """Has all connections closed, and waits until all subscriptions are there again."""
    print("reconnect", flush=True)
    assert await asyncio.to_thread(sys.stdin.readline) == "reconnected\n"
