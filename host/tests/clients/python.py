"""One half of a conversation; node.js is the other. Each line says which reply or which
message must come next, so both end with 0 only if everything came, once and in order. A
message of another client may come before the reply to what it answers."""

import asyncio
import base64
import json
import sys

import websockets


def binary(*values: int) -> dict[str, str]:
    return {"base64": base64.b64encode(bytes(values)).decode()}


async def main(url: str) -> None:
    # `websockets` offers permessage-deflate, which the server declines.
    async with websockets.connect(url, subprotocols=["switchyard.v1.json"]) as socket:

        replies: list[list] = []
        messages: list[list] = []

        async def expect(expected: list) -> None:
            queue = replies if isinstance(expected[0], int) else messages
            while not queue:
                text = await socket.recv()
                assert isinstance(text, str), "JSON travels as text"
                frame = json.loads(text)
                (replies if isinstance(frame[0], int) else messages).append(frame)
            came = queue.pop(0)
            assert came == expected, f"{came!r:.200} instead of {expected!r:.200}"

        async def say(*command: object) -> None:
            await socket.send(json.dumps(command))

        assert socket.subprotocol == "switchyard.v1.json"
        await (await socket.ping(b"are you there?"))

        await say(1, "SUBSCRIBE", "to-python")
        await expect([1, "OK", 1])
        await say(2, "PSUBSCRIBE", "chat.*")
        await expect([2, "OK", 2])

        await say(3, "PUBLISH", "to-node", "Grüße aus Python 🦀 \u0000\u2028")
        await expect([3, "OK", 1])
        await expect(["message", "to-python", "Grüße aus Node 🦀 \u0000\u2028"])

        await say(4, "PUBLISH", "to-node", binary(0, 255, 254, 128))
        await expect([4, "OK", 1])
        await expect(["message", "to-python", binary(255, 0, 193)])

        # 300 KB in parts, which are cut between characters only.
        text = json.dumps([5, "PUBLISH", "to-node", "ä" * 150_000], ensure_ascii=False)
        await socket.send([text[:50_000], text[50_000:50_001], text[50_001:]])
        await expect([5, "OK", 1])
        await expect(["message", "to-python", "ö" * 150_000])

        await say(6, "PUBLISH", "chat.ü", "one")
        await expect([6, "OK", 2])
        await expect(["pmessage", "chat.*", "chat.ü", "one"])
        await expect(["pmessage", "chat.*", "chat.ü", "two"])

        # A burst, half of it in frames of their own and half in one.
        for number in range(500):
            await say("PUBLISH", "to-node", str(number))
        await say(*(["PUBLISH", "to-node", str(number)] for number in range(500, 1000)))
        await expect(["message", "to-python", "done"])

        await say(7, "UNSUBSCRIBE")
        await expect([7, "OK", 1])
        assert not replies and not messages, (replies, messages)
        await socket.close(1000, "bye")
        assert socket.close_code == 1000, socket.close_code


asyncio.run(asyncio.wait_for(main(sys.argv[1]), timeout=60))
