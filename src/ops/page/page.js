// The status page: asks the API, shows what it says. What comes from outside is only ever put into text nodes.

const EVERY = 5000, EVERY_WHEN_HIDDEN = 30000, PATIENCE = 15000;
const FIRST_ENDPOINTS = 30, STEP = 50, MOST = 500;
const TOKEN = "flagpost-token";
const $ = id => document.getElementById(id);
const page = { samples: [], every: 10, limit: STEP, filter: {}, canChange: false, open: null, shown: {}, reached: null, allEndpoints: false, skew: 0 };

// Control characters, and those that turn the direction of writing, are shown as what they are.
function plain(value) {
  const bad = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;
  return String(value).replace(bad, c => "\\u{" + c.codePointAt(0).toString(16) + "}");
}

// An element: `h("td", { class: "number" }, "text", child …)`.
function h(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === false || value === null || value === undefined) continue;
    if (key === "click") element.addEventListener("click", value);
    else element.setAttribute(key, value === true ? "" : plain(value));
  }
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : plain(child));
  }
  return element;
}

function span(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  if (seconds < 0.05) return "0 s";
  if (seconds < 10 && seconds % 1) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

function bytes(count) {
  if (count === null || count === undefined) return "unknown";
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${unit && count < 100 && count % 1 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat("en");
const counted = (count, one, many) => `${whole.format(count)} ${count === 1 ? one : many ?? one + "s"}`;

function moment(text) {
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return h("span", {}, text);
  const isToday = at.toDateString() === new Date().toDateString();
  const day = isToday ? "" : at.toLocaleDateString([], { month: "short", day: "numeric" }) + " ";
  return h("time", { datetime: text, title: text, class: "nowrap" }, day + at.toLocaleTimeString([], { hour12: false }));
}

// ---- asking

async function ask(path, options) {
  const answer = await fetch(path, { cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(PATIENCE), ...options });
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return said;
  throw Object.assign(new Error(said.error ?? `HTTP ${answer.status}`), { code: answer.status });
}

// Redraws a part only when what it shows has changed, so that nobody loses what they have marked.
function changed(part, value) {
  const text = JSON.stringify(value);
  if (page.shown[part] === text) return false;
  page.shown[part] = text;
  return true;
}

async function refresh() {
  try {
    const last = page.samples.at(-1)?.at;
    const [status, history] = await Promise.all([ask("api/status"), ask("api/samples" + (last ? `?after=${last}` : ""))]);
    page.reached = Date.now();
    page.skew = status.now - Date.now() / 1000;
    page.every = history.every_seconds;
    page.samples = [...page.samples, ...history.samples].filter(sample => sample.at > status.now - HOUR - 60);
    show(status);
    await refreshDeliveries();
  } catch (error) {
    unreachable(error);
  }
}

async function refreshDeliveries() {
  const query = new URLSearchParams({ ...page.filter, limit: page.limit });
  try {
    const list = await ask("api/deliveries?" + query);
    $("filter-error").hidden = true;
    if (changed("deliveries", list)) showDeliveries(list);
  } catch (error) {
    if (error.code === undefined) throw error;
    $("filter-error").textContent = plain(error.message);
    $("filter-error").hidden = false;
  }
}

function unreachable(error) {
  const verdict = $("verdict");
  verdict.className = "bad";
  page.shown.verdict = null;
  $("main").classList.add("stale");
  document.title = "flagpost: not reached";
  const since = page.reached ? `What follows is as of ${new Date(page.reached).toLocaleTimeString([], { hour12: false })}.` : "";
  verdict.replaceChildren(
    h("h2", {}, "This page cannot reach the daemon."),
    h("p", {}, `${error.code ? error.message : "It does not answer."} ${since}`),
    h("p", { class: "mend" }, "Look whether the process runs (systemctl status flagpost) and what its log says last. The page tries again every few seconds."),
  );
}

// ---- the top

const WORDS = { bad: "WRONG", warning: "LOOK", note: "NOTE" };

function show(status) {
  const { wrong, status: told } = status.told;
  $("main").classList.remove("stale");
  page.canChange = status.can_change;
  $("unlock").hidden = !status.can_change;
  $("unlock").textContent = sessionStorage.getItem(TOKEN) ? "Lock actions" : "Unlock actions";
  $("about").textContent = plain(`${status.version}, ${told.source} from ${told.database.place}`);
  $("reading").textContent = status.can_change ? "" : "This page only shows. With a token in ops.token_file it can pause, resume and replay.";
  if (changed("verdict", [wrong, told.endpoints.length, status.ready])) verdict(wrong, told, status);
  figures(told, status);
  charts(status.now);
  if (changed("endpoints", [told.endpoints, page.canChange, page.allEndpoints])) endpoints(told.endpoints);
}

function verdict(wrong, told, status) {
  const of = weight => wrong.filter(one => one.weight === weight).length;
  const [bad, warnings] = [of("bad"), of("warning")];
  const live = told.endpoints.filter(endpoint => endpoint.url !== null && endpoint.enabled).length;
  const box = $("verdict");
  box.className = bad ? "bad" : warnings ? "warning" : "good";
  const title = bad ? `${bad === 1 ? "1 thing is" : `${bad} things are`} wrong.` : warnings ? `${counted(warnings, "thing")} to look at.` : "All is well.";
  document.title = `flagpost: ${bad ? `${bad} wrong` : warnings ? `${warnings} to look at` : "all is well"}`;
  const reads = status.ready ? `Changes are read, recorded and sent to ${counted(live, "endpoint")}.` : "";
  box.replaceChildren(
    h("h2", {}, title),
    reads && h("p", {}, reads),
    h("ul", {}, wrong.map(one => h("li", {},
      h("span", { class: `weight ${one.weight}` }, WORDS[one.weight] ?? ""),
      h("span", { class: "says" }, one.says), " ", h("span", { class: "mend" }, one.mend)))),
  );
}

function figures(told, status) {
  const sum = name => page.samples.reduce((all, sample) => all + (sample[name] ?? 0), 0);
  const { slot, outbox } = told.database;
  const pending = told.endpoints.reduce((all, endpoint) => all + endpoint.pending, 0);
  const lag = slot ? [slot.lag_seconds === null ? null : span(slot.lag_seconds), bytes(slot.lag_bytes)].filter(Boolean).join(", ")
    : outbox ? `${span(outbox.oldest_seconds ?? 0)}, ${counted(outbox.rows, "change")}` : "unknown";
  const rows = [
    ["behind the database", lag],
    ["deliveries waiting", whole.format(pending)],
    ["delivered in the last hour", whole.format(sum("delivered"))],
    ["attempts failed in the last hour", whole.format(sum("failed"))],
    ["events in the last hour", whole.format(sum("events"))],
    ["events on record", told.ledger.events === null ? "unknown" : whole.format(told.ledger.events)],
    ["free on the ledger's disk", bytes(told.ledger.free_bytes)],
    [`${status.phase} for`, span(status.phase_seconds)],
  ];
  if (changed("figures", rows)) $("figures").replaceChildren(...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function charts(now) {
  const place = $("charts");
  if (!place.firstChild) {
    for (const name of ["Lag", "Throughput", "Waiting"]) {
      place.append(h("figure", { "data-name": name }, h("figcaption", {}), h("div", { class: "plot" })));
    }
  }
  if (!changed("charts", [page.samples, Math.floor(now / page.every), place.clientWidth])) return;
  const [lag, throughput, waiting] = place.children;
  const samples = page.samples;
  const down = samples.some(sample => !sample.ready) && h("span", { class: "key down" }, "not ready");
  const has = name => samples.some(sample => sample[name] !== null);
  const inSeconds = has("lag_seconds") || !(has("lag_bytes") || has("lag_rows"));
  const name = inSeconds ? "lag_seconds" : has("lag_bytes") ? "lag_bytes" : "lag_rows";
  const unit = { lag_seconds: "time behind the database", lag_bytes: "bytes behind the database", lag_rows: "changes behind the database" }[name];
  const caption = (figure, title, ...keys) => figure.querySelector("figcaption").replaceChildren(h("span", {}, title), ...keys.filter(Boolean));
  const number = value => compact.format(value);
  const number5 = value => niceMaximum(value, 10);
  const [nice, format] = { lag_seconds: [niceSeconds, span], lag_bytes: [niceBytes, bytes], lag_rows: [number5, number] }[name];
  const key = (kind, text) => h("span", { class: `key ${kind}` }, text);
  caption(lag, "Lag", h("span", { class: "muted" }, unit), down);
  lineChart(lag, samples, now, page.every, sample => sample[name], nice, format);
  caption(throughput, "Throughput", h("span", { class: "muted" }, "per minute"), key("delivered", "delivered"), key("failed", "failed"), key("events", "events"));
  throughputChart(throughput, samples, now, page.every, number);
  caption(waiting, "Waiting", h("span", { class: "muted" }, "deliveries"), down && down.cloneNode(true));
  lineChart(waiting, samples, now, page.every, sample => sample.pending, number5, number);
}

// ---- endpoints

function stateOf(endpoint) {
  if (endpoint.url === null) return ["deleted", "", 4];
  if (endpoint.paused) return ["paused", "warning", 1];
  if (endpoint.breaker) return ["failing", "bad", 0];
  if (endpoint.retrying) return ["retrying", "warning", 2];
  if (!endpoint.enabled) return ["disabled", "", 3];
  return ["well", "good", 3];
}

function rate({ attempts, delivered }) {
  if (!attempts) return h("span", { class: "muted" }, "none yet");
  const share = delivered / attempts;
  const bar = h("span");
  bar.style.width = `${share * 100}%`;
  const percent = share === 1 ? 100 : Math.min(Math.round(share * 100), 99);
  return h("span", { class: "nowrap", title: `${delivered} of ${attempts} attempts at its newest events` }, h("span", { class: "rate" }, bar), `${percent} % of ${attempts}`);
}

function endpoints(all) {
  const sorted = all.map(endpoint => [endpoint, stateOf(endpoint)]).sort(([, a], [, b]) => a[2] - b[2]);
  const some = page.allEndpoints ? sorted : sorted.slice(0, FIRST_ENDPOINTS);
  $("endpoint-count").textContent = all.length;
  $("more-endpoints").hidden = some.length === sorted.length;
  $("more-endpoints").textContent = `Show all ${sorted.length}`;
  $("endpoints").tBodies[0].replaceChildren(...some.map(([endpoint, state]) => endpointRow(endpoint, state)));
  $("endpoint-keys").replaceChildren(...all.map(endpoint => h("option", { value: endpoint.endpoint }, endpoint.url ?? "deleted")));
}

function endpointRow(endpoint, [word, kind]) {
  const key = endpoint.endpoint;
  const paused = endpoint.paused && h("span", { class: "muted" }, `by the ${endpoint.paused.by}: ${endpoint.paused.why}`);
  const next = endpoint.breaker?.next_probe_seconds;
  const probe = endpoint.breaker && h("span", { class: "muted" }, `${counted(endpoint.breaker.failures, "failure")} in a row`, next === null ? "" : `, tried again in ${span(next)}`);
  const act = page.canChange && endpoint.url !== null && (endpoint.paused || endpoint.breaker
    ? h("button", { click: () => resume(key) }, endpoint.paused ? "Resume" : "Try now")
    : h("button", { click: () => pause(key) }, "Pause"));
  return h("tr", { "data-endpoint": key },
    h("td", {}, h("span", { class: `state ${kind}` }, word)),
    h("td", {}, h("button", { class: "link", type: "button", title: "Show its deliveries", click: () => filterBy({ endpoint: key }) }, key),
      h("span", { class: "url" }, endpoint.url ?? "(deleted in Flagsmith)"),
      endpoint.tls_verified ? null : h("span", { class: "problem" }, "TLS is not verified")),
    h("td", { "data-name": "success" }, rate(endpoint.recent)),
    h("td", { class: "number", "data-name": "waiting" }, whole.format(endpoint.pending)),
    h("td", { class: "number", "data-name": "oldest" }, endpoint.oldest_pending_seconds === null ? "" : span(endpoint.oldest_pending_seconds)),
    h("td", { class: "number", "data-name": "given up" }, endpoint.dead ? whole.format(endpoint.dead) : ""),
    h("td", { class: "error" }, endpoint.last_error, endpoint.last_error && (paused || probe) ? h("br") : null, paused || probe),
    h("td", { class: "act" }, act));
}

// ---- deliveries

const KINDS = { FLAG_UPDATED: "flag", FLAG_DELETED: "flag", NEW_VERSION_PUBLISHED: "version", AUDIT_LOG_CREATED: "audit log" };
const COLOURS = { delivered: "good", dead: "bad", retrying: "warning" };

function subject(event) {
  const feature = event.feature ?? (event.feature_id === null ? null : `#${event.feature_id}`);
  const environment = event.environment ?? (event.environment_id === null ? null : `#${event.environment_id}`);
  return [environment, feature].filter(part => part !== null).join(" / ");
}

function happened(event) {
  const action = event.action.replace(";scope=default", "").replace(";scope=", ", ");
  return `${KINDS[event.kind] ?? event.kind} ${action}`;
}

function showDeliveries({ events, next }) {
  const rows = events.flatMap(event => (event.deliveries.length ? event.deliveries : [null]).map(delivery => deliveryRow(event, delivery)));
  $("deliveries").tBodies[0].replaceChildren(...rows);
  $("no-deliveries").hidden = rows.length > 0;
  $("older").hidden = next === null || page.limit >= MOST;
}

function deliveryRow(event, delivery) {
  const row = h("tr", { "data-event": event.id },
    h("td", {}, moment(event.commit_time)),
    h("td", {}, h("button", { class: "link subject", type: "button" }, h("bdi", {}, subject(event) || event.id)), h("span", { class: "muted" }, " ", happened(event))),
    h("td", {}, delivery ? delivery.endpoint : h("span", { class: "muted" }, "for nobody")),
    h("td", {}, delivery && h("span", { class: `state ${COLOURS[delivery.status] ?? ""}` }, delivery.status), delivery?.replay ? h("span", { class: "muted" }, " replay") : null),
    h("td", { class: "number", "data-name": "attempts" }, delivery ? delivery.attempts : ""));
  row.addEventListener("click", () => { location.hash = `event/${event.id}`; });
  return row;
}

function filterBy(filter) {
  for (const input of $("filter").elements) if (input.name) input.value = filter[input.name] ?? "";
  applyFilter();
  $("filter").scrollIntoView({ block: "nearest" });
}

function applyFilter() {
  page.filter = Object.fromEntries([...new FormData($("filter"))].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value));
  page.limit = STEP;
  refreshDeliveries().catch(unreachable);
}

// ---- one event

async function openEvent(id) {
  try {
    const event = await ask(`api/events/${encodeURIComponent(id)}`);
    page.open = id;
    $("event-title").replaceChildren(h("bdi", {}, subject(event) || KINDS[event.kind] || event.kind));
    $("event-body").replaceChildren(...eventBody(event));
    if (!$("event").open) $("event").showModal();
  } catch (error) {
    say(error.message);
  }
}

function eventBody(event) {
  const facts = [
    ["what", happened(event)],
    event.changed_by && ["changed by", event.changed_by],
    event.change_request && ["request", `change request ${event.change_request.id}: ${event.change_request.title}`],
    ["committed", moment(event.commit_time)],
    ["recorded", moment(event.recorded_at)],
    ["position", `LSN ${event.lsn}` + (event.xid ? `, transaction ${event.xid}` : "")],
    ["event", h("span", { class: "code" }, event.id)],
  ].filter(Boolean);
  return [
    h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    event.changes.length ? h("section", {}, h("h3", {}, changesTitle(event.data)), h("div", { class: "changes" }, inOrder(event.changes).map(changeRow))) : null,
    h("h3", {}, "Deliveries"),
    ...event.deliveries.map(delivery => deliveryBox(event, delivery)),
    event.deliveries.length ? null : h("p", { class: "muted" }, "No endpoint was there for it."),
    h("details", { open: event.changes.length === 0 }, h("summary", {}, "What the event says, whole"), h("pre", { class: "code" }, JSON.stringify(event.data, null, 2))),
  ].filter(Boolean);
}

function changesTitle(data) {
  if (!data?.previous_state) return "New state (there was none before)";
  return data.new_state ? "Previous → new" : "Last state (there is none any more)";
}

const isChange = change => JSON.stringify(change.previous) !== JSON.stringify(change.new);
const inOrder = changes => [...changes.filter(isChange), ...changes.filter(change => !isChange(change))];
const asText = value => typeof value === "string" ? value : JSON.stringify(value);
const isLong = value => typeof value === "string" && (value.length > 60 || value.includes("\n"));

// Text that is JSON is laid out, so that it can be compared line by line.
function lines(value) {
  let text = asText(value);
  try {
    const parsed = JSON.parse(text);
    if (parsed !== null && typeof parsed === "object") text = JSON.stringify(parsed, null, 2);
  } catch { /* It is not. */ }
  return text.split("\n");
}

function changeRow(change) {
  const { field, previous, new: now } = change;
  const shown = value => value === null ? "none" : value === "" ? "(empty)" : asText(value);
  let value;
  if (!isChange(change)) value = shown(now);
  else if (isLong(previous) || isLong(now)) value = diff(previous === null ? [] : lines(previous), now === null ? [] : lines(now));
  else value = [h("span", { class: "old text" }, shown(previous)), " → ", h("span", { class: "new" }, shown(now))];
  return h("div", { class: isChange(change) ? "change" : "same" }, h("span", { class: "field" }, field), h("div", { class: "value" }, value));
}

// Which lines stay, by the longest common subsequence; of very long texts all that lies between the first and the last change.
function diff(before, after) {
  let head = 0, tail = 0;
  while (head < before.length && head < after.length && before[head] === after[head]) head += 1;
  while (tail < before.length - head && tail < after.length - head && before[before.length - 1 - tail] === after[after.length - 1 - tail]) tail += 1;
  const [a, b] = [before.slice(head, before.length - tail), after.slice(head, after.length - tail)];
  const middle = a.length * b.length > 250000 ? [...a.map(line => ["-", line]), ...b.map(line => ["+", line])] : common(a, b);
  const all = [...before.slice(0, head).map(line => [" ", line]), ...middle, ...before.slice(before.length - tail).map(line => [" ", line])];
  const isNear = index => all.slice(Math.max(index - 2, 0), index + 3).some(([mark]) => mark !== " ");
  const rows = [];
  let isCut = false;
  all.forEach(([mark, line], index) => {
    if (isNear(index)) rows.push(h("span", { class: { "-": "old", "+": "new" }[mark] ?? "" }, `${mark === "-" ? "−" : mark} ${line}`));
    else if (!isCut) rows.push(h("span", { class: "muted" }, "…"));
    isCut = !isNear(index);
  });
  return h("div", { class: "diff code" }, rows);
}

function common(a, b) {
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) for (let j = b.length - 1; j >= 0; j -= 1) {
    lengths[i][j] = a[i] === b[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
  }
  const all = [];
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { all.push([" ", a[i]]); i += 1; j += 1; }
    else if (i < a.length && (j === b.length || lengths[i + 1][j] >= lengths[i][j + 1])) { all.push(["-", a[i]]); i += 1; }
    else { all.push(["+", b[j]]); j += 1; }
  }
  return all;
}

function deliveryBox(event, delivery) {
  const attempts = event.attempts[delivery.endpoint] ?? [];
  const again = page.canChange && ["delivered", "dead"].includes(delivery.status) && h("button", { click: () => replay(event.id, delivery.endpoint) }, "Send again");
  return h("div", { class: "delivery" },
    h("div", { class: "bar" }, h("strong", {}, delivery.endpoint), h("span", { class: `state ${COLOURS[delivery.status] ?? ""}` }, delivery.status),
      h("span", { class: "muted" }, `${delivery.format}${delivery.replay ? ", asked for again" : ""}`, delivery.next_attempt ? [", next attempt ", moment(delivery.next_attempt)] : null),
      h("span", { class: "space" }), again),
    attempts.length === 0 ? h("span", { class: "muted" }, "No attempt yet.") : h("div", { class: "attempts" }, h("table", {},
      h("thead", {}, h("tr", {}, ["#", "At", "Answer", "Took", "Error"].map(name => h("th", {}, name)))),
      h("tbody", {}, attempts.map(attempt => [h("tr", {},
        h("td", {}, attempt.number), h("td", {}, moment(attempt.at)), h("td", { class: "nowrap" }, attempt.http_status ? `HTTP ${attempt.http_status}` : "none"),
        h("td", { class: "nowrap" }, `${attempt.milliseconds} ms`), h("td", { class: "error" }, attempt.error, attempt.replay ? " (replay)" : null)),
      attempt.answer ? h("tr", {}, h("td"), h("td", { colspan: 4, class: "code error" }, attempt.answer)) : null])))));
}

// ---- changing something

// Asks for one line of text; `null` when there is none.
function prompt({ title, text, name, yes, secret }) {
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-name").textContent = name ?? "";
  $("ask-label").hidden = !name;
  $("ask-yes").textContent = yes;
  $("ask-input").type = secret ? "password" : "text";
  $("ask-input").value = "";
  return new Promise(resolve => {
    let answer = null;
    $("ask-form").onsubmit = event => { event.preventDefault(); answer = $("ask-input").value.trim(); $("ask").close(); };
    $("ask-no").onclick = () => $("ask").close();
    $("ask").onclose = () => { $("ask-input").value = ""; resolve(answer); };
    $("ask").showModal();
    if (name) $("ask-input").focus();
  });
}

async function token() {
  const kept = sessionStorage.getItem(TOKEN);
  if (kept) return kept;
  const given = await prompt({ title: "Unlock actions", text: "The token is in the file that ops.token_file names. This tab keeps it until it is closed.", name: "Token", yes: "Unlock", secret: true });
  if (given) sessionStorage.setItem(TOKEN, given);
  return given;
}

// Returns what was answered; `null` when it was not done.
async function change(path, body) {
  const given = await token();
  if (!given) return null;
  try {
    return await ask(path, { method: "POST", headers: { "Content-Type": "application/json", Authorization: `Bearer ${given}` }, body: JSON.stringify(body) });
  } catch (error) {
    if (error.code === 401) sessionStorage.removeItem(TOKEN);
    say(error.code === 401 ? "That is not the token." : error.code ? error.message : "The daemon does not answer: nothing is known of what was asked.");
    return null;
  } finally {
    refresh();
  }
}

async function pause(key) {
  const why = await prompt({ title: `Pause ${key}?`, text: "Nothing more is sent to it. What comes for it waits, and is not given up, until it is resumed.", name: "Why", yes: "Pause" });
  if (why === null) return;
  if (await change(`api/endpoints/${encodeURIComponent(key)}/pause`, { why })) say(`${key} is paused.`);
}

async function resume(key) {
  if (await change(`api/endpoints/${encodeURIComponent(key)}/resume`, {})) say(`What waits for ${key} goes out now.`);
}

async function replay(id, endpoint) {
  const sure = await prompt({ title: "Send it again?", text: `${endpoint} gets the same body with the same id, marked as a replay.`, yes: "Send again" });
  if (sure === null) return;
  const done = await change(`api/events/${encodeURIComponent(id)}/replay`, { endpoint });
  if (done) {
    say(done.queued ? `${counted(done.queued, "delivery", "deliveries")} queued again.` : "There was nothing to send again.");
    openEvent(id);
  }
}

let saying;
function say(text) {
  clearTimeout(saying);
  $("said").textContent = plain(text);
  // Shown anew, so that it is above a dialog.
  $("said").hidePopover();
  $("said").showPopover();
  saying = setTimeout(() => $("said").hidePopover(), 6000);
}

// ---- beginning

$("filter").addEventListener("submit", event => { event.preventDefault(); applyFilter(); });
$("filter").addEventListener("reset", () => setTimeout(applyFilter));
for (const name of ["state", "kind"]) $("filter").elements[name].addEventListener("change", applyFilter);
$("older").addEventListener("click", () => { page.limit = Math.min(page.limit + STEP, MOST); refreshDeliveries().catch(unreachable); });
$("more-endpoints").addEventListener("click", () => { page.allEndpoints = true; refresh(); });
$("event-close").addEventListener("click", () => $("event").close());
$("event").addEventListener("click", event => { if (event.target === $("event")) $("event").close(); });
$("event").addEventListener("close", () => { page.open = null; history.replaceState(null, "", location.pathname); });
$("unlock").addEventListener("click", async () => {
  if (sessionStorage.getItem(TOKEN)) sessionStorage.removeItem(TOKEN); else await token();
  refresh();
});
window.addEventListener("hashchange", followHash);
window.addEventListener("resize", () => { if (page.reached) charts(Date.now() / 1000 + page.skew); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
$("zone").textContent = `Times are in ${Intl.DateTimeFormat().resolvedOptions().timeZone}; those of the daemon are UTC, as their tooltips tell.`;

function followHash() {
  const id = /^#event\/([0-9a-f-]+)$/.exec(location.hash)?.[1];
  if (id) openEvent(id);
}

setInterval(() => { if (page.reached) $("fresh").textContent = `updated ${span(Math.round((Date.now() - page.reached) / 1000))} ago`; }, 1000);

async function live() {
  await refresh();
  setTimeout(live, document.hidden ? EVERY_WHEN_HIDDEN : EVERY);
}
followHash();
live();
