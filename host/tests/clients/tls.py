"""Subscribes and publishes over wss. The second word is the CA; the third, if there
is one, the newest TLS version to speak: then it says which was spoken."""

import asyncio
import json
import ssl
import sys

import websockets


async def main(url: str, ca: str, newest: str | None) -> None:
    context = ssl.create_default_context(cafile=ca)
    if newest:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion[newest]
        # What OpenSSL itself would not speak any more.
        context.set_ciphers("ALL:@SECLEVEL=0")
    async with websockets.connect(url, ssl=context) as socket:
        print(socket.transport.get_extra_info("ssl_object").version())
        await socket.send('[1,"SUBSCRIBE","a"]')
        assert json.loads(await socket.recv()) == [1, "OK", 1]
        payload = "x" * 900_000
        await socket.send(json.dumps([2, "PUBLISH", "a", payload]))
        assert json.loads(await socket.recv()) == [2, "OK", 1]
        assert json.loads(await socket.recv()) == ["message", "a", payload]
    assert socket.close_code == 1000, socket.close_code


asyncio.run(asyncio.wait_for(main(*sys.argv[1:3], (sys.argv[3:] or [None])[0]), timeout=60))
