"use strict";
/* The panel: all that is known of one model. */

(() => {
  const { element, figure, FIGURES } = browse;
  const panel = document.getElementById("panel");
  const OURS = new Set(["measured here", "its results"]);
  const WEB = /^https?:\/\//;

  const link = (text, address) =>
    WEB.test(address) ? element("a", { href: address, target: "_blank", rel: "noreferrer" }, text) : text;

  /* "Title, https://…" becomes a link. */
  function linked(text) {
    const found = /^(.*), (https?:\/\/\S+)$/.exec(text);
    return found ? link(found[1], found[2]) : text;
  }

  async function copy(text, button) {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling); // where the browser forbids it
      button.textContent = "Press Ctrl-C";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }

  function load(row) {
    if (!row.load) return element("p", { class: "obstacle" }, row.obstacle);
    const button = element("button", { type: "button", "aria-live": "polite" }, "Copy");
    button.addEventListener("click", () => copy(row.load, button));
    return element("div", { class: "load" }, element("code", {}, row.load), button);
  }

  function list(pairs) {
    return element("dl", {}, ...pairs.flatMap(([key, value]) => [element("dt", {}, key), element("dd", {}, value)]));
  }

  /* Figures: measured first, then what sources report. */
  function figures(row) {
    if (!row.figures) return [];
    const items = row.figures.map(([whose, values, conditions]) => {
      const how = OURS.has(whose) ? "measured" : "reported";
      const said = Object.entries(values).map(([key, value]) =>
        element("span", {}, `${FIGURES[key] || key.replaceAll("_", " ")} `, element("b", {}, figure(key, value))),
      );
      const mark = element("span", { class: `mark ${how}`, "aria-hidden": "true" });
      const title = how === whose || OURS.has(whose) ? whose : `${whose}, reported`;
      return element("li", {}, mark, element("h4", {}, title), element("p", {}, ...said), element("small", {}, conditions));
    });
    return [element("h3", {}, "Figures"), element("ul", { class: "figures" }, ...items)];
  }

  /* The plan: a bar for each layer, of the share of its weights that is left. */
  function plan(row) {
    if (!row.layers) return [];
    const cut = row.layers.filter(([, , share]) => share < 1).length;
    const said = `${cut} of ${row.layers.length} layers are smaller`;
    const picture = element("div", { class: "bars", role: "img", "aria-label": `${said}; a bar for each, of the share of its weights that is left` });
    const lines = row.layers.map(([path, words, share]) => {
      const bar = element("i", { title: `${path}: ${words}` });
      bar.append(element("b"));
      bar.firstChild.style.height = `${100 * Math.min(share, 1)}%`;
      picture.append(bar);
      const text = `${(100 * share).toFixed(0)} %`;
      return element("tr", {}, ...[path, words, text].map((cell, i) => element("td", i === 2 ? { class: "number" } : {}, cell)));
    });
    const head = ["layer", "became", "weights left"].map((title) => element("th", { scope: "col" }, title));
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...lines));
    const layers = element("details", {}, element("summary", {}, "All layers"), table);
    return [element("h3", {}, "What was cut"), element("p", {}, `${said}; what is left of the weights of each:`), picture, layers];
  }

  /* The card came through a renderer that lets no markup of its author's pass. */
  function card(row) {
    if (!row.card) return [];
    const body = element("div", { class: "card" });
    body.innerHTML = row.card;
    body.querySelectorAll("a").forEach((each) => Object.assign(each, { target: "_blank", rel: "noreferrer" }));
    body.querySelectorAll("table").forEach((each) => {
      const around = element("div", { class: "scroll", role: "group", "aria-label": "Table" });
      each.replaceWith(around);
      around.append(each);
    });
    body.querySelectorAll("pre, .scroll").forEach((each) => (each.tabIndex = 0)); // which may scroll
    body.querySelector("h3")?.remove(); // its name again
    return [element("details", { open: "" }, element("summary", {}, "Card"), body)];
  }

  function facts(row) {
    const about = [
      ["Task", row.task],
      ["Base", row.base],
      ["Data set", row.data],
      ["Licence", row.license || "unknown"],
    ].filter(([, value]) => value);
    return list([...about, ...(row.facts || []).map(([key, value]) => [key, linked(value)])]);
  }

  function filled(row) {
    const close = element("button", { type: "button", class: "close", title: "Close (Esc)" }, element("span", { "aria-hidden": "true" }, "×"), element("span", { class: "unseen" }, "Close"));
    close.addEventListener("click", () => browse.open(""));
    const badges = [row.method, row.status].map((text) => element("span", { class: "badge" }, text));
    return [
      element("header", {}, element("h2", { id: "panel-title", tabindex: -1 }, row.name), close),
      element("p", { class: "badges" }, ...badges),
      load(row),
      element("ul", { class: "links" }, ...(row.links || []).map(([title, address]) => element("li", {}, link(title, address)))),
      ...figures(row),
      ...plan(row),
      element("h3", {}, "About"),
      facts(row),
      ...card(row),
    ];
  }

  let open = "";
  const narrow = matchMedia("(max-width: 900px)");
  const covered = () => (document.getElementById("main").inert = narrow.matches && !panel.hidden);
  narrow.addEventListener("change", covered);

  /* Show the model of a state; the focus goes where the eyes go, and back to its row. */
  browse.panel = (state, moves) => {
    const row = browse.rows.find((each) => each.id === state.open);
    if (open === (row ? row.id : "")) return;
    const former = open;
    open = row ? row.id : "";
    panel.hidden = !row;
    document.body.classList.toggle("opened", Boolean(row));
    panel.replaceChildren(...(row ? filled(row) : []));
    panel.scrollTop = 0;
    covered();
    if (row && moves) document.getElementById("panel-title").focus();
    if (!row && former && moves) browse.show(former, true);
  };

  addEventListener("keydown", (event) => event.key === "Escape" && open && browse.open(""));
})();
