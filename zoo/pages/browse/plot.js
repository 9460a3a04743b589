"use strict";
/* The plot: Chart.js's, accuracy against a cost, hollow where a source reports it and filled where it was measured. */

(() => {
  const { element, short, percent, models, milliseconds, FIGURES } = browse;
  const COSTS = { macs: ["MACs of one image", short], params: ["parameters", short], ms: ["ms of one image", milliseconds] };
  const FAMILIES = [
    ["pruned", ["prune", "magnitude"], "circle", "--pruned"],
    ["low rank", ["low_rank", "falor", "lockd", "dwain"], "triangle", "--lowrank"],
    ["integers", ["integer"], "rect", "--integer"],
    ["dense", ["dense"], "rectRot", "--dense"],
  ];
  const SHAPES = {
    circle: ["circle", { cx: 6, cy: 6, r: 4 }],
    triangle: ["path", { d: "M6 1.5 11 10.5H1z" }],
    rect: ["path", { d: "M2 2h8v8H2z" }],
    rectRot: ["path", { d: "M6 1 11 6 6 11 1 6z" }],
  };
  const familyOf = (row) => Math.max(0, FAMILIES.findIndex(([, methods]) => methods.includes(row.method)));
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const whose = (row) => `${FIGURES[row.figure]} on ${row.data || "unnamed data"}`;

  /* Accuracies of different data never meet: those that most of the rows have. */
  function comparable(rows, x) {
    const kinds = new Map();
    rows.forEach((row) => {
      if (row.accuracy == null || !(row[x] > 0)) return;
      const kind = whose(row);
      if (!kinds.has(kind)) kinds.set(kind, []);
      kinds.get(kind).push(row);
    });
    return [...kinds].sort((a, b) => b[1].length - a[1].length)[0] || ["", []];
  }

  /* The rows than which no other is as small and as accurate, from small to large. */
  function front(rows, x) {
    let best = -1;
    return [...rows]
      .sort((a, b) => a[x] - b[x] || b.accuracy - a.accuracy)
      .filter((row) => row.accuracy > best && (best = row.accuracy) !== null);
  }

  /* Points that look alike, a set of Chart.js, which needn't ask how each looks then. */
  function points(rows, x, number, hollow) {
    const [label, , shape, name] = FAMILIES[number];
    const own = rows.filter((row) => familyOf(row) === number && row.reported.has(row.figure) === hollow);
    return {
      label,
      data: own.map((row) => ({ x: row[x], y: row.accuracy, row })),
      pointStyle: shape,
      pointRadius: 5,
      pointHoverRadius: 8,
      pointBorderColor: colour(name),
      pointBorderWidth: 1.75,
      pointBackgroundColor: hollow ? "transparent" : colour(name),
    };
  }

  /* The one that is open, larger and above the others. */
  function opened(row, x) {
    const number = familyOf(row);
    const filled = points([row], x, number, row.reported.has(row.figure));
    return { ...filled, pointRadius: 8, pointBorderWidth: 3.5, order: -1 };
  }

  function line(best, x) {
    return {
      label: "Pareto front",
      type: "line",
      data: best.map((row) => ({ x: row[x], y: row.accuracy, row })),
      stepped: "before",
      pointRadius: 0,
      pointHoverRadius: 0,
      borderColor: colour("--front"),
      borderWidth: 1.5,
      order: 1,
    };
  }

  const tick = (shown) => (value) => (/^[125]/.test(value.toExponential()) ? shown(value) : "");
  const axis = (title, format) => ({
    title: { display: true, text: title, color: colour("--text") },
    ticks: { callback: format, color: colour("--muted"), maxRotation: 0, autoSkipPadding: 14 },
    grid: { color: colour("--grid"), tickColor: "transparent" },
    border: { color: colour("--line") },
  });

  const chart = new Chart(document.getElementById("canvas"), {
    type: "scatter",
    data: { datasets: [] },
    options: {
      maintainAspectRatio: false,
      animation: false,
      normalized: true,
      interaction: { mode: "nearest", intersect: true },
      onClick: (event, found) => found.length && browse.open(rowOf(found[0]).id, true),
      onHover: (event, found) => (event.native.target.style.cursor = found.length ? "pointer" : ""),
      plugins: {
        legend: { display: false },
        tooltip: {
          filter: (item) => item.dataset.type !== "line",
          displayColors: false,
          callbacks: { label: (item) => told(item.raw.row) },
        },
      },
    },
  });
  const rowOf = (found) => chart.data.datasets[found.datasetIndex].data[found.index].row;

  function told(row) {
    const costs = [row.macs && `${short(row.macs)} MACs`, row.params && `${short(row.params)} params`, milliseconds(row.ms)];
    const how = row.reported.has(row.figure) ? "reported" : "measured";
    return [row.name, `${percent(row.accuracy)} ${how}`, ...costs.filter(Boolean)];
  }

  function mark(shape, name) {
    const [tag, attributes] = SHAPES[shape];
    const [svg, drawn] = ["svg", tag].map((each) => document.createElementNS("http://www.w3.org/2000/svg", each));
    Object.entries(attributes).forEach(([key, value]) => drawn.setAttribute(key, value));
    Object.entries({ viewBox: "0 0 12 12", class: name.slice(2), "aria-hidden": "true" }).forEach(([key, value]) => svg.setAttribute(key, value));
    svg.append(drawn);
    return svg;
  }

  const legend = document.getElementById("legend");
  FAMILIES.forEach(([label, , shape, name]) => legend.append(element("li", {}, mark(shape, name), label)));
  legend.append(element("li", {}, element("span", { class: "front-line" }), "Pareto front"));

  function chip(row, x) {
    const said = `${row.name}, ${percent(row.accuracy)}, ${COSTS[x][1](row[x])}`;
    const made = element("button", { type: "button", title: said, "aria-label": said }, row.name);
    made.addEventListener("click", () => browse.open(row.id, true));
    return made;
  }

  let former = [];

  /* Draw the rows of a state, if they aren't what is drawn. */
  browse.plot = (state, rows, anew = false) => {
    const x = state.x;
    const asked = [x, state.open, rows.length, ...rows];
    if (!anew && asked.length === former.length && asked.every((each, i) => each === former[i])) return;
    former = asked;
    const [kind, drawn] = comparable(rows, x);
    const best = front(drawn, x);
    const [title, shown] = COSTS[x];
    const sets = FAMILIES.flatMap((family, number) => [true, false].map((hollow) => points(drawn, x, number, hollow)));
    const open = drawn.filter((row) => row.id === state.open).map((row) => opened(row, x));
    chart.data.datasets = [...sets, ...open, line(best, x)];
    chart.options.scales = {
      x: { type: "logarithmic", ...axis(title, tick(shown)) },
      y: { ...axis(kind, (value) => `${Number((100 * value).toPrecision(4))} %`), grace: "6%" },
    };
    chart.update();
    const others = rows.length - drawn.length;
    const left = `; ${others.toLocaleString("en")} ${others === 1 ? "other is" : "others are"} of other data or without a figure`;
    const said = `${models(drawn.length)} by ${kind}${others ? left : ""}.`;
    document.getElementById("plot-said").textContent = drawn.length ? said : "No model here has both figures.";
    chart.canvas.setAttribute("aria-label", `Accuracy against ${title}: ${models(drawn.length)}, ${best.length} on the Pareto front`);
    const chips = best.slice(-40).map((row) => chip(row, x));
    document.getElementById("front").replaceChildren(...(chips.length ? ["Front: ", ...chips] : []));
  };

  browse.chart = chart;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => browse.plot(browse.state, browse.chosen(browse.state), true));
})();
