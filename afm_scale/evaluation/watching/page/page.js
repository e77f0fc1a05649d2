// Asks for the runs every few seconds and draws them anew. All text of a run is put in as text, never as markup.
"use strict";

const EVERY_MS = 3000;
const SVG = "http://www.w3.org/2000/svg";
const PLOT = { height: 132, left: 52, right: 10, top: 8, bottom: 20 };
const BAD = new Set(["divergence", "inconsistency", "failed"]);
let shown = "";
let runs = [];
let pointer = null; // the step that the mouse is at, in every plot

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function draw(name, attributes, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(4)));
}

function whole(value) {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en-US");
}

function clock(seconds) {
  if (seconds === null || !isFinite(seconds)) return "–";
  const minutes = Math.floor(seconds / 60) % 60, hours = Math.floor(seconds / 3600);
  if (hours) return `${hours} h ${String(minutes).padStart(2, "0")} min`;
  return minutes ? `${minutes} min` : `${Math.round(seconds)} s`;
}

// --- plots

function scaleOf(panel, others) {
  // Side by side the same panel has the same scale in every run.
  let low = Infinity, high = -Infinity, log = false;
  for (const other of others) {
    log = log || other.log;
    for (const line of other.lines) {
      for (const part of [line.values, line.least, line.largest]) {
        for (const value of part ?? []) {
          if (value === null) continue;
          low = Math.min(low, value);
          high = Math.max(high, value);
        }
      }
    }
  }
  if (log) {
    let least = Infinity;
    for (const other of others) for (const line of other.lines) {
      for (const value of line.least ?? line.values) if (value > 0) least = Math.min(least, value);
    }
    const from = Math.log10(least), to = Math.max(Math.log10(high), from + 1e-9), room = 0.04 * (to - from) + 0.02;
    return { log, from: from - room, to: to + room, at: (value) => value > 0 ? Math.log10(value) : from - room };
  }
  if (panel.from_zero) low = Math.min(low, 0);
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return { log, from: panel.from_zero && low === 0 ? 0 : low - room, to: high + room, at: (value) => value };
}

function ticksOf(scale) {
  if (scale.log) {
    const first = Math.ceil(scale.from), last = Math.floor(scale.to), every = Math.max(1, Math.ceil((last - first + 1) / 4));
    const found = [];
    for (let power = first; power <= last; power += every) found.push([power, number(10 ** power)]);
    if (found.length > 1) return found;
    return [scale.from, scale.to].map((at, end) => {
      const inside = at + (end ? -0.1 : 0.1) * (scale.to - scale.from);
      return [inside, number(Number((10 ** inside).toPrecision(2)))];
    });
  }
  const rough = (scale.to - scale.from) / 3, size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((by) => by * size).find((by) => by >= rough);
  const found = [];
  for (let at = Math.ceil(scale.from / step) * step; at <= scale.to; at += step) {
    found.push([at, number(Number(at.toPrecision(6)))]);
  }
  return found;
}

