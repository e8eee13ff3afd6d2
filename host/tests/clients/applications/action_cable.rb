# Rails' Action Cable with its Redis adapter, in database 1 as `rails new` configures it: two
# processes broadcast to each other's streams.

require "active_support/all"
require "action_cable"
require "logger"

PORT, ROLE = ARGV
COUNT = 100

cable = { adapter: "redis", url: "redis://127.0.0.1:#{PORT}/1", channel_prefix: "app_production" }
ActionCable.server.config.cable = cable.with_indifferent_access
ActionCable.server.config.logger = Logger.new(nil)

def check(expected, actual)
  raise "#{actual.inspect} instead of #{expected.inspect}" unless expected == actual
end

def numbered(name)
  Array.new(COUNT) { |number| "#{name} #{number} é" }
end

# A subscription to a stream, as `stream_from` of a channel makes it.
class Stream
  def initialize(name)
    @name = name
    @received = Queue.new
    @receive = ->(json) { @received << ActiveSupport::JSON.decode(json)["text"] }
    subscribed = Queue.new
    ActionCable.server.pubsub.subscribe(@name, @receive, -> { subscribed << true })
    subscribed.pop
  end

  def next
    @received.pop
  end

  def rest
    Array.new(@received.size) { @received.pop }
  end

  def stop
    ActionCable.server.pubsub.unsubscribe(@name, @receive)
  end
end

def say(stream, text)
  ActionCable.server.broadcast(stream, { text: text })
end

def peer
  stream = Stream.new("to-peer")
  puts "ready"
  while (text = stream.next) != "leave"
    say("to-main", text)
  end
  stream.stop
  say("to-main", "left")
end

def main
  stream = Stream.new("to-main")
  same = Stream.new("to-main")
  texts = numbered("first")
  texts.each { |text| say("to-peer", text) }
  # Action Cable passes messages on by several threads, so their order is not defined.
  check(texts.sort, Array.new(COUNT) { stream.next }.sort)
  say("to-peer", "leave")
  check("left", stream.next)
  # Two streams of one process share a subscription, and each receives every message once.
  check([*texts, "left"].sort, Array.new(COUNT + 1) { same.next }.sort)
  same.stop
  say("to-main", "to the one that stayed")
  check("to the one that stayed", stream.next)
  check([[], []], [stream.rest, same.rest])
  stream.stop
end

$stdout.sync = true
ROLE == "peer" ? peer : main
ActionCable.server.pubsub.shutdown
