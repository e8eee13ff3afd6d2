<?php
// What the PHP applications share: the words of the command line, and waiting for the server.
// A PHP process waits for messages in one call, so it first sends everything, or first receives.

[, $port, $role, $variant] = [...$argv, ''];
const COUNT = 100;

// Ends with what differs and exit code 1.
function check($expected, $actual): void
{
    if ($expected !== $actual) {
        fwrite(STDERR, json_encode($actual) . ' instead of ' . json_encode($expected) . "\n");
        throw new Exception('they differ');
    }
}

function numbered(string $name): array
{
    return array_map(fn ($number) => "$name $number é", range(0, COUNT - 1));
}

function ready(): void
{
    echo "ready\n";
}

// Has all connections closed, and waits until the subscriptions are there again.
function reconnected(): void
{
    echo "reconnect\n";
    check("reconnected\n", fgets(STDIN));
}

// Waits until a channel has this number of subscribers. `$numsub` returns the number.
function subscribers(callable $numsub, string $channel, int $count): void
{
    while ($numsub($channel) !== $count);
}