function plot(panel, run, steps, scale, width) {
  const { height, left, right, top, bottom } = PLOT;
  const x = (step) => left + (width - left - right) * (step - steps[0]) / Math.max(steps[1] - steps[0], 1);
  const y = (value) => height - bottom - (height - bottom - top) * (scale.at(value) - scale.from) / (scale.to - scale.from);
  const svg = draw("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": panel.title });
  for (const [at, text] of ticksOf(scale)) {
    const where = height - bottom - (height - bottom - top) * (at - scale.from) / (scale.to - scale.from);
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: where, y2: where }));
    svg.append(draw("text", { x: left - 6, y: where + 3.5, "text-anchor": "end" }, text));
  }
  svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
    const step = steps[0] + share * (steps[1] - steps[0]);
    svg.append(draw("text", { x: x(step), y: height - 5, "text-anchor": anchor }, whole(step)));
  }
  const lines = [
    ...run.phases.slice(1).map((phase) => [phase.first, `phase ${phase.name}`, ""]),
    ...run.marks.map((mark) => [mark.step, `${mark.kind} ${mark.name} ${mark.note}`, BAD.has(mark.kind) ? " bad" : ""]),
  ];
  for (const [step, what, kind] of lines) {
    svg.append(draw("line", { class: `mark${kind}`, x1: x(step), x2: x(step), y1: top, y2: height - bottom },
      draw("title", {}, `step ${whole(step)}: ${what}`)));
  }
  for (const line of panel.lines) {
    if (line.least) {
      const there = line.steps.map((step, index) => index).filter((index) => line.least[index] !== null && line.largest[index] !== null);
      const above = there.map((index) => `${x(line.steps[index])},${y(line.largest[index])}`);
      const below = there.map((index) => `${x(line.steps[index])},${y(line.least[index])}`).reverse();
      svg.append(draw("polygon", { class: `band ${line.hue}`, points: [...above, ...below].join(" ") }));
    }
    let path = "", pen = "M";
    line.steps.forEach((step, index) => {
      const value = line.values[index];
      if (value === null) { pen = "M"; return; }
      path += `${pen}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    });
    svg.append(draw("path", { class: `curve ${line.hue}${line.dashed ? " dashed" : ""}`, d: path }));
    if (panel.dots || line.steps.length === 1) line.steps.forEach((step, index) => {
      if (line.values[index] !== null) {
        svg.append(draw("circle", { class: `dot ${line.hue}`, cx: x(step), cy: y(line.values[index]), r: 2.4 }));
      }
    });
  }
  if (pointer !== null && pointer >= steps[0] && pointer <= steps[1]) {
    svg.append(draw("line", { class: "here", x1: x(pointer), x2: x(pointer), y1: top, y2: height - bottom }));
  }
  svg.addEventListener("mousemove", (event) => {
    const share = (event.clientX - svg.getBoundingClientRect().left - left) / (width - left - right);
    pointer = Math.round(steps[0] + Math.min(Math.max(share, 0), 1) * (steps[1] - steps[0]));
    plotAll();
  });
  svg.addEventListener("mouseleave", () => { pointer = null; plotAll(); });
  return svg;
}

function nearest(line, step) {
  let best = 0;
  line.steps.forEach((other, index) => { if (Math.abs(other - step) < Math.abs(line.steps[best] - step)) best = index; });
  return line.values[best];
}

function plotAll() {
  const whole_runs = runs.filter((run) => !run.error);
  const steps = [Math.min(...whole_runs.map((run) => run.phases[0].first)), Math.max(...whole_runs.map((run) => run.step), 1)];
  document.querySelectorAll(".figures").forEach((place) => {
    const run = runs[Number(place.dataset.run)], width = Math.max(place.clientWidth, 240);
    place.replaceChildren(...run.panels.map((panel) => {
      const others = whole_runs.flatMap((other) => other.panels.filter((found) => found.title === panel.title));
      const keys = panel.lines.map((line) => make("span", { class: `key ${line.hue}` }, make("i"),
        `${line.label === panel.title ? "" : `${line.label} `}${number(pointer === null ? line.newest : nearest(line, pointer))}`));
      return make("section", { class: "panel" },
        make("div", { class: "head" }, make("b", {}, panel.title), ...keys),
        plot(panel, run, steps, scaleOf(panel, others), width));
    }));
  });
}

// --- runs

function table(heads, rows) {
  const numeric = (column) => rows.every((row) => /^[\d.,–e+-]*$/.test(row[column])) && rows.some((row) => /\d/.test(row[column]));
  const kind = (column) => numeric(column) ? { class: "number" } : {};
  return make("div", { class: "wide" }, make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map((head, column) => make("th", kind(column), head)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, column) => make("td", kind(column), cell)))))));
}

function factsOf(run) {
  const phase = run.phases[run.phases.length - 1];
  const goesOn = run.standing.state === "goes on";
  const left = goesOn && run.steps && run.seconds_per_step ? (run.steps - run.step) * run.seconds_per_step : null;
  const best = run.phases.map((one) => one.quality).filter((one) => one.best !== null);
  const facts = [
    ["step", run.steps ? `${whole(run.step)} of ${whole(run.steps)}` : whole(run.step)],
    ["images seen", whole(run.images_seen)], ["images per second", number(run.rate)], ["time left", clock(left)],
    ["phase", phase.name ? `${phase.name} (${run.phases.length})` : "–"],
    ["starts", whole(run.starts)],
  ];
  if (run.quality && best.length) {
    facts.push([`${run.quality.replaceAll("_", " ")}, newest`, number(phase.quality.end ?? best[best.length - 1].end)]);
  }
  return make("dl", {}, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function wayOf(run) {
  if (!run.steps) return null;
  const share = Math.min(run.step / run.steps, 1) * 100;
  return make("div", { class: "way" }, draw("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none" },
    draw("rect", { x: 0, y: 0, width: share, height: 6 })));
}

function samplesOf(run, index) {
  const name = run.samples[0];
  if (!name) return [make("p", { class: "none" }, "no samples were written yet")];
  const step = /^step_(\d+)/.exec(name);
  return [make("figure", {},
    make("img", { src: `/runs/${index}/${encodeURIComponent(name)}`, alt: `samples, ${name}` }),
    make("figcaption", {}, step ? `step ${whole(Number(step[1]))}` : name))];
}

function phasesOf(run) {
  const counted = (counts) => Object.entries(counts).map(([name, count]) => count > 1 ? `${name} x ${count}` : name).join(", ");
  return table(["phase", "steps", "best", "acts", "rules"], run.phases.map((phase) => [
    phase.name || "–", `${whole(phase.first)} to ${whole(phase.last)}`, number(phase.quality.best),
    counted(phase.acts), counted(phase.rules),
  ]));
}

function actsOf(run) {
  if (!run.acts.length) return make("p", { class: "none" }, "nothing was done to it, and no rule has fired");
  return table(["step", "what", ""], run.acts.slice(0, 12).map((act) => [whole(act.step), act.kind, act.what]));
}

function ranksOf(run) {
  const { number: count, plan, rows } = run.ranks;
  const told = make("p", { class: "none" }, count ? `${whole(count)} ${count === 1 ? "rank" : "ranks"}${plan ? `, ${plan}` : ""}` : "not known");
  if (!rows.length) return [told];
  return [told, table(["rank", "own s a step", "waits for data", "", "last word"], rows.map((row) => [
    String(row.rank), number(row.own), number(row.data), row.slow ? "slow" : "", row.log,
  ]))];
}

function article(run, index) {
  if (run.error) {
    return make("article", {}, make("div", { class: "title" }, make("h2", {}, run.name), make("span", { class: "state failed" }, "cannot be read")),
      make("p", { class: "path" }, run.path), make("p", { class: "why failed" }, run.error));
  }
  const kind = run.standing.state.replaceAll(" ", "-");
  return make("article", {},
    make("div", { class: "title" }, make("h2", {}, run.name), make("span", { class: `state ${kind}` }, run.standing.state)),
    make("p", { class: "path" }, run.path), make("p", { class: `why ${kind}` }, run.standing.why),
    wayOf(run), factsOf(run), make("div", { class: "figures", "data-run": index }),
    make("h3", {}, "Newest samples"), ...samplesOf(run, index),
    make("h3", {}, "Phases"), phasesOf(run), make("h3", {}, "Acts and rules, newest first"), actsOf(run),
    make("h3", {}, "Ranks"), ...ranksOf(run));
}

async function look() {
  const news = document.getElementById("news");
  try {
    const answer = await fetch("/runs", { cache: "no-store" });
    if (!answer.ok) throw new Error(`the server says ${answer.status}`);
    const text = await answer.text();
    if (text !== shown) {
      runs = JSON.parse(text);
      document.getElementById("runs").replaceChildren(...runs.map(article));
      plotAll();
      shown = text;
    }
    news.className = "";
    news.textContent = `looked at ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    news.className = "lost";
    news.textContent = `no answer since ${new Date().toLocaleTimeString()}: ${error.message}; what is shown is older`;
  }
  document.body.dataset.looked = "yes";
  setTimeout(look, EVERY_MS);
}

addEventListener("resize", plotAll);
look();
