// Publish and subscribe as Bun has it built in (uWebSockets underneath).
// bun bun.js PORT
import { message, ok, parse } from "./commands.js";

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2]),
  fetch: (request, server) => (server.upgrade(request, { data: { held: 0 } }) ? undefined : new Response("no", { status: 400 })),
  websocket: {
    perMessageDeflate: false,
    backpressureLimit: 64 << 20,
    message(socket, text) {
      const [id, verb, args] = parse(text);
      if (verb === "SUBSCRIBE") {
        for (const channel of args) socket.subscribe(channel);
        socket.data.held += args.length;
        socket.send(ok(id, socket.data.held));
      } else if (verb === "PUBLISH") {
        const [channel, payload] = args;
        socket.send(ok(id, server.subscriberCount(channel)));
        server.publish(channel, message(channel, payload));
      }
    },
  },
});
