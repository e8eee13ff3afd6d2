<?php
// Laravel's Redis broadcaster: one EVAL publishes an event on several channels. The variant is the
// client that Laravel is configured with, `phpredis` or `predis`. Two processes broadcast, one after
// the other.

require __DIR__ . '/common.php';
require 'Predis/autoload.php';

// As in Illuminate\Broadcasting\Broadcasters\RedisBroadcaster.
const SCRIPT = <<<'LUA'
for i = 2, #ARGV do
  redis.call('publish', ARGV[i], ARGV[1])
end
LUA;
const PREFIX = 'laravel_database_';
const CHANNELS = ['private-orders.1', 'presence-chat', 'news'];

function connect(): Redis|Predis\Client
{
    global $port, $variant;
    if ($variant === 'predis') {
        return new Predis\Client(['port' => (int) $port, 'read_write_timeout' => 0]);
    }
    $redis = new Redis();
    $redis->connect('127.0.0.1', (int) $port);
    $redis->setOption(Redis::OPT_READ_TIMEOUT, -1);
    return $redis;
}

// As RedisBroadcaster::broadcast, and PhpRedisConnection::eval, which reorders the arguments.
function broadcast(Redis|Predis\Client $redis, string $event, array $payload): void
{
    $payload = json_encode(['event' => $event, 'data' => $payload, 'socket' => null]);
    $channels = array_map(fn ($channel) => PREFIX . $channel, CHANNELS);
    if ($redis instanceof Redis) {
        $redis->eval(SCRIPT, [$payload, ...$channels], 0);
        check(null, $redis->getLastError());
    } else {
        check(null, $redis->eval(SCRIPT, 0, $payload, ...$channels));
    }
}

// The events on all channels, each with its channel, until `done` has come on all of them.
function listen(): array
{
    $received = [];
    $done = 0;
    $receive = function ($channel, $payload) use (&$received, &$done) {
        $event = json_decode($payload, true);
        if ($event['event'] === 'done') {
            return ++$done === count(CHANNELS);
        }
        $received[] = [substr($channel, strlen(PREFIX)), $event['data']['text']];
    };
    $redis = connect();
    if ($redis instanceof Redis) {
        try {
            $redis->psubscribe([PREFIX . '*'], function ($redis, $pattern, $channel, $payload) use ($receive) {
                if ($receive($channel, $payload)) {
                    check([$pattern => true], $redis->punsubscribe([$pattern]));
                    // Without this, `psubscribe` goes on to wait.
                    $redis->close();
                }
            });
        } catch (RedisException) {
        }
    } else {
        $loop = $redis->pubSubLoop();
        $loop->psubscribe(PREFIX . '*');
        foreach ($loop as $message) {
            if ($message->kind === 'pmessage' && $receive($message->channel, $message->payload)) {
                $loop->punsubscribe();
            }
        }
    }
    return $received;
}

function patterns(Redis|Predis\Client $redis, int $count): void
{
    while ((int) $redis->pubsub('numpat') !== $count);
}

function send_all(Redis|Predis\Client $redis, string $name): void
{
    patterns($redis, 1);
    foreach (numbered($name) as $text) {
        broadcast($redis, 'App\Events\Said', ['text' => $text]);
    }
    broadcast($redis, 'done', []);
    patterns($redis, 0);
}

// Each event once on each channel, in order.
function expect_all(string $name): void
{
    $expected = [];
    foreach (numbered($name) as $text) {
        foreach (CHANNELS as $channel) {
            $expected[] = [$channel, $text];
        }
    }
    check($expected, listen());
}

$redis = connect();
if ($role === 'peer') {
    ready();
    expect_all('from main');
    send_all($redis, 'from peer');
} else {
    send_all($redis, 'from main');
    expect_all('from peer');
}
