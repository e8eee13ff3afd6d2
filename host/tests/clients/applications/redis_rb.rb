# redis-rb: two processes exchange messages, by single commands, pipelines and transactions.

require "redis"

PORT, ROLE = ARGV
COUNT = 100

def connect
  Redis.new(port: PORT.to_i)
end

def check(expected, actual)
  raise "#{actual.inspect} instead of #{expected.inspect}" unless expected == actual
end

def numbered(name)
  Array.new(COUNT) { |number| "#{name} #{number} é" }
end

# What is received on a channel until `done`. The subscriber does not subscribe again by itself when
# its connection is closed.
def listen(channel, &subscribed)
  received = []
  begin
    redis = connect
    redis.subscribe(channel) do |on|
      on.subscribe do |_, count|
        check(1, count)
        subscribed&.call
      end
      on.message do |from, text|
        check(channel, from)
        text == "done" ? redis.unsubscribe(channel) : received << text.force_encoding("UTF-8")
      end
    end
  rescue Redis::ConnectionError
    retry
  end
  received
end

def subscribers(redis, channel, count)
  nil until redis.pubsub("numsub", channel)[1] == count
end

def peer(redis)
  received = listen("to-peer") { puts "ready" }
  subscribers(redis, "to-main", 1)
  [*received, "done"].each { |text| check(1, redis.publish("to-main", text)) }
end

def main(redis)
  sent = []
  %w[first second].each do |name|
    numbered(name).each { |text| check(1, redis.publish("to-peer", text)) }
    sent.concat(numbered(name))
    %i[pipelined multi].each do |method|
      texts = %w[a b c].map { |letter| "#{name} #{method} #{letter}" }
      counts = redis.send(method) { |queue| texts.each { |text| queue.publish("to-peer", text) } }
      check([1, 1, 1], counts)
      sent.concat(texts)
    end
    reconnected if name == "first"
  end
  check(1, redis.publish("to-peer", "done"))
  subscribers(redis, "to-peer", 0)
  check(0, redis.publish("to-peer", "unread"))
  check(sent, listen("to-main"))
end

# Has all connections closed, and waits until the subscriptions are there again.
def reconnected
  puts "reconnect"
  check("reconnected\n", $stdin.gets)
end

$stdout.sync = true
ROLE == "peer" ? peer(connect) : main(connect)
