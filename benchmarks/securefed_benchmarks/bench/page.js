"use strict";
// The tables of a bench report: sorted, filtered and drawn a screenful at a time, so that 10,000 rows open at once.
// Whatever comes from the data reaches the page as text, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const ROW = 32, SPARE = 8;

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const known = (v) => v !== null && v !== undefined;
function digits(score, value) {
  if (!known(value)) return "–";
  if (typeof value === "string") return "∞";
  if (score.share) return (100 * value).toFixed(1);
  const size = Math.abs(value);
  return size < 10 ? value.toFixed(3) : size < 1000 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}
const withHalf = (score, cell) =>
  !cell ? "–" : digits(score, cell[0]) + (known(cell[1]) ? " ± " + digits(score, cell[1]) : "");
const label = (config, axis) => (config.labels[axis] < 0 ? "" : DATA.axes[axis].labels[config.labels[axis]]);
const byValue = (a, b) => {
  const x = typeof a === "number", y = typeof b === "number";
  if (x && y) return a - b;
  if (x !== y) return x ? -1 : 1;
  return String(a).localeCompare(String(b), "en", { numeric: true });
};

const configs = DATA.configs.map((c, index) => ({ index, grid: c[0], labels: c[1], scores: c[2], failed: c[3], runs: [] }));
const runs = DATA.runs.map((r, index) => ({
  index, config: configs[r[0]], seed: r[1], failed: r[2] ? 1 : 0, error: r[2] ? DATA.errors[r[2] - 1] : "",
  scores: r[3], changed: r[4], seconds: r[5], made: r[6],
}));
runs.forEach((run) => run.config.runs.push(run));

// ---------------------------------------------------------------------------------------------- table

function columnsOf(kind) {
  const config = (row) => (kind === "runs" ? row.config : row);
  const columns = [];
  if (DATA.grids.length > 1) columns.push({ title: "grid", value: (row) => DATA.grids[config(row).grid].title });
  DATA.axes.forEach((axis, a) => columns.push({ title: axis.name, value: (row) => label(config(row), a) }));
  if (kind === "runs") columns.push({ title: "seed", number: true, value: (row) => row.seed });
  DATA.scores.forEach((score, s) => columns.push({
    title: score.name + (score.share ? ", %" : ""), number: true, link: true,
    value: (row) => { const v = kind === "runs" ? row.scores[s] : row.scores[s] && row.scores[s][0]; return score.share && known(v) ? 100 * v : v; },
    text: (row) => (kind === "runs" ? digits(score, row.scores[s]) : withHalf(score, row.scores[s])),
  }));
  if (kind === "runs") {
    columns.push({ title: "seconds", number: true, value: (row) => row.seconds, text: (row) => row.seconds.toFixed(1) });
    columns.push({ title: "state", value: (row) => (row.failed ? "failed" : "done") });
  } else {
    columns.push({ title: "seeds", number: true, value: (row) => row.runs.length - row.failed });
    columns.push({ title: "failed", number: true, value: (row) => row.failed });
  }
  for (const column of columns) column.text = column.text || ((row) => { const v = column.value(row); return known(v) ? String(v) : "–"; });
  return columns;
}

function asTest(text) {
  const found = /^\s*([<>]=?|=)?\s*(-?[\d.]+(?:e-?\d+)?)\s*$/i.exec(text);
  if (!found) return null;
  const limit = Number(found[2]);
  const tests = { "<": (v) => v < limit, ">": (v) => v > limit, "<=": (v) => v <= limit, ">=": (v) => v >= limit };
  return tests[found[1]] || ((v) => Math.abs(v - limit) < 1e-9);
}

class Table {
  constructor(root, kind, rows) {
    this.kind = kind;
    this.rows = rows;
    this.columns = columnsOf(kind);
    this.filters = this.columns.map(() => "");
    this.search = "";
    this.sort = null;
    this.root = root;
    this.body = make("div", { class: "body", role: "rowgroup" });
    this.root.replaceChildren(this.header(), this.body);
    this.root.onscroll = () => this.draw();
    this.apply();
  }

