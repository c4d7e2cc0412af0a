// Numbers of images: names, formats, the choice among them, histograms.

const data = JSON.parse(document.getElementById("images-data").textContent);
const columns = new Map(data.columns.map((column) => [column.name, column]));

const range = (count) => [...Array(count).keys()];

function tell(value) {
  if (value === null || value === undefined) return "undefined";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size < 1e-3 || size >= 1e5 ? value.toExponential(2) : value.toPrecision(3);
  return text.replace(/-/g, "−");
}

// What is no property of it becomes an attribute: Firefox before 119 has no properties for ARIA.
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function fullName(name) {
  const { group, label } = columns.get(name);
  return `${group}: ${label}`;
}

// What may be chosen instead; what was chosen is kept if it is still there.
function replaceOptions(select, options, first, otherwise = "") {
  const wanted = [select.value, otherwise];
  select.replaceChildren(...(first === undefined ? [] : [new Option(first, "")]), ...options);
  const values = Array.from(select.options, ({ value }) => value);
  select.selectedIndex = Math.max(0, values.indexOf(wanted.find((value) => values.includes(value))));
}

function offerNames(select, names, first) {
  replaceOptions(select, names.map((name) => new Option(name, name)), first);
}

function offerNumbers(select, names, first, otherwise) {
  const shown = Array.from(columns.values()).filter(({ name }) => names.includes(name));
  const groups = new Map(shown.map(({ group: label }) => [label, make("optgroup", { label })]));
  for (const { group, name } of shown) groups.get(group).append(new Option(fullName(name), name));
  replaceOptions(select, groups.values(), first, otherwise);
}

// Undefined numbers come last in either direction.
function compare(a, b, order) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return order * (a - b);
  return order * String(a).localeCompare(String(b), "en", { numeric: true });
}

// A form that chooses among images, of one model after another.
function startForm(control, models, chooseModel, arrange) {
  control("model").append(...models.map(({ label }, index) => new Option(label, index)));
  control("model").addEventListener("input", chooseModel);
  for (const name of ["sort", "order", "folder", "filter", "from", "to", "name"]) control(name).addEventListener("input", arrange);
  control("controls").addEventListener("submit", (event) => event.preventDefault());
  chooseModel();
}

// Folders of paths, and the folders that these are in; and the numbers by which to filter.
function offerFilters(control, paths, names) {
  const folders = new Set();
  for (const path of paths) {
    for (let end = path.lastIndexOf("/"); end > 0; end = path.lastIndexOf("/", end - 1)) folders.add(path.slice(0, end));
  }
  offerNames(control("folder"), [...folders].sort(), "any folder");
  control("folder").disabled = folders.size === 0;
  offerNumbers(control("filter"), names, "any number");
}

// The images that pass a form's controls, in its order; `numberOf` reads a number of one by name.
function chooseImages(control, paths, numberOf) {
  const wanted = control("name").value.trim().toLowerCase();
  const folder = control("folder").value;
  const [filter, sort] = [control("filter").value, control("sort").value];
  const from = control("from").value === "" ? -Infinity : Number(control("from").value);
  const to = control("to").value === "" ? Infinity : Number(control("to").value);
  const order = Number(control("order").value);
  control("from").disabled = control("to").disabled = filter === "";
  const passes = (image) => {
    if (folder && !paths[image].startsWith(`${folder}/`)) return false;
    if (wanted && !paths[image].toLowerCase().includes(wanted)) return false;
    if (filter === "") return true;
    const value = numberOf(image, filter);
    return value !== null && value >= from && value <= to;
  };
  const inOrder = (a, b) => (sort === "" ? order * (a - b) : compare(numberOf(a, sort), numberOf(b, sort), order) || a - b);
  return range(paths.length).filter(passes).sort(inOrder);
}

const spread = document.getElementById("distribution-number"); // none if there is no audit

async function showSpread() {
  document.getElementById("distribution-meaning").textContent = columns.get(spread.value).description;
  const without = data.distributions.filter(({ bins }) => !(spread.value in bins)).map(({ label }) => label);
  const missing = document.getElementById("distribution-missing");
  missing.textContent = without.length ? `Not known, or the same for every image: ${without.join(", ")}.` : "";
  await Promise.all(Array.from(document.querySelectorAll("[data-bins]"), showBins));
}

async function showBins(chart) {
  const index = chart.dataset.bins;
  const bins = data.distributions[index].bins[spread.value];
  const told = document.querySelector(`[data-told="${index}"]`);
  chart.parentElement.hidden = bins === undefined;
  if (bins === undefined) {
    waiting.delete(chart); // drawn when there is something to draw
    return;
  }
  told.textContent =
    `${fullName(spread.value)}: mean ${tell(bins.mean)}, median ${tell(bins.p50)}, ` +
    `5 to 95 % from ${tell(bins.p05)} to ${tell(bins.p95)}; n = ${bins.n.toLocaleString("en")}.`;
  const rows = bins.counts.map((count, bin) => ({
    low: bins.start + bin * bins.step,
    high: bins.start + (bin + 1) * bins.step,
    share: count / bins.n,
  }));
  // Bars without height, so that all results have one axis.
  const all = data.distributions.map((one) => one.bins[spread.value]).filter(Boolean);
  const ends = all.flatMap(({ start, step, counts }) => [start, start + step * counts.length]);
  rows.push(...[Math.min(...ends), Math.max(...ends)].map((end) => ({ low: end, high: end, share: 0 })));
  charts[chart.dataset.chart].data.values = rows;
  if (waiting.has(chart)) return; // drawn with them when its turn comes
  const view = await draw(chart);
  await view.data("bins", rows).resize().runAsync();
}

function startSpread() {
  const names = new Set(data.distributions.flatMap(({ bins }) => Object.keys(bins)));
  if (names.size === 0) {
    spread.disabled = true;
    return;
  }
  offerNumbers(spread, [...names]);
  const count = (name) => data.distributions.filter(({ bins }) => name in bins).length;
  spread.value = Array.from(spread.options, ({ value }) => value).reduce((a, b) => (count(b) > count(a) ? b : a));
  spread.addEventListener("input", showSpread);
  showSpread();
}
if (spread) startSpread();
