// The table of all images: any of their numbers, sorted, filtered, and saved as CSV.

const rowControl = (name) => document.getElementById(`all-images-${name}`);
const rowsAtOnce = 50;
const rows = { table: null, shown: [] };

function openTable(table) {
  const { root, paths } = data.lists[table.paths];
  const values = new Float32Array(readBytes(table.values).buffer);
  const gallery = data.galleries.findIndex(({ label }) => label === table.label);
  const images = gallery < 0 ? [] : data.galleries[gallery].images;
  return {
    ...table,
    root,
    paths,
    gallery,
    places: new Map(images.map(({ path }, at) => [path.startsWith(root) ? path.slice(root.length) : path, at])),
    numberOf(row, name) {
      const value = values[table.columns.indexOf(name) * paths.length + row];
      return value === undefined || Number.isNaN(value) ? null : value;
    },
  };
}

const shownColumns = () => rows.table.columns.filter((name) => columns.get(name).group === rowControl("group").value);

function chooseTable() {
  rows.table = openTable(data.tables[rowControl("model").value]);
  const has = new Set(rows.table.columns);
  const groups = new Set(Array.from(columns.values()).filter(({ name }) => has.has(name)).map(({ group }) => group));
  offerNames(rowControl("group"), [...groups]);
  for (const [name, first] of [["sort", "the order of the set"], ["filter", "any number"]]) {
    const kept = rowControl(name).value;
    offer(rowControl(name), rows.table.columns, first);
    rowControl(name).value = has.has(kept) ? kept : "";
  }
  offerFolders(rowControl("folder"), rows.table.paths);
  arrangeRows();
}

function compareRows(a, b) {
  const [sort, order] = [rowControl("sort").value, Number(rowControl("order").value)];
  if (sort === "") return order * (a - b);
  const [first, second] = [a, b].map((row) => rows.table.numberOf(row, sort));
  // Undefined numbers come last in either direction.
  return (first === null) - (second === null) || order * (first - second) || a - b;
}

function arrangeRows() {
  const { table } = rows;
  const keeps = readFilter(rowControl);
  rows.shown = Array.from(table.paths.keys())
    .filter((row) => keeps(table.paths[row], (name) => table.numberOf(row, name)))
    .sort(compareRows);
  rowControl("head").replaceChildren(makeHeading(""), ...shownColumns().map(makeHeading));
  rowControl("rows").replaceChildren();
  showRows();
}

function makeHeading(name) {
  const label = name === "" ? "image" : columns.get(name).label;
  const order = Number(rowControl("order").value);
  const sorted = rowControl("sort").value === name;
  const arrow = sorted ? (order > 0 ? " ↑" : " ↓") : "";
  const button = make("button", { type: "button", textContent: label + arrow });
  button.addEventListener("click", () => {
    rowControl("sort").value = name;
    rowControl("order").value = sorted ? -order : 1;
    rowControl("order").dispatchEvent(new Event("input", { bubbles: true }));
    rowControl("head").querySelector("[aria-sort] button").focus();
  });
  const heading = make("th", { scope: "col", title: name === "" ? "in the order of the set" : columns.get(name).description }, button);
  if (sorted) heading.setAttribute("aria-sort", order > 0 ? "ascending" : "descending");
  return heading;
}

function makeRow(row) {
  const { table } = rows;
  const path = table.paths[row];
  const at = table.places.get(path);
  let name = path;
  if (at !== undefined) {
    name = make("button", { type: "button", className: "link", textContent: path });
    name.addEventListener("click", () => openImage(table.gallery, at));
  }
  const cells = shownColumns().map((column) => make("td", { textContent: tell(table.numberOf(row, column)) }));
  return make("tr", {}, make("th", { scope: "row" }, name), ...cells);
}

function showRows() {
  const body = rowControl("rows");
  const from = body.childElementCount;
  body.append(...rows.shown.slice(from, from + rowsAtOnce).map(makeRow));
  const drawn = body.childElementCount;
  rowControl("more").hidden = drawn === rows.shown.length;
  rowControl("status").textContent =
    `${rows.shown.length} of ${rows.table.paths.length} images` + (drawn < rows.shown.length ? `, the first ${drawn} shown.` : ".");
  rowControl("note").textContent = rows.table.note;
}

function saveRows() {
  const { table, shown } = rows;
  const body = shown.map((row) => [table.root + table.paths[row], ...table.columns.map((name) => `${table.numberOf(row, name)?.toPrecision(7) ?? ""}`)]);
  saveCsv(nameFile("images", table.label), [["path", ...table.columns], ...body]);
}

function startTable() {
  data.tables.forEach(({ label }, index) => rowControl("model").append(new Option(label, index)));
  rowControl("model").addEventListener("input", chooseTable);
  for (const name of ["group", "sort", "order", "folder", "filter", "from", "to", "name"]) rowControl(name).addEventListener("input", arrangeRows);
  rowControl("controls").addEventListener("submit", (event) => event.preventDefault());
  rowControl("more").addEventListener("click", showRows);
  rowControl("csv").addEventListener("click", saveRows);
  chooseTable();
}
if (data.tables.length > 0) startTable();
