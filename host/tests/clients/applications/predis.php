<?php
// Predis: two processes exchange messages, by single commands, pipelines and transactions.

require __DIR__ . '/common.php';
require 'Predis/autoload.php';

use Predis\Connection\ConnectionException;

function connect(): Predis\Client
{
    global $port;
    return new Predis\Client(['port' => (int) $port, 'read_write_timeout' => 0]);
}

// What is received on a channel until `done`. The subscriber does not subscribe again by itself
// when its connection is closed.
function listen(string $channel, callable $subscribed): array
{
    $received = [];
    while (true) {
        try {
            $loop = connect()->pubSubLoop();
            $loop->subscribe($channel);
            foreach ($loop as $message) {
                check($channel, $message->channel);
                if ($message->kind === 'subscribe') {
                    check(1, $message->payload);
                    $subscribed();
                } elseif ($message->kind === 'message' && $message->payload === 'done') {
                    $loop->unsubscribe($channel);
                } elseif ($message->kind === 'message') {
                    $received[] = $message->payload;
                }
            }
            return $received;
        } catch (ConnectionException) {
            continue;
        }
    }
}

$redis = connect();
$numsub = fn ($channel) => (int) $redis->pubsub('numsub', $channel)[$channel];

if ($role === 'peer') {
    $received = listen('to-peer', ready(...));
    subscribers($numsub, 'to-main', 1);
    foreach ([...$received, 'done'] as $text) {
        check(1, $redis->publish('to-main', $text));
    }
    exit(0);
}

$sent = [];
foreach (['first', 'second'] as $name) {
    foreach (numbered($name) as $text) {
        check(1, $redis->publish('to-peer', $text));
        $sent[] = $text;
    }
    foreach (['pipeline', 'transaction'] as $method) {
        $texts = ["$name $method a", "$name $method b", "$name $method c"];
        $counts = $redis->$method(function ($queue) use ($texts) {
            foreach ($texts as $text) {
                $queue->publish('to-peer', $text);
            }
        });
        check([1, 1, 1], $counts);
        $sent = [...$sent, ...$texts];
    }
    $redis->multi();
    check('QUEUED', (string) $redis->publish('to-peer', 'discarded'));
    $redis->discard();
    if ($name === 'first') {
        reconnected();
        // The connection that was closed fails once, and then connects again.
        try {
            $redis->ping();
        } catch (ConnectionException) {
        }
    }
}
check(1, $redis->publish('to-peer', 'done'));
subscribers($numsub, 'to-peer', 0);
check(0, $redis->publish('to-peer', 'unread'));
check($sent, listen('to-main', fn () => null));
