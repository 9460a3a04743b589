"use strict";
/* What the page shows: its rows, the filters that are set, and the address that holds them. Nothing is drawn here. */

const browse = {};

(() => {
  const { rows } = JSON.parse(document.getElementById("data").textContent);
  const LISTS = ["method", "base", "task", "data", "license", "status"]; // filters that name one value
  const BOUNDS = ["params", "macs"]; // filters that bound one
  const SORTED = ["name", "accuracy", "macs", "params", "method", "data", "license", "status", "base"];
  const COSTS = ["macs", "params"];
  const START = { x: "macs", sort: "name", dir: "asc" };
  const UNITS = { k: 1e3, M: 1e6, G: 1e9 };
  const FIGURES = { top1: "top-1", top5: "top-5", map: "mAP", map50: "mAP 50", map75: "mAP 75", params_m: "params" };
  const SHARES = new Set(["top1", "top5", "map", "map50", "map75", "map50_voc07", "agreement", "speedup"]);
  const UNKNOWN = "unknown";

  rows.forEach((row) => {
    row.reported = new Set(row.reported);
    row.text = [row.name, row.base, row.method, row.task, row.data, row.license, row.status].join(" ").toLowerCase();
  });

  if (rows.some((row) => row.ms != null)) [SORTED, COSTS].forEach((each) => each.push("ms"));

  const valueOf = (row, key) => row[key] || UNKNOWN;

  /* 1.5G → 1500000000; null where it is no count. */
  function count(text) {
    const found = /^\s*([\d.]+)\s*([kMG])?\s*$/i.exec(text || "");
    const unit = found && found[2] && (found[2].toLowerCase() === "k" ? "k" : found[2].toUpperCase());
    return found && Number(found[1]) > 0 ? Number(found[1]) * (UNITS[unit] || 1) : null;
  }

  /* 1500000000 → 1.5G */
  function short(value) {
    if (value == null) return "";
    const [unit, size] = Object.entries(UNITS).reverse().find(([, each]) => value >= 0.9995 * each) || ["", 1];
    return `${Number((value / size).toPrecision(3))}${unit}`;
  }

  const percent = (share) => `${(100 * share).toFixed(share < 0.9995 || share === 1 ? 1 : 2)} %`;
  const models = (number) => `${number.toLocaleString("en")} model${number === 1 ? "" : "s"}`;
  const milliseconds = (value) => (value == null ? "" : `${Number(value.toPrecision(3))} ms`);

  function figure(key, value) {
    if (typeof value !== "number") return String(value);
    if (SHARES.has(key)) return `${(100 * value).toFixed(2)} %`;
    if (key === "params_m") return `${value}M`;
    return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(5)));
  }

  /* The address's fragment as a state, and back; what is as ever isn't written, and what can't be is as ever. */
  function read() {
    const said = { ...START, ...Object.fromEntries(new URLSearchParams(location.hash.slice(1))) };
    const known = { x: COSTS, sort: SORTED, dir: ["asc", "desc"] };
    Object.entries(known).forEach(([key, values]) => values.includes(said[key]) || (said[key] = START[key]));
    return said;
  }

  function address(state) {
    const said = Object.entries(state).filter(([key, value]) => value && value !== START[key]);
    return `#${new URLSearchParams(said)}`;
  }

  /* The rows that the filters of a state leave. */
  function chosen(state) {
    const words = (state.q || "").toLowerCase().split(/\s+/).filter(Boolean);
    const lists = LISTS.filter((key) => state[key]);
    const bounds = BOUNDS.map((key) => [key, count(state[key])]).filter(([, most]) => most);
    return rows.filter(
      (row) =>
        words.every((word) => row.text.includes(word)) &&
        lists.every((key) => valueOf(row, key) === state[key]) &&
        bounds.every(([key, most]) => row[key] != null && row[key] <= most) &&
        (!state.figures || (row.figure && row.reported.has(row.figure) === (state.figures === "reported"))),
    );
  }

  /* Value → how many rows have it, most frequent first. */
  function tally(key) {
    const found = new Map();
    rows.forEach((row) => found.set(valueOf(row, key), (found.get(valueOf(row, key)) || 0) + 1));
    return [...found].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  }

  /* An element, its attributes and what it holds; text is never markup. */
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    Object.entries(attributes).forEach(([key, value]) => value != null && made.setAttribute(key, value));
    made.append(...children);
    return made;
  }

  Object.assign(browse, { rows, LISTS, BOUNDS, COSTS, FIGURES, state: read() });
  Object.assign(browse, { read, address, chosen, tally, count, short, percent, models, milliseconds, figure, element });
})();
