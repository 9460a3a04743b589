"use strict";
/* The table: Tabulator's, with rows made as they are scrolled to. Arrows, Home, End and Page keys go through it. */

(() => {
  const { element, short, percent, milliseconds, FIGURES } = browse;
  const narrow = matchMedia("(max-width: 500px)").matches;
  const PAGE = 12; // rows that Page Up and Page Down go

  /* Measured or reported, as a mark for eyes and a word for ears. */
  function marked(row, key, text) {
    if (row[key === "accuracy" ? "figure" : key] == null || !text) return "–";
    const how = row.reported.has(key === "accuracy" ? row.figure : key) ? "reported" : "measured";
    const mark = element("span", { class: `mark ${how}`, title: how });
    return element("span", {}, text, " ", mark, element("span", { class: "unseen" }, how));
  }

  function accuracy(row) {
    if (row.accuracy == null) return "–";
    const shown = marked(row, "accuracy", percent(row.accuracy));
    if (row.figure !== "top1") shown.prepend(element("small", {}, `${FIGURES[row.figure]} `));
    return shown;
  }

  /* A name that may break behind each underscore. */
  const broken = (name) => name.split(/(?<=_)/).flatMap((part, i) => (i ? [element("wbr"), part] : [part]));

  function named(row) {
    return element("a", { href: browse.address({ ...browse.state, open: row.id }), tabindex: -1, title: row.id }, ...broken(row.name));
  }

  const columns = [
    ["name", "Name", named, { minWidth: narrow ? 130 : 200, widthGrow: 4, responsive: 0, cssClass: "name" }],
    ["accuracy", "Accuracy", accuracy, { minWidth: narrow ? 118 : 136, responsive: 0, number: true }],
    ["macs", "MACs", (row) => marked(row, "macs", short(row.macs)), { minWidth: narrow ? 82 : 88, responsive: 0, number: true }],
    ["params", "Params", (row) => marked(row, "params", short(row.params)), { minWidth: 104, responsive: 1, number: true }],
    ["ms", "Latency", (row) => milliseconds(row.ms) || "–", { minWidth: 104, responsive: 1, number: true }],
    ["method", "Method", (row) => row.method, { minWidth: 108, responsive: 2 }],
    ["data", "Data set", (row) => row.data || "–", { minWidth: 150, widthGrow: 2, responsive: 4 }],
    ["license", "Licence", (row) => row.license || "unknown", { minWidth: 110, responsive: 5 }],
    ["status", "Status", (row) => row.status, { minWidth: 96, responsive: 3 }],
    ["base", "Base", (row) => row.base || "–", { minWidth: 170, widthGrow: 2, responsive: 6 }],
  ].filter(([key]) => key !== "ms" || browse.COSTS.includes(key));

  const order = new Intl.Collator("en", { numeric: true });

  /* The unknown come last in either order. */
  const sorter = (key) => (a, b, rowA, rowB, column, dir) => {
    const [x, y] = [rowA.getData()[key], rowB.getData()[key]];
    const absent = (value) => value == null || value === "";
    if (absent(x) || absent(y)) return (absent(x) - absent(y)) * (dir === "asc" ? 1 : -1);
    return typeof x === "number" ? x - y : order.compare(x, y);
  };

  function column([field, title, shown, { number, ...more }]) {
    return {
      field,
      title,
      hozAlign: number ? "right" : "left",
      headerHozAlign: number ? "right" : "left",
      headerSortStartingDir: field === "accuracy" ? "desc" : "asc",
      titleFormatter: () => element("button", { type: "button" }, title),
      formatter: (cell) => element("span", {}, shown(cell.getRow().getData())), // of a text Tabulator would make markup
      sorter: sorter(field),
      ...more,
    };
  }

  function shownAs(row) {
    const made = row.getElement();
    const placed = (position) => made.setAttribute("aria-rowindex", position + 1); // the head is the first
    if (!made.dataset.id) row.watchPosition(placed);
    placed(row.getPosition());
    made.dataset.id = row.getData().id;
    made.setAttribute("tabindex", -1);
    made.setAttribute("aria-selected", row.getData().id === browse.state.open);
  }

  const table = new Tabulator("#grid", {
    data: browse.rows,
    index: "id",
    height: "100%",
    layout: "fitColumns",
    keybindings: false, // ours move the focus too
    responsiveLayout: "hide",
    rowHeight: 38,
    columns: columns.map(column),
    columnDefaults: { resizable: false, vertAlign: "middle" },
    initialSort: [{ column: browse.state.sort, dir: browse.state.dir }],
    placeholder: () => element("div", { role: "row", class: "nothing" }, element("span", { role: "gridcell" }, "No model fits: take a filter away")),
    rowFormatter: shownAs,
  });

  /* Keys: the focus goes from row to row, and what isn't made yet is scrolled to first. */
  const holder = () => document.querySelector("#grid .tabulator-tableholder");

  const frames = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  let current = -1;

  function inSight(made) {
    const [row, all] = [made, holder()].map((each) => each.getBoundingClientRect());
    return made.isConnected && row.top >= all.top && row.bottom <= all.bottom;
  }

  async function focus(position) {
    const rows = table.getRows("active");
    const row = rows[Math.max(0, Math.min(position, rows.length - 1))];
    if (!row) return;
    const mine = (current = rows.indexOf(row));
    if (!inSight(row.getElement())) {
      holder().focus({ preventScroll: true }); // until the row is made, and made anew by what scrolls
      await table.scrollToRow(row, "nearest", false).catch(() => {});
      await frames();
    }
    if (mine === current) row.getElement().focus({ preventScroll: true });
  }

  async function seen(id) {
    await table.scrollToRow(id, "center", false).catch(() => {});
    table.getRow(id).getElement().scrollIntoView({ block: "nearest" });
  }

  function moved(key, at, last) {
    const steps = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + PAGE, PageUp: at - PAGE, Home: 0, End: last };
    return steps[key];
  }

  function pressed(event) {
    const here = event.target.closest(".tabulator-row");
    const to = moved(event.key, current, table.getDataCount("active") - 1);
    if (to !== undefined) {
      event.preventDefault();
      focus(to);
    } else if (here && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      browse.open(table.getRows("active")[current].getData().id);
    }
  }

  const built = new Promise((resolve) => table.on("tableBuilt", resolve)).then(() => {
    document.getElementById("grid").setAttribute("aria-label", "Models; arrow keys go from row to row, Enter opens one");
    holder().setAttribute("role", "rowgroup"); // what takes the focus within a grid has a role
    holder().firstElementChild.setAttribute("role", "presentation");
    document.getElementById("grid").removeAttribute("aria-owns");
    holder().addEventListener("keydown", pressed);
    holder().addEventListener("focusin", (event) => {
      const here = event.target.closest(".tabulator-row");
      if (here) current = table.getRows("active").findIndex((row) => row.getData().id === here.dataset.id);
    });
    table.on("rowClick", (event, row) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a tab of its own
      event.preventDefault();
      browse.open(row.getData().id);
    });
    table.on("dataSorted", ([sorted]) => sorted && browse.change({ sort: sorted.field, dir: sorted.dir }));
  });

  let filtered = browse.rows;

  /* Show the rows of a state, in its order, and mark the one that is open. */
  browse.grid = (state, rows) =>
    built.then(async () => {
      const [sorted] = table.getSorters();
      if (!sorted || sorted.field !== state.sort || sorted.dir !== state.dir) table.setSort(state.sort, state.dir);
      if (rows.length !== filtered.length || rows.some((row, i) => row !== filtered[i])) {
        filtered = rows;
        const kept = new Set(rows);
        table.setFilter((row) => kept.has(row));
      }
      document.getElementById("grid").setAttribute("aria-rowcount", rows.length + 1);
      document.querySelectorAll("#grid .tabulator-row[aria-selected=true]").forEach((row) => row.setAttribute("aria-selected", false));
      const open = state.open && rows.some((row) => row.id === state.open) && table.getRow(state.open);
      if (open) open.getElement().setAttribute("aria-selected", true);
    });

  /* Bring a row into view, and give it the focus; what a panel that opens or closes leaves to the table is drawn first. */
  browse.show = (id, focused) =>
    built.then(frames).then(() => {
      const at = table.getRows("active").findIndex((row) => row.getData().id === id);
      if (at >= 0) return focused ? focus(at) : seen(id);
    });
})();
