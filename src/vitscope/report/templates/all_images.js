// The table of all images: any of their numbers, sorted, filtered, and saved as CSV.

const rowControl = (name) => document.getElementById(`all-images-${name}`);
const rowsAtOnce = 50;
const rows = { table: null, shown: [] };

function openTable(table) {
  const { root, paths } = data.lists[table.paths];
  const values = new Float32Array(readBytes(table.values).buffer);
  const gallery = data.galleries.findIndex(({ label }) => label === table.label);
  const places = new Map(data.galleries[gallery]?.images.map(({ path }, at) => [path, at]));
  const numberOf = (row, name) => {
    const value = values[table.columns.indexOf(name) * paths.length + row] ?? NaN;
    return Number.isNaN(value) ? null : value;
  };
  return { ...table, root, paths, gallery, places, numberOf };
}

const shownColumns = () => rows.table.columns.filter((name) => columns.get(name).group === rowControl("group").value);

function chooseTable() {
  rows.table = openTable(data.tables[rowControl("model").value]);
  const { columns: names, paths } = rows.table;
  const known = Array.from(columns.values()).filter(({ name }) => names.includes(name));
  offerNames(rowControl("group"), [...new Set(known.map(({ group }) => group))]);
  offerNumbers(rowControl("sort"), names, "the order of the set");
  offerFilters(rowControl, paths, names);
  arrangeRows();
}

function arrangeRows() {
  rows.shown = chooseImages(rowControl, rows.table.paths, rows.table.numberOf);
  rowControl("head").replaceChildren(...["", ...shownColumns()].map(makeHeading));
  rowControl("rows").replaceChildren();
  showRows();
}

function makeHeading(name) {
  const { label, description } = columns.get(name) ?? { label: "image", description: "in the order of the set" };
  const order = Number(rowControl("order").value);
  const sorted = rowControl("sort").value === name;
  const arrow = sorted ? (order > 0 ? " ↑" : " ↓") : "";
  const onclick = () => {
    rowControl("sort").value = name;
    rowControl("order").value = sorted ? -order : 1;
    rowControl("order").dispatchEvent(new Event("input", { bubbles: true }));
    rowControl("head").querySelector("[aria-sort] button").focus();
  };
  const button = make("button", { type: "button", textContent: label + arrow, onclick });
  const looks = { scope: "col", title: description, ...(sorted && { "aria-sort": order > 0 ? "ascending" : "descending" }) };
  return make("th", looks, button);
}

function makeRow(row) {
  const { root, paths, gallery, places, numberOf } = rows.table;
  const [textContent, at] = [paths[row], places.get(root + paths[row])];
  const onclick = () => openImage(gallery, at);
  const name = at === undefined ? textContent : make("button", { type: "button", className: "link", textContent, onclick });
  const cells = shownColumns().map((column) => make("td", { textContent: tell(numberOf(row, column)) }));
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
  const { root, paths, columns: names, label, numberOf } = rows.table;
  const body = rows.shown.map((row) => [root + paths[row], ...names.map((name) => `${numberOf(row, name)?.toPrecision(7) ?? ""}`)]);
  saveCsv(nameFile("images", label), [["path", ...names], ...body]);
}

if (data.tables.length > 0) {
  rowControl("group").addEventListener("input", arrangeRows);
  rowControl("more").addEventListener("click", showRows);
  rowControl("csv").addEventListener("click", saveRows);
  startForm(rowControl, data.tables, chooseTable, arrangeRows);
}
