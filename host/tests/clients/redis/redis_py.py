"""redis-py against the server: `redis_py.py PORT PROTOCOL`. Each line says what must
come next, so it ends with 0 only if everything came, once and in order. It says how
far it is. After `restart` it wants the server to be restarted; it says `back` when it
listens again, and ends with a message on `restarted`."""

import queue
import sys
import time

import redis

PATIENCE = 60
PORT, PROTOCOL = int(sys.argv[1]), int(sys.argv[2])
ALL_BYTES = bytes(range(256))


def client() -> redis.Redis:
    return redis.Redis(port=PORT, protocol=PROTOCOL, socket_timeout=PATIENCE)


def expect(pubsub, kind: str, channel, data, pattern=None) -> None:
    came = pubsub.get_message(timeout=PATIENCE)
    expected = {"type": kind, "pattern": pattern, "channel": channel, "data": data}
    assert came == expected, f"{came!r:.300} instead of {expected!r:.300}"


def subscriptions(publisher: redis.Redis) -> None:
    pubsub = client().pubsub()
    pubsub.subscribe("news", "sport")
    expect(pubsub, "subscribe", b"news", 1)
    expect(pubsub, "subscribe", b"sport", 2)
    pubsub.psubscribe("n*")
    expect(pubsub, "psubscribe", b"n*", 3)
    assert publisher.publish("news", "Grüße") == 2
    expect(pubsub, "message", b"news", "Grüße".encode())
    expect(pubsub, "pmessage", b"news", "Grüße".encode(), pattern=b"n*")
    pubsub.ping("still there?")
    expect(pubsub, "pong", None, b"still there?")
    assert publisher.publish("nowhere else", "x") == 1
    expect(pubsub, "pmessage", b"nowhere else", b"x", pattern=b"n*")

    assert sorted(publisher.pubsub_channels()) == [b"news", b"sport"]
    assert publisher.pubsub_channels("s*") == [b"sport"]
    assert publisher.pubsub_numsub("news", "nope") == [(b"news", 1), (b"nope", 0)]
    assert publisher.pubsub_numpat() == 1

    pubsub.ssubscribe("shard")
    expect(pubsub, "ssubscribe", b"shard", 1)
    assert publisher.spublish("shard", "x") == 1
    expect(pubsub, "smessage", b"shard", b"x")
    assert publisher.pubsub_shardchannels() == [b"shard"]
    assert publisher.pubsub_shardnumsub("shard") == [(b"shard", 1)]
    pubsub.sunsubscribe("shard")
    expect(pubsub, "sunsubscribe", b"shard", 0)

    pubsub.unsubscribe("news")
    expect(pubsub, "unsubscribe", b"news", 2)
    assert publisher.publish("news", "x") == 1
    expect(pubsub, "pmessage", b"news", b"x", pattern=b"n*")
    pubsub.unsubscribe()
    expect(pubsub, "unsubscribe", b"sport", 1)
    pubsub.punsubscribe()
    expect(pubsub, "punsubscribe", b"n*", 0)
    assert publisher.publish("news", "x") == 0
    pubsub.close()


def payloads(publisher: redis.Redis) -> None:
    pubsub = client().pubsub()
    pubsub.subscribe(ALL_BYTES)
    expect(pubsub, "subscribe", ALL_BYTES, 1)
    assert publisher.publish(ALL_BYTES, ALL_BYTES) == 1
    expect(pubsub, "message", ALL_BYTES, ALL_BYTES)
    largest = ALL_BYTES * 4096
    assert publisher.publish(ALL_BYTES, largest) == 1
    expect(pubsub, "message", ALL_BYTES, largest)
    try:
        publisher.publish(ALL_BYTES, largest + b"x")
        raise AssertionError("a payload over the limit was accepted")
    except redis.ResponseError as refusal:
        assert str(refusal).startswith("TOOLARGE "), refusal
    assert publisher.publish(ALL_BYTES, b"") == 1
    expect(pubsub, "message", ALL_BYTES, b"")

    channels = [f"channel-{number}" for number in range(1000)]
    pubsub.subscribe(*channels)
    for number, channel in enumerate(channels):
        expect(pubsub, "subscribe", channel.encode(), number + 2)
    with publisher.pipeline(transaction=False) as pipeline:
        for channel in channels:
            pipeline.publish(channel, channel)
        assert pipeline.execute() == [1] * 1000
    for channel in channels:
        expect(pubsub, "message", channel.encode(), channel.encode())
    pubsub.unsubscribe(*channels)
    for number, channel in enumerate(channels):
        expect(pubsub, "unsubscribe", channel.encode(), 1000 - number)
    pubsub.close()


def in_a_thread(publisher: redis.Redis) -> None:
    came: queue.Queue = queue.Queue()
    pubsub = client().pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(**{"news": came.put})
    pubsub.psubscribe(**{"n?ws": came.put})
    thread = pubsub.run_in_thread(sleep_time=1.0, daemon=True)
    # The client does not report that the thread has subscribed: query the server.
    deadline = time.monotonic() + PATIENCE
    while publisher.publish("news", "knock") < 2:
        assert time.monotonic() < deadline
    for number in range(100):
        assert publisher.publish("news", str(number)) == 2
    knocks, expected = 0, [str(number).encode() for number in range(100) for _ in "mp"]
    while expected:
        message = came.get(timeout=PATIENCE)
        if message["data"] == b"knock":
            knocks += 1
            continue
        assert message["data"] == expected.pop(0), message
    assert knocks > 0
    thread.stop()
    thread.join(timeout=PATIENCE)
    assert not thread.is_alive()


def restart(publisher: redis.Redis) -> None:
    pubsub = client().pubsub()
    pubsub.subscribe("restarted")
    expect(pubsub, "subscribe", b"restarted", 1)
    pubsub.psubscribe("re?tarted")
    expect(pubsub, "psubscribe", b"re?tarted", 2)
    print("restart", flush=True)
    deadline = time.monotonic() + PATIENCE
    acknowledged = []
    while len(acknowledged) < 2:
        assert time.monotonic() < deadline
        try:
            message = pubsub.get_message(timeout=PATIENCE)
        except redis.ConnectionError:
            continue  # it has not come up yet
        # redis-py waits for its connection instead of a message.
        if message is not None:
            acknowledged.append((message["type"], message["channel"]))
    assert sorted(acknowledged) == [("psubscribe", b"re?tarted"), ("subscribe", b"restarted")]
    print("back", flush=True)
    expect(pubsub, "message", b"restarted", b"hello again")
    expect(pubsub, "pmessage", b"restarted", b"hello again", pattern=b"re?tarted")
    assert publisher.publish("restarted", "x") == 2


def main() -> None:
    publisher = client()
    assert publisher.ping()
    assert publisher.info("server")["redis_version"] == "7.4.0"
    subscriptions(publisher)
    print("subscriptions", flush=True)
    payloads(publisher)
    print("payloads", flush=True)
    in_a_thread(publisher)
    restart(publisher)


main()
