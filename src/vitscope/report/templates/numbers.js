// Numbers of images: names, formats, the choice among them, histograms.

const data = JSON.parse(document.getElementById("images-data").textContent);
const columns = new Map(data.columns.map((column) => [column.name, column]));

function tell(value) {
  if (value === null || value === undefined) return "undefined";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : value.toPrecision(3);
  return text.replace(/-/g, "−");
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function fullName(name) {
  const { group, label } = columns.get(name);
  return `${group}: ${label}`;
}

function offer(select, names, first) {
  select.replaceChildren();
  if (first !== undefined) select.append(new Option(first, ""));
  const groups = new Map();
  for (const name of columns.keys()) {
    if (!names.includes(name)) continue;
    const { group } = columns.get(name);
    if (!groups.has(group)) {
      groups.set(group, make("optgroup", { label: group }));
      select.append(groups.get(group));
    }
    groups.get(group).append(new Option(fullName(name), name));
  }
}

// The folder that all paths are in, with its last slash; of the first and the last in order, as no other differs sooner.
function findRoot(paths) {
  const sorted = [...paths].sort();
  const [first, last] = [sorted[0], sorted.at(-1)];
  let length = 0;
  while (length < first.length && first[length] === last[length]) length += 1;
  return first.slice(0, first.slice(0, length).lastIndexOf("/") + 1);
}

// Folders of paths, and the folders that these are in.
function listFolders(paths) {
  const found = new Set();
  for (const path of paths) {
    for (let end = path.lastIndexOf("/"); end > 0; end = path.lastIndexOf("/", end - 1)) found.add(path.slice(0, end));
  }
  return [...found].sort();
}

function offerNames(select, names, first) {
  const kept = select.value;
  select.replaceChildren(...(first === undefined ? [] : [new Option(first, "")]), ...names.map((name) => new Option(name, name)));
  if (names.includes(kept)) select.value = kept;
}

function offerFolders(select, paths) {
  const folders = listFolders(paths);
  offerNames(select, folders, "any folder");
  select.disabled = folders.length === 0;
}

// Whether an image passes a form's controls; `numberOf` reads one of its numbers by name.
function readFilter(control) {
  const wanted = control("name").value.trim().toLowerCase();
  const folder = control("folder").value;
  const name = control("filter").value;
  const from = control("from").value === "" ? -Infinity : Number(control("from").value);
  const to = control("to").value === "" ? Infinity : Number(control("to").value);
  control("from").disabled = control("to").disabled = name === "";
  return (path, numberOf) => {
    if (folder && !path.startsWith(`${folder}/`)) return false;
    if (wanted && !path.toLowerCase().includes(wanted)) return false;
    if (name === "") return true;
    const value = numberOf(name);
    return value !== null && value >= from && value <= to;
  };
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
    leaveOut(chart); // drawn when there is something to draw
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
  if (spread === null) return; // a report without audits
  const names = new Set(data.distributions.flatMap(({ bins }) => Object.keys(bins)));
  if (names.size === 0) {
    spread.disabled = true;
    return;
  }
  offer(spread, [...names]);
  const count = (name) => data.distributions.filter(({ bins }) => name in bins).length;
  spread.value = Array.from(spread.options, ({ value }) => value).reduce((a, b) => (count(b) > count(a) ? b : a));
  spread.addEventListener("input", showSpread);
  showSpread();
}
if (spread) startSpread();
