// A receiver that verifies, drops repeats and keeps order. Run: SECRET=… node receiver.mjs 8080
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const seen = new Set(), last = new Map(); // keep both where a restart finds them

createServer(async (request, response) => {
  const body = Buffer.concat(await request.toArray());
  const expected = createHmac("sha256", process.env.SECRET).update(body).digest("hex");
  const given = request.headers["x-flagsmith-signature"] ?? "";
  if (given.length !== expected.length || !timingSafeEqual(Buffer.from(given), Buffer.from(expected)))
    return response.writeHead(401).end();
  const id = request.headers["x-flagpost-event-id"], number = Number(request.headers["x-flagpost-sequence"]);
  const { data } = JSON.parse(body), state = data.new_state ?? data.previous_state;
  const flag = `${state.feature.id}/${state.environment}`;
  if (!seen.has(id) && number > (last.get(flag) ?? 0)) {
    console.log(state.feature.name, number, request.headers["x-flagpost-action"], state.enabled);
    seen.add(id), last.set(flag, number);
  }
  response.writeHead(204).end();
}).listen(Number(process.argv[2]), "127.0.0.1");