  header() {
    const widths = this.columns.map((c) => {
      let most = c.title.length + 3;
      const step = Math.max(1, Math.floor(this.rows.length / 200));
      for (let i = 0; i < this.rows.length; i += step) most = Math.max(most, c.text(this.rows[i]).length + 1);
      return Math.min(34, Math.max(c.number ? 8 : 9, most)) + "ch";
    });
    this.root.style.setProperty("--columns", widths.map((w) => `calc(${w} + 1.2rem)`).join(" "));
    this.buttons = this.columns.map((c, i) => make("button", { type: "button", onclick: () => this.sortBy(i) }, c.title));
    const heads = this.buttons.map((b, i) => make("div", { role: "columnheader", class: this.columns[i].number ? "n" : "" }, b));
    const filters = this.columns.map((c, i) => make("div", { role: "cell" }, this.filter(c, i)));
    return make("div", { class: "head", role: "rowgroup" },
      make("div", { class: "row", role: "row" }, ...heads), make("div", { class: "row filters", role: "row" }, ...filters));
  }

  filter(column, i) {
    const set = (event) => { this.filters[i] = event.target.value; this.apply(); };
    if (column.number) return make("input", { placeholder: "> 0", "aria-label": `filter ${column.title}, e.g. > 50`, oninput: set });
    const values = [...new Set(this.rows.map(column.value))].sort(byValue);
    return make("select", { "aria-label": `filter ${column.title}`, onchange: set },
      make("option", { value: "" }, "all"), ...values.map((v) => make("option", { value: "=" + v }, v === "" ? "–" : String(v))));
  }

  sortBy(i) {
    const down = this.sort && this.sort.column === i ? !this.sort.down : this.columns[i].number;
    this.sort = { column: i, down };
    this.buttons.forEach((b, k) => { if (k === i) b.dataset.sort = down ? "down" : "up"; else delete b.dataset.sort; });
    this.buttons.forEach((b, k) => b.parentElement.setAttribute("aria-sort", k !== i ? "none" : down ? "descending" : "ascending"));
    this.apply();
  }

  apply() {
    const tests = [];
    this.columns.forEach((c, i) => {
      const wanted = this.filters[i];
      if (!wanted) return;
      if (!c.number) tests.push((row) => "=" + c.value(row) === wanted);
      else { const test = asTest(wanted); if (test) tests.push((row) => typeof c.value(row) === "number" && test(c.value(row))); }
    });
    const words = this.search.toLowerCase().split(",").map((w) => w.trim()).filter(Boolean);
    if (words.length) tests.push((row) => { const text = this.columns.map((c) => c.text(row)).join(" ").toLowerCase(); return words.every((w) => text.includes(w)); });
    this.shown = tests.length ? this.rows.filter((row) => tests.every((t) => t(row))) : this.rows.slice();
    if (this.sort) {
      const { value } = this.columns[this.sort.column], sign = this.sort.down ? -1 : 1;
      const keyed = this.shown.map((row) => [value(row), row]);
      keyed.sort(([a, x], [b, y]) => !known(a) || !known(b) ? known(b) - known(a) || x.index - y.index : sign * byValue(a, b) || x.index - y.index);
      this.shown = keyed.map((k) => k[1]);
    }
    this.body.style.height = this.shown.length * ROW + "px";
    document.getElementById("count").value = `${this.shown.length.toLocaleString("en")} of ${this.rows.length.toLocaleString("en")}`;
    this.root.setAttribute("aria-rowcount", this.shown.length);
    this.root.scrollTop = 0;
    this.draw(true);
  }

  draw(anew) {
    const first = Math.max(0, Math.floor(this.root.scrollTop / ROW) - SPARE);
    const last = Math.min(this.shown.length, first + Math.ceil(this.root.clientHeight / ROW) + 2 * SPARE);
    if (!anew && this.first === first && this.last === last) return;
    [this.first, this.last] = [first, last];
    const nodes = [];
    for (let i = first; i < last; i++) nodes.push(this.row(this.shown[i], i));
    if (!nodes.length) nodes.push(make("div", { class: "none" }, "Nothing fits these filters."));
    this.body.replaceChildren(...nodes);
  }

  row(row, i) {
    const href = "#" + (this.kind === "runs" ? "r" : "c") + row.index;
    const cells = this.columns.map((c) => {
      const text = c.text(row);
      const inside = c.link && text !== "–" ? make("a", { href }, text) : text;
      return make("div", { role: "cell", class: c.number ? "n" : "", title: `${c.title}: ${text}` }, inside);
    });
    const node = make("div", { class: "row" + (row.failed && this.kind === "runs" ? " failed" : ""), role: "row", "aria-rowindex": i + 1, onclick: () => { location.hash = href; } }, ...cells);
    node.style.top = i * ROW + "px";
    return node;
  }
}

