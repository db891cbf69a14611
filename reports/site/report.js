// The report page: tabs, sortable tables, a virtualised gallery and a viewer for two pictures. No library, no network.
// Everything that comes from a run reaches the page through textContent, never as markup.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const DEFAULTS = {
    view: "leaderboard", split: "", protocol: "standard", hide: "", sort: "", up: "",
    gsplit: "", q: "", cat: "", order: "", metric: "", a: "", b: "", variant: "raw",
    row: "", left: "", right: "", mode: "slider", zoom: "fit",
  };

  // State: what the address after # says, so that a link opens what its sender saw -------------------------------
  const state = { ...DEFAULTS };
  const readState = () => {
    const parameters = new URLSearchParams(location.hash.slice(1));
    for (const key of Object.keys(DEFAULTS)) state[key] = parameters.get(key) ?? DEFAULTS[key];
  };
  const setState = (changes) => {
    Object.assign(state, changes);
    const parameters = new URLSearchParams();
    for (const [key, value] of Object.entries(state)) if (value !== DEFAULTS[key]) parameters.set(key, value);
    const hash = parameters.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  };

  // Tabs ----------------------------------------------------------------------------------------------------------
  const showView = () => {
    const tabs = $$("[role=tab]");
    if (!tabs.some((tab) => tab.dataset.view === state.view)) state.view = DEFAULTS.view;
    for (const tab of tabs) {
      const chosen = tab.dataset.view === state.view;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      $(`#${tab.getAttribute("aria-controls")}`).hidden = !chosen;
    }
    if (state.view === "gallery") openGallery();
  };
  const wireTabs = () => {
    const tabs = $$("[role=tab]");
    tabs.forEach((tab, place) => {
      tab.addEventListener("click", () => { setState({ view: tab.dataset.view }); showView(); });
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = tabs[(place + step + tabs.length) % tabs.length];
        next.focus();
        next.click();
        event.preventDefault();
      });
    });
  };

  // Leaderboard ---------------------------------------------------------------------------------------------------
  const boards = () => $$(".board");
  const choices = (key) => [...new Set(boards().map((board) => board.dataset[key]))];
  const wireBoards = () => {
    for (const key of ["split", "protocol"]) {
      const group = $(`#choose-${key}`);
      for (const value of choices(key)) {
        const button = make("button", { type: "button", textContent: value });
        button.dataset.value = value;
        button.addEventListener("click", () => { setState({ [key]: value }); showBoard(); });
        group.append(button);
      }
      group.hidden = choices(key).length < 2;
    }
    const chooser = $("#choose-columns");
    for (const name of [...new Set($$(".board th[data-metric]").map((head) => head.dataset.metric))]) {
      const box = make("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => {
        const hidden = $$("input", chooser).filter((b) => !b.checked).map((b) => b.dataset.metric);
        setState({ hide: hidden.join(" ") });
        showBoard();
      });
      box.dataset.metric = name;
      chooser.append(make("label", {}, box, ` ${name.replaceAll("_", " ")}`));
    }
    for (const head of $$(".board th[data-column]")) {
      $("button", head).addEventListener("click", () => {
        const same = state.sort === head.dataset.column;
        setState({ sort: head.dataset.column, up: same && !state.up ? "1" : "" });
        showBoard();
      });
    }
  };
  const showBoard = () => {
    for (const key of ["split", "protocol"]) {
      if (!choices(key).includes(state[key])) state[key] = choices(key)[0] ?? "";
      for (const button of $$(`#choose-${key} button`))
        button.setAttribute("aria-pressed", String(button.dataset.value === state[key]));
    }
    const hidden = new Set(state.hide.split(" "));
    for (const box of $$("#choose-columns input")) box.checked = !hidden.has(box.dataset.metric);
    for (const board of boards()) {
      board.hidden = board.dataset.split !== state.split || board.dataset.protocol !== state.protocol;
      for (const cell of $$("[data-metric]", board)) cell.hidden = hidden.has(cell.dataset.metric);
      sortBoard(board);
    }
  };
  const sortBoard = (board) => {
    const head = $(`th[data-column="${CSS.escape(state.sort)}"]`, board);
    for (const other of $$("th[data-column]", board)) other.removeAttribute("aria-sort");
    if (!head) return;
    // Best first, unless turned round; reference lines keep their place under the rule.
    const higher = head.dataset.higher !== "no";
    const downwards = higher !== Boolean(state.up);
    head.setAttribute("aria-sort", downwards ? "descending" : "ascending");
    const place = [...head.parentElement.children].indexOf(head);
    const body = $("tbody.ranked", board);
    if (!body) return;
    const value = (row) => {
      const text = row.children[place].dataset.value;
      if (place === 0) return text;
      return text === "" || text === undefined ? NaN : Number(text);
    };
    const rows = [...body.rows].sort((x, y) => {
      const [a, b] = [value(x), value(y)];
      if (place === 0) return downwards ? String(a).localeCompare(String(b)) : String(b).localeCompare(String(a));
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      return a === b ? 0 : (downwards ? b - a : a - b);
    });
    body.append(...rows);
  };

  // Gallery -------------------------------------------------------------------------------------------------------
  let data = null;
  let shown = []; // numbers of the rows that pass the filters, in order
  let marks = new Map(); // place in `shown`: heading above that row
  const openGallery = () => {
    if (data) { showGallery(); return; }
    if ($("#gallery-data")) return;
    const script = make("script", { src: "gallery.js", id: "gallery-data" });
    script.addEventListener("load", () => { data = window.BRUSHBENCH; wireGallery(); showGallery(); openLinkedRow(); });
    script.addEventListener("error", () => { $("#gallery-status").textContent = "gallery.js is missing beside this page."; });
    document.head.append(script);
  };
  const stem = (row) => `${String(Math.floor(row / 100)).padStart(3, "0")}/${String(row).padStart(6, "0")}`;
  const method = (key) => data.methods.find((m) => m.key === key);
  const metricNamed = (name) => data.metrics.find((m) => m.name === name);
  const variantOf = (m) => (state.variant === "blended" && m.blended ? "blended" : "raw");
  const score = (key, variant, metric, row) => {
    const value = data.scores[`${key}|${variant}|${metric}`]?.[row];
    return value === "inf" ? Infinity : value === undefined || value === null ? NaN : value;
  };
  const shownScore = (m, row, metric = state.metric) => score(m.key, variantOf(m), metric, row);
  const text = (value, metric) =>
    Number.isNaN(value) ? "–" : value === Infinity ? "∞" : (value * metric.scale).toFixed(2);
  const options = (select, entries) => {
    select.replaceChildren(...entries.map(([value, label]) => make("option", { value, textContent: label })));
  };

  const wireGallery = () => {
    const splits = [...new Set(data.rows.map((row) => row.split))];
    options($("#gallery-split"), [["", "all splits"], ...splits.map((s) => [s, s])]);
    options($("#gallery-metric"), data.metrics.map((m) => [m.name, m.name.replaceAll("_", " ")]));
    const ranked = data.methods.filter((m) => !m.reference);
    for (const id of ["#gallery-a", "#gallery-b"]) options($(id), data.methods.map((m) => [m.key, m.label]));
    const categories = new Map();
    for (const row of data.rows)
      for (const [key, value] of Object.entries(row.meta)) {
        if (!categories.has(key)) categories.set(key, new Set());
        categories.get(key).add(value);
      }
    const few = [...categories].filter(([, values]) => values.size > 1 && values.size <= 60);
    options($("#gallery-cat"), [["", "all categories"],
      ...few.flatMap(([key, values]) => [...values].sort().map((v) => [JSON.stringify([key, v]), `${key}: ${v}`]))]);
    if (!metricNamed(state.metric)) {
      const first = data.metrics.find((m) => m.name.endsWith("@standard")) ?? data.metrics[0];
      state.metric = first ? first.name : "";
    }
    const pool = ranked.length > 1 ? ranked : data.methods;
    if (!method(state.a)) state.a = pool[0].key;
    if (!method(state.b)) state.b = (pool[1] ?? pool[0]).key;
    if (!state.order) state.order = pool.length > 1 ? "changed" : "manifest";
    const bind = (id, key, event = "change") => {
      const element = $(id);
      element.value = state[key];
      element.addEventListener(event, () => { setState({ [key]: element.value }); showGallery(); });
    };
    bind("#gallery-split", "gsplit");
    bind("#gallery-metric", "metric");
    bind("#gallery-order", "order");
    bind("#gallery-a", "a");
    bind("#gallery-b", "b");
    bind("#gallery-cat", "cat");
    bind("#gallery-variant", "variant");
    bind("#gallery-search", "q", "input");
    addEventListener("scroll", drawRows, { passive: true });
    addEventListener("resize", drawRows);
    document.addEventListener("keydown", galleryKeys);
  };

  const passes = (row) => {
    if (state.gsplit && row.split !== state.gsplit) return false;
    if (state.cat) {
      const [key, value] = JSON.parse(state.cat);
      if (row.meta[key] !== value) return false;
    }
    const words = state.q.trim().toLowerCase();
    return !words || row.prompt.toLowerCase().includes(words) || row.id.toLowerCase().includes(words);
  };
  // Positive where method A is better than B.
  const difference = (row) => {
    const [a, b] = [method(state.a), method(state.b)];
    const sign = metricNamed(state.metric)?.higher ? 1 : -1;
    const value = sign * (shownScore(a, row) - shownScore(b, row));
    return Number.isFinite(value) ? value : NaN;
  };
  const spread = (row) => {
    const values = data.methods.filter((m) => !m.reference).map((m) => shownScore(m, row)).filter(Number.isFinite);
    return values.length > 1 ? Math.max(...values) - Math.min(...values) : NaN;
  };
  const sorted = (rows, value, downwards = true) => {
    const keyed = rows.map((row) => [row, value(row)]);
    keyed.sort(([, a], [, b]) =>
      Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : a === b ? 0 : downwards ? b - a : a - b);
    return keyed.map(([row]) => row);
  };
  const arrange = () => {
    const rows = data.rows.map((_, i) => i).filter((i) => passes(data.rows[i]));
    marks = new Map();
    const metric = metricNamed(state.metric);
    if (state.order === "manifest" || !metric) { shown = rows; return; }
    if (state.order === "best" || state.order === "worst") {
      shown = sorted(rows, (row) => shownScore(method(state.a), row), metric.higher === (state.order === "best"));
      return;
    }
    if (state.order === "spread") { shown = sorted(rows, spread); return; }
    if (state.order === "difference") { shown = sorted(rows, difference); return; }
    const order = sorted(rows, difference).filter((row) => !Number.isNaN(difference(row)));
    const better = order.filter((row) => difference(row) > 0).slice(0, 10);
    const worse = order.filter((row) => difference(row) < 0).reverse().slice(0, 10);
    const first = new Set([...better, ...worse]);
    const [a, b] = [method(state.a).label, method(state.b).label];
    if (better.length) marks.set(0, `Most in favour of ${a}`);
    if (worse.length) marks.set(better.length, `Most in favour of ${b}`);
    shown = [...better, ...worse, ...rows.filter((row) => !first.has(row))];
    if (shown.length > first.size) marks.set(first.size, "All others, in the benchmark's order");
  };

  const showGallery = () => {
    if (!data) return;
    arrange();
    for (const [id, needs] of [["#gallery-a", ["best", "worst", "difference", "changed"]], ["#gallery-b", ["difference", "changed"]]])
      $(id).closest("label").hidden = !needs.includes(state.order);
    $("#gallery-status").textContent = `${shown.length} of ${data.rows.length} pictures` +
      (data.pictures ? "" : "; the pictures themselves are not in this report");
    $("#rows").replaceChildren();
    drawRows();
  };
  const rowHeight = () => parseFloat(getComputedStyle($("#rows")).getPropertyValue("--row-height"));
  const drawRows = () => {
    if (!data || $("#panel-gallery").hidden) return;
    const list = $("#rows");
    const height = rowHeight();
    list.style.height = `${shown.length * height}px`;
    const top = -list.getBoundingClientRect().top;
    const from = Math.max(0, Math.floor(top / height) - 3);
    const to = Math.min(shown.length, Math.ceil((top + innerHeight) / height) + 3);
    const wanted = new Set();
    for (let place = from; place < to; place++) wanted.add(String(place));
    for (const item of [...list.children])
      if (!wanted.has(item.dataset.place) && !item.contains(document.activeElement)) item.remove();
    const present = new Set([...list.children].map((item) => item.dataset.place));
    for (let place = from; place < to; place++)
      if (!present.has(String(place))) {
        const item = drawRow(place);
        item.style.transform = `translateY(${place * height}px)`;
        const after = [...list.children].find((other) => Number(other.dataset.place) > place);
        list.insertBefore(item, after ?? null);
      }
  };
  const thumb = (row, part) => `thumbs/${stem(row)}-${part}.webp`;
  const part = (m, variant = variantOf(m)) => (variant === "blended" ? `${m.key}b` : m.key);
  const drawRow = (place) => {
    const number = shown[place];
    const row = data.rows[number];
    const item = make("li", { className: "row" });
    item.dataset.place = String(place);
    item.setAttribute("aria-setsize", String(shown.length));
    item.setAttribute("aria-posinset", String(place + 1));
    const head = make("p", { className: "row-head" });
    const repeat = data.rows.some((r) => r.repeat > 0) ? `, repeat ${row.repeat}` : "";
    const id = make("span", { className: "id" });
    if (marks.has(place)) id.append(make("strong", { className: "mark", textContent: marks.get(place) }), " · ");
    id.append(make("bdi", { textContent: row.id }), ` · ${row.split}${repeat}`);
    head.append(id,
      make("bdi", { className: "prompt", textContent: row.prompt, title: row.prompt }));
    const strip = make("div", { className: "strip" });
    strip.tabIndex = -1;
    if (data.pictures) {
      strip.append(cell(number, "reference", thumb(number, "ref"), "", "ref"));
      strip.append(cell(number, "hole", thumb(number, "hole"), "", "hole"));
    }
    const metric = metricNamed(state.metric);
    for (const m of data.methods) {
      const value = metric ? text(shownScore(m, number), metric) : "";
      const problem = data.problems[m.key]?.[number];
      const src = data.pictures && !problem ? thumb(number, part(m)) : "";
      strip.append(cell(number, m.label, src, problem ?? value, part(m), Boolean(problem)));
    }
    item.append(head, strip);
    return item;
  };
  const cell = (number, label, src, below, source, missing = false) => {
    const button = make("button", { type: "button", className: "thumb" });
    button.setAttribute("aria-label", `${label}, ${data.rows[number].id}${below ? `, ${below}` : ""}: open`);
    if (src) button.append(make("img", { src, alt: "", loading: "lazy", decoding: "async" }));
    else button.append(make("span", { className: "gone", textContent: missing ? below : "no picture" }));
    button.append(make("span", { className: "label", textContent: label }),
      make("span", { className: "value", textContent: missing ? "–" : below }));
    button.addEventListener("click", () => openViewer(number, source));
    return button;
  };
  const galleryKeys = (event) => {
    if (state.view !== "gallery" || $("#viewer").open || event.target.closest("input, select, textarea")) return;
    const step = { j: 1, k: -1 }[event.key];
    if (event.key === "/") { $("#gallery-search").focus(); event.preventDefault(); return; }
    if (!step) return;
    const list = $("#rows");
    const height = rowHeight();
    const now = Math.round(-list.getBoundingClientRect().top / height);
    scrollBy({ top: list.getBoundingClientRect().top + (now + step) * height, behavior: "auto" });
  };

  // Viewer --------------------------------------------------------------------------------------------------------
  let flicker = 0;
  const sources = () => [["ref", "reference"], ["hole", "hole"],
    ...data.methods.flatMap((m) => [[m.key, m.label], ...(m.blended ? [[`${m.key}b`, `${m.label} (blended)`]] : [])])];
  const openViewer = (number, source) => {
    const known = new Set(sources().map(([value]) => value));
    const other = known.has(state.left) ? state.left : "ref";
    setState({ row: `${data.rows[number].split}/${data.rows[number].repeat}/${data.rows[number].id}`,
      left: other === source ? "ref" : other, right: known.has(source) ? source : data.methods[0].key });
    if (!$("#viewer").open) $("#viewer").showModal();
    drawViewer();
  };
  const current = () => data.rows.findIndex((r) => `${r.split}/${r.repeat}/${r.id}` === state.row);
  const openLinkedRow = () => {
    if (state.row && current() >= 0) { if (!$("#viewer").open) $("#viewer").showModal(); drawViewer(); }
  };
  const load = (src) => new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error(src));
    image.src = src;
  });
  const full = (row, name) => `full/${stem(row)}-${name}.png`;
  const paint = async (canvas, row, source) => {
    const context = canvas.getContext("2d");
    const one = async (name) => load(full(row, name)).catch(() => load(thumb(row, name)));
    const fill = (image) => context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const [width, height] = data.rows[row].size;
    [canvas.width, canvas.height] = [width || 64, height || 64];
    try {
      if (source === "ref") fill(await one("ref"));
      else if (source === "hole") fill(await load(thumb(row, "hole")));
      else if (source.endsWith("b")) {
        const [picture, mask, reference] = await Promise.all(
          [one(source.slice(0, -1)), load(full(row, "hole")), one("ref")]).catch(async () => [await load(thumb(row, source))]);
        fill(picture);
        if (mask) {
          context.globalCompositeOperation = "destination-in";
          fill(mask);
          context.globalCompositeOperation = "destination-over";
          fill(reference);
          context.globalCompositeOperation = "source-over";
        }
      } else fill(await one(source));
    } catch {
      context.fillStyle = "#777";
      context.fillRect(0, 0, canvas.width, canvas.height);
    }
  };
  const drawViewer = () => {
    const number = current();
    if (number < 0) return;
    const row = data.rows[number];
    for (const [id, key] of [["#viewer-left", "left"], ["#viewer-right", "right"]]) {
      options($(id), sources());
      $(id).value = state[key];
    }
    $("#viewer-mode").value = state.mode;
    $("#viewer-zoom").value = state.zoom;
    const stage = $("#stage");
    stage.dataset.mode = state.mode;
    stage.dataset.zoom = state.zoom;
    const [width, height] = row.size;
    const scale = state.zoom === "fit"
      ? Math.min(1024 / Math.max(width, 1), (stage.clientWidth || 600) / Math.max(width, 1), (innerHeight * 0.62) / Math.max(height, 1))
      : Number(state.zoom);
    stage.style.setProperty("--width", `${Math.max(1, width * scale)}px`);
    stage.style.setProperty("--height", `${Math.max(1, height * scale)}px`);
    for (const [id, key] of [["#canvas-left", "left"], ["#canvas-right", "right"]]) {
      const label = sources().find(([value]) => value === state[key])?.[1] ?? "";
      $(id).setAttribute("aria-label", `${label}, ${row.id}`);
      paint($(id), number, state[key]);
    }
    $("#viewer-title").textContent = `${row.id} · ${row.split}`;
    $("#viewer-prompt").textContent = row.prompt;
    $("#viewer-facts").textContent = [`seed ${row.seed}`, `${width} x ${height}`,
      ...Object.entries(row.meta).map(([key, value]) => `${key}: ${value}`)].join(" · ");
    drawScores(number);
    slide();
    setFlicker();
  };
  const drawScores = (number) => {
    const metrics = data.metrics.filter((m) => data.methods.some((x) => !Number.isNaN(score(x.key, "raw", m.name, number))));
    const head = make("tr", {}, make("th", { textContent: "method", scope: "col" }),
      ...metrics.map((m) => make("th", { textContent: m.label + (m.name.endsWith("@standard") ? "" : ` (${m.name.split("@")[1]})`), scope: "col" })));
    const lines = data.methods.flatMap((m) => ["raw", ...(m.blended ? ["blended"] : [])].map((variant) =>
      make("tr", {}, make("th", { scope: "row", textContent: variant === "raw" ? m.label : `${m.label} (${variant})` }),
        ...metrics.map((metric) => make("td", { textContent: text(score(m.key, variant, metric.name, number), metric) })))));
    $("#viewer-scores").replaceChildren(make("thead", {}, head), make("tbody", {}, ...lines));
  };
  const slide = () => {
    const share = Number($("#viewer-slider").value);
    $("#canvas-right").style.clipPath = state.mode === "slider" ? `inset(0 0 0 ${share}%)` : "";
    $("#stage").style.setProperty("--share", `${share}%`);
  };
  const setFlicker = () => {
    clearInterval(flicker);
    const right = $("#canvas-right");
    right.style.visibility = "";
    $("#viewer-slider").closest("label").hidden = state.mode !== "slider";
    if (state.mode === "flicker") {
      // Twice a second, under the three flashes per second that WCAG 2.3.1 allows.
      flicker = setInterval(() => { right.style.visibility = right.style.visibility === "hidden" ? "" : "hidden"; }, 500);
    }
  };
  const stepViewer = (step) => {
    const place = shown.indexOf(current());
    const next = shown[place + step];
    if (next === undefined) return;
    const row = data.rows[next];
    setState({ row: `${row.split}/${row.repeat}/${row.id}` });
    drawViewer();
  };
  const wireViewer = () => {
    const viewer = $("#viewer");
    $("#viewer-close").addEventListener("click", () => viewer.close());
    viewer.addEventListener("close", () => { clearInterval(flicker); setState({ row: "", left: "", right: "" }); });
    $("#viewer-next").addEventListener("click", () => stepViewer(1));
    $("#viewer-previous").addEventListener("click", () => stepViewer(-1));
    $("#viewer-slider").addEventListener("input", slide);
    for (const [id, key] of [["#viewer-left", "left"], ["#viewer-right", "right"], ["#viewer-mode", "mode"], ["#viewer-zoom", "zoom"]])
      $(id).addEventListener("change", (event) => { setState({ [key]: event.target.value }); drawViewer(); });
    viewer.addEventListener("keydown", (event) => {
      if (event.target.closest("select") || (event.target.type === "range" && event.key.startsWith("Arrow"))) return;
      if (event.key === "ArrowRight" || event.key === "j") stepViewer(1);
      else if (event.key === "ArrowLeft" || event.key === "k") stepViewer(-1);
      else if (event.key === "f") { setState({ mode: state.mode === "flicker" ? "slider" : "flicker" }); drawViewer(); }
      else if (event.key === "s") { setState({ left: state.right, right: state.left }); drawViewer(); }
      else if (event.key === "+" || event.key === "-") {
        const steps = ["fit", "1", "2", "4", "8"];
        const next = steps[steps.indexOf(state.zoom) + (event.key === "+" ? 1 : -1)];
        if (next) { setState({ zoom: next }); drawViewer(); }
      } else return;
      event.preventDefault();
    });
  };

  // Theme ---------------------------------------------------------------------------------------------------------
  const wireTheme = () => {
    const button = $("#theme");
    button.addEventListener("click", () => {
      const dark = document.documentElement.dataset.theme === "dark" ||
        (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
      document.documentElement.dataset.theme = dark ? "light" : "dark";
      button.setAttribute("aria-pressed", String(!dark));
    });
  };

  document.documentElement.classList.add("scripted");
  readState();
  wireTabs();
  wireBoards();
  wireViewer();
  wireTheme();
  showBoard();
  showView();
  addEventListener("hashchange", () => {
    readState();
    showBoard();
    showView();
    if (data) { for (const [id, key] of [["#gallery-split", "gsplit"], ["#gallery-metric", "metric"], ["#gallery-order", "order"], ["#gallery-search", "q"], ["#gallery-cat", "cat"], ["#gallery-variant", "variant"]]) if (state[key]) $(id).value = state[key]; openLinkedRow(); }
  });
})();
