<?php
// phpredis: two processes exchange messages, by single commands, pipelines and transactions.

require __DIR__ . '/common.php';

function connect(): Redis
{
    global $port;
    $redis = new Redis();
    $redis->connect('127.0.0.1', (int) $port);
    $redis->setOption(Redis::OPT_READ_TIMEOUT, -1);
    return $redis;
}

// What is received on a channel until `done`. The subscriber does not subscribe again by itself
// when its connection is closed.
function listen(string $channel): array
{
    $received = [];
    $receive = function ($redis, $from, $text) use ($channel, &$received) {
        check($channel, $from);
        $received[] = $text;
        if ($text === 'done') {
            check([$channel => true], $redis->unsubscribe([$channel]));
            // Without this, `subscribe` goes on to wait.
            $redis->close();
        }
    };
    do {
        try {
            connect()->subscribe([$channel], $receive);
        } catch (RedisException) {
        }
    } while (end($received) !== 'done');
    array_pop($received);
    return $received;
}

$redis = connect();
$numsub = fn ($channel) => (int) $redis->pubsub('numsub', [$channel])[$channel];

if ($role === 'peer') {
    ready();
    $received = listen('to-peer');
    subscribers($numsub, 'to-main', 1);
    foreach ([...$received, 'done'] as $text) {
        check(1, $redis->publish('to-main', $text));
    }
    exit(0);
}

subscribers($numsub, 'to-peer', 1);
$sent = [];
foreach (['first', 'second'] as $name) {
    foreach (numbered($name) as $text) {
        check(1, $redis->publish('to-peer', $text));
        $sent[] = $text;
    }
    foreach ([Redis::PIPELINE, Redis::MULTI] as $mode) {
        $texts = ["$name $mode a", "$name $mode b", "$name $mode c"];
        $redis->multi($mode);
        foreach ($texts as $text) {
            $redis->publish('to-peer', $text);
        }
        check([1, 1, 1], $redis->exec());
        $sent = [...$sent, ...$texts];
    }
    $redis->multi()->publish('to-peer', 'discarded');
    $redis->discard();
    if ($name === 'first') {
        reconnected();
    }
}
check(1, $redis->publish('to-peer', 'done'));
subscribers($numsub, 'to-peer', 0);
check(0, $redis->publish('to-peer', 'unread'));
check($sent, listen('to-main'));
