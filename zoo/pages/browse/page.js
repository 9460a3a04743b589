"use strict";
/* What was typed, clicked or came with the address becomes a state, and each part shows it. */

(() => {
  const { element, rows, models, LISTS, BOUNDS } = browse;
  const form = document.getElementById("filters");
  const axis = document.getElementById("x");
  const FIELDS = ["q", ...LISTS, "figures", ...BOUNDS];
  const WAIT = 120; // ms after the last key

  LISTS.forEach((key) => {
    const options = browse.tally(key).map(([value, count]) => element("option", { value }, `${value} (${count})`));
    form.elements[key].append(element("option", { value: "" }, "any"), ...options);
  });
  if (!browse.COSTS.includes("ms")) axis.querySelector("[value=ms]").remove();
  document.getElementById("more").open = matchMedia("(min-width: 901px)").matches;

  function filled(state) {
    FIELDS.forEach((key) => form.elements[key].value !== (state[key] || "") && (form.elements[key].value = state[key] || ""));
    axis.value = state.x;
  }

  function say(state, left) {
    const count = document.getElementById("count");
    const said = `${left === rows.length ? "" : `${left.toLocaleString("en")} of `}${models(rows.length)}`;
    if (count.textContent !== said) count.textContent = said;
    const set = FIELDS.filter((key) => key !== "q" && state[key]).length;
    document.getElementById("active").textContent = set ? `(${set} set)` : "";
  }

  function shown(state, moves) {
    const chosen = browse.chosen(state);
    say(state, chosen.length);
    browse.grid(state, chosen);
    browse.plot(state, chosen);
    browse.panel(state, moves);
  }

  /* Change what is said, and the address with it. */
  browse.change = (said, { kept = true, moves = false } = {}) => {
    const address = browse.address({ ...browse.state, ...said });
    if (address === browse.address(browse.state)) return;
    browse.state = { ...browse.state, ...said };
    history[kept ? "replaceState" : "pushState"](null, "", address);
    shown(browse.state, moves);
  };

  /* Open a model, or none; from the plot its row comes into view. */
  browse.open = (id, sought = false) => {
    browse.change({ open: id }, { kept: false, moves: true });
    if (id && sought) browse.show(id, false);
  };

  let waiting;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => browse.change(Object.fromEntries(FIELDS.map((key) => [key, form.elements[key].value.trim()]))), WAIT);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => browse.change(Object.fromEntries(FIELDS.map((key) => [key, ""]))));
  axis.addEventListener("change", () => browse.change({ x: axis.value }));
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address holds the state
    document.querySelector("#grid .tabulator-tableholder").focus();
  });
  addEventListener("popstate", () => {
    browse.state = browse.read();
    filled(browse.state);
    shown(browse.state, true);
  });

  filled(browse.state);
  shown(browse.state, false);
  if (browse.state.open) browse.show(browse.state.open, false);
})();
