"use strict";
// Small charts of the last hour, drawn as SVG.

const SVG = "http://www.w3.org/2000/svg";
const HOUR = 3600;
const MARGIN = { left: 46, right: 8, top: 8, bottom: 20 };

function svg(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// The next number of the kind 1, 2, 5, 10 … of base `step`.
function niceMaximum(value, least) {
  if (!(value > least)) return least;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map(factor => factor * power).find(nice => nice >= value);
}

function niceBytes(value) {
  let nice = 1024;
  while (nice < value) nice *= 2;
  return nice;
}

function niceSeconds(value) {
  return [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400].find(nice => nice >= value) ?? Math.ceil(value / 86400) * 86400;
}

const clock = seconds => new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });

// Draws axes and calls `draw(x, y, plane)` for what goes into them.
function plot(figure, end, maximum, format, samples, every, draw) {
  const place = figure.querySelector(".plot");
  const width = Math.max(place.clientWidth, 200), height = 150;
  const begin = end - HOUR;
  const x = at => MARGIN.left + (at - begin) / HOUR * (width - MARGIN.left - MARGIN.right);
  const y = value => height - MARGIN.bottom - value / maximum * (height - MARGIN.top - MARGIN.bottom);
  const plane = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": figure.dataset.name });
  for (const sample of samples) {
    if (sample.ready) continue;
    const left = Math.max(x(sample.at - every), MARGIN.left);
    plane.append(svg("rect", { class: "down", x: left, y: MARGIN.top, width: Math.max(x(sample.at) - left, 0), height: height - MARGIN.top - MARGIN.bottom }));
  }
  for (const part of [0, 0.5, 1]) {
    const value = maximum * part;
    plane.append(
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
      svg("text", { x: MARGIN.left - 5, y: y(value) + 4, "text-anchor": "end" }, format(value)),
    );
  }
  const quarter = 900, first = Math.ceil(begin / quarter) * quarter;
  for (let at = first; at <= end; at += quarter) {
    const anchor = x(at) < MARGIN.left + 16 ? "start" : x(at) > width - 24 ? "end" : "middle";
    plane.append(
      svg("line", { class: "grid", x1: x(at), x2: x(at), y1: height - MARGIN.bottom, y2: height - MARGIN.bottom + 4 }),
      svg("text", { x: x(at), y: height - 4, "text-anchor": anchor }, clock(at)),
    );
  }
  draw(x, y, plane);
  place.replaceChildren(plane);
  return { plane, x, y, begin, end, width, height };
}

// A line through `[at, value]`; `null` is a gap.
function path(points, x, y, every) {
  let text = "", before = null;
  for (const [at, value] of points) {
    if (value === null || value === undefined) { before = null; continue; }
    const goesOn = before !== null && at - before < every * 2.5;
    text += `${goesOn ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    if (!goesOn) text += "h0.01";
    before = at;
  }
  return text;
}

function lineChart(figure, samples, end, every, value, nice, format) {
  const points = samples.map(sample => [sample.at, value(sample)]);
  const maximum = nice(Math.max(0, ...points.map(([, value]) => value ?? 0)));
  plot(figure, end, maximum, format, samples, every, (x, y, plane) => {
    plane.append(svg("path", { class: "line", d: path(points, x, y, every) }));
  });
}

// What was done in each minute: `[at, delivered, failed, events]`.
function byMinute(samples) {
  const minutes = new Map();
  for (const sample of samples) {
    const at = Math.floor(sample.at / 60) * 60;
    const minute = minutes.get(at) ?? [at, 0, 0, 0];
    minute[1] += sample.delivered;
    minute[2] += sample.failed;
    minute[3] += sample.events ?? 0;
    minutes.set(at, minute);
  }
  return [...minutes.values()];
}

function throughputChart(figure, samples, end, every, format) {
  const minutes = byMinute(samples);
  const maximum = niceMaximum(Math.max(0, ...minutes.map(([, delivered, failed, events]) => Math.max(delivered + failed, events))), 10);
  plot(figure, end, maximum, format, samples, every, (x, y, plane) => {
    const wide = Math.max(x(60) - x(0) - 1, 1);
    for (const [at, delivered, failed] of minutes) {
      const left = Math.max(x(at), MARGIN.left), width = Math.max(wide - (left - x(at)), 0);
      if (width === 0) continue;
      if (delivered) plane.append(svg("rect", { class: "delivered", x: left, width, y: y(delivered), height: y(0) - y(delivered) }));
      if (failed) plane.append(svg("rect", { class: "failed", x: left, width, y: y(delivered + failed), height: y(delivered) - y(delivered + failed) }));
    }
    const steps = minutes.flatMap(([at, , , events]) => [[at, events], [at + 59, events]]);
    const visible = steps.filter(([at]) => x(at) >= MARGIN.left);
    plane.append(svg("path", { class: "line events", d: path(visible, x, y, 60) }));
  });
}
