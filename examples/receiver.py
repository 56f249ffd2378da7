"""A receiver that verifies, drops repeats and keeps order. Run: SECRET=… python3 receiver.py 8080"""
import hashlib, hmac, json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET, seen, last = os.environ["SECRET"].encode(), set(), {}  # keep both where a restart finds them

class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        signature = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signature, self.headers.get("X-Flagsmith-Signature", "")):
            return self.send_error(401)
        event_id, number = self.headers["X-Flagpost-Event-Id"], int(self.headers["X-Flagpost-Sequence"])
        data = json.loads(body)["data"]
        state = data["new_state"] or data["previous_state"]
        flag = (state["feature"]["id"], state["environment"])
        if event_id not in seen and number > last.get(flag, 0):
            print(state["feature"]["name"], number, self.headers["X-Flagpost-Action"], state["enabled"], flush=True)
            seen.add(event_id); last[flag] = number
        self.send_response(204); self.end_headers()

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
