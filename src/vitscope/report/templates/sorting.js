// Tables sort by a click on the head of a column, and again the other way.

// The number of a cell, or its words; null where it is undefined.
function sortKey(cell) {
  const [text] = readCell(cell);
  if (text === "" || text === "–") return null;
  return cell.dataset.numbers === undefined && !isNumber.test(cell.textContent) ? text : Number(text);
}

function compareKeys(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortTable(table, head, order) {
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order > 0 ? "ascending" : "descending");
  const rows = Array.from(table.tBodies[0].rows, (row) => ({ row, key: sortKey(row.cells[head.cellIndex]) }));
  // Undefined numbers come last in either direction.
  rows.sort((a, b) => (a.key === null) - (b.key === null) || (a.key === null ? 0 : order * compareKeys(a.key, b.key)));
  table.tBodies[0].append(...rows.map(({ row }) => row));
}

for (const table of document.querySelectorAll("table[data-name]")) {
  for (const head of table.tHead.rows[0].cells) {
    const button = make("button", { type: "button", textContent: head.textContent });
    button.addEventListener("click", () => sortTable(table, head, head.getAttribute("aria-sort") === "ascending" ? -1 : 1));
    head.replaceChildren(button);
  }
}
