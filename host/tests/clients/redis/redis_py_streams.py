"""redis-py reads the history of a channel: `redis_py_streams.py PORT PROTOCOL`. It appends and looks
back, and then tails `chat.tail` by XREAD BLOCK, going on from its last ID whenever its connection
ends. It prints `tails` when it begins, `got N.` for each message, and `done` after 200."""

import sys

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PORT, PROTOCOL = int(sys.argv[1]), int(sys.argv[2])


def client() -> redis.Redis:
    return redis.Redis(port=PORT, protocol=PROTOCOL, socket_timeout=60, retry=Retry(NoBackoff(), 0))


def channels(reply) -> dict:
    """What XREAD returns, in either version of the protocol."""
    if isinstance(reply, dict):
        # RESP3: each channel has a list of replies.
        return {name: lists[0] for name, lists in reply.items()}
    return dict(reply)


def streams(first: redis.Redis) -> None:
    ids = [first.xadd("chat.1", {"payload": bytes([number])}) for number in range(5)]
    assert first.xlen("chat.1") == 5
    all_of_them = [(id, {b"payload": bytes([number])}) for number, id in enumerate(ids)]
    assert first.xrange("chat.1") == all_of_them
    assert first.xrange("chat.1", min=b"(" + ids[1], max=ids[3]) == all_of_them[2:4]
    assert first.xrevrange("chat.1", count=2) == all_of_them[:2:-1]
    assert channels(first.xread({"chat.1": ids[2], "chat.2": "0"})) == {b"chat.1": all_of_them[3:]}
    assert channels(first.xread({"chat.1": "+"})) == {b"chat.1": all_of_them[4:]}
    assert not first.xread({"chat.1": "$"}, block=1)
    info = first.xinfo_stream("chat.1")
    assert info["length"] == 5 and info["last-generated-id"] == ids[4], info
    assert info["first-entry"] == all_of_them[0], info
    assert first.xinfo_stream("chat.1", full=True)["entries"]
    try:
        first.xadd("news", {"payload": "x"})
        raise AssertionError("a channel without history took an entry")
    except redis.ResponseError as refusal:
        assert str(refusal).startswith("NOHISTORY "), refusal
    try:
        first.xinfo_stream("news")
        raise AssertionError("a channel without history is a stream")
    except redis.ResponseError as refusal:
        assert str(refusal) == "no such key", refusal


def tail(reader: redis.Redis) -> None:
    last, number = "0", 0
    print("tails", flush=True)
    while number < 200:
        try:
            reply = reader.xread({"chat.tail": last}, count=7, block=0)
        except redis.ConnectionError:
            continue
        for id, fields in channels(reply)[b"chat.tail"]:
            assert fields == {b"payload": str(number).encode()}, fields
            print(f"got {number}.", flush=True)
            last, number = id, number + 1


with client() as one:
    streams(one)
    tail(one)
print("done", flush=True)