// --------------------------------------------------------------------------------------------- detail

const shell = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : "'" + word.replaceAll("'", "'\\''") + "'");
function block(title, text) {
  const copy = make("button", { class: "copy", type: "button", onclick: () => navigator.clipboard && navigator.clipboard.writeText(text).then(() => { copy.textContent = "copied"; }, () => { copy.textContent = "select and copy"; }) }, "copy");
  return [make("h4", {}, title, copy), make("pre", {}, text)];
}
function facts(pairs) {
  return make("dl", {}, ...pairs.filter(([, v]) => v !== "" && v !== "–").flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)]));
}
function close() {
  history.replaceState(null, "", location.pathname + location.search);
  dialog.close();
}
const dialog = make("dialog", { "aria-label": "one result", onclick: (event) => { if (event.target === dialog) close(); }, oncancel: (event) => { event.preventDefault(); close(); } });
document.body.append(dialog);

function detail(config, run) {
  const grid = DATA.grids[config.grid];
  const chosen = DATA.axes.map((axis, a) => [axis.name, String(label(config, a))]).filter(([, v]) => v !== "");
  const title = grid.title + ": " + (chosen.map(([k, v]) => `${k} ${v}`).join(", ") || "the job as it is") + (run ? `, seed ${run.seed}` : "");
  const one = run || config.runs[0];
  const changed = one ? one.changed.map((i) => DATA.changed[i]).concat(run ? DATA.seeded.map((f) => `${f}=${run.seed}`) : []) : [];
  const seeds = config.runs.map((r) => r.seed);
  const only = [`grid=${grid.name}`, ...chosen.map(([k, v]) => `${k}=${v}`)].map(shell).join(" ");
  const parts = [make("button", { class: "close", type: "button", "aria-label": "close", onclick: close }, "×"), make("h3", {}, title)];
  if (run && run.failed) parts.push(make("p", { class: "note" }, run.error));
  parts.push(facts(DATA.scores.map((s, k) => [s.name + (s.share ? ", %" : ""), run ? digits(s, run.scores[k]) : withHalf(s, config.scores[k])])));
  if (run) parts.push(facts([["time", run.seconds.toFixed(1) + " s"], ["made with", DATA.made[run.made]]]));
  else parts.push(make("h4", {}, "its runs"), make("div", { class: "seeds" }, ...config.runs.map((r) => make("a", { href: "#r" + r.index }, `seed ${r.seed}` + (r.failed ? ", failed" : "")))));
  parts.push(...block("play it again, as the bench did", `securefed bench ${shell(grid.suite)} --only ${only} --seeds ${(run ? [run.seed] : seeds).join(",")} --folder again`));
  parts.push(...block("play it as a job of its own", ["securefed run", shell("jobs/" + grid.file), ...changed.map(shell)].join(" ")));
  parts.push(...block(`its config: jobs/${grid.file}, with these fields changed`, (changed.join("\n") || "none") + "\n\n" + grid.job));
  dialog.replaceChildren(...parts);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function follow() {
  const found = /^#([cr])(\d+)$/.exec(location.hash);
  if (!found) return;
  const index = Number(found[2]);
  if (found[1] === "c" && configs[index]) detail(configs[index], null);
  if (found[1] === "r" && runs[index]) detail(runs[index].config, runs[index]);
}
window.addEventListener("hashchange", follow);

// ----------------------------------------------------------------------------------------------- page

function fade(box) {  // the right edge of what goes on beyond it
  box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
}
const boxes = document.querySelectorAll(".scroll");
for (const box of boxes) box.addEventListener("scroll", () => fade(box), { passive: true });

const root = document.getElementById("table");
const search = document.getElementById("search");
let table = null;
function show(kind) {
  for (const button of document.querySelectorAll("[data-kind]")) button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
  search.value = "";
  table = new Table(root, kind, kind === "runs" ? runs : configs);
}
for (const button of document.querySelectorAll("[data-kind]")) button.addEventListener("click", () => show(button.dataset.kind));
search.addEventListener("input", () => { table.search = search.value; table.apply(); });
window.addEventListener("resize", () => { table.draw(true); boxes.forEach(fade); });
show("configs");
boxes.forEach(fade);
follow();
document.body.dataset.ready = String(Math.round(performance.now()));
