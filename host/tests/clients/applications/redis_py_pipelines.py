"""redis-py's pipelines, which are transactions by default: two processes, and each message that is
published in a pipeline arrives once. The variant is the version of RESP."""

import sys

import redis

PORT, ROLE, PROTOCOL = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])


def client() -> redis.Redis:
    return redis.Redis(port=PORT, protocol=PROTOCOL, decode_responses=True)


class Subscription:
    def __init__(self, channel: str) -> None:
        self.pubsub = client().pubsub()
        self.pubsub.subscribe(channel)
        assert self.next_of("subscribe") == 1

    def next_of(self, kind: str):
        message = self.pubsub.get_message(timeout=60)
        assert message is not None and message["type"] == kind, message
        return message["data"]

    def end(self) -> None:
        self.pubsub.unsubscribe()
        assert self.next_of("unsubscribe") == 0


def publish(channel: str, texts: list[str], transaction: bool) -> None:
    with client().pipeline(transaction=transaction) as pipeline:
        for text in texts:
            pipeline.publish(channel, text)
        assert pipeline.execute() == [1] * len(texts)


def peer() -> None:
    subscription = Subscription("to-peer")
    print("ready", flush=True)
    received = []
    while (text := subscription.next_of("message")) != "leave":
        received.append(text)
    subscription.end()
    publish("to-main", [*received, "left"], transaction=True)


def main() -> None:
    subscription = Subscription("to-main")
    sent = []
    for name, transaction in [("pipeline", False), ("transaction", True)]:
        texts = [f"{name} {number} é" for number in range(100)]
        publish("to-peer", texts, transaction)
        sent += texts
    for text in [f"alone {number}" for number in range(100)]:
        publish("to-peer", [text], transaction=True)
        sent.append(text)

    with client() as publisher:
        # With WATCH, as `Redis.transaction` does it.
        def watched(pipeline) -> None:
            pipeline.multi()
            pipeline.publish("to-peer", "watched")

        assert publisher.transaction(watched, "key") == [1]
        sent.append("watched")
        # A command that is refused while it is queued: nothing is published.
        with publisher.pipeline() as pipeline:
            pipeline.publish("to-peer", "aborted")
            pipeline.execute_command("PUBLISH", "x")
            try:
                raise AssertionError(pipeline.execute())
            except redis.ResponseError as problem:
                assert "wrong number of arguments" in str(problem), problem
        # A command that fails when it is executed: the others are executed.
        with publisher.pipeline() as pipeline:
            pipeline.publish("to-peer", "before")
            pipeline.execute_command("SELECT", "99")
            pipeline.publish("to-peer", "after")
            before, problem, after = pipeline.execute(raise_on_error=False)
            assert (before, after) == (1, 1) and isinstance(problem, redis.ResponseError), problem
        sent += ["before", "after"]
        assert publisher.publish("to-peer", "leave") == 1
        for text in [*sent, "left"]:
            received = subscription.next_of("message")
            assert received == text, f"{received} instead of {text}"
        assert publisher.publish("to-peer", "unread") == 0
    subscription.end()


peer() if ROLE == "peer" else main()
