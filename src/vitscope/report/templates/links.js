// The address of the page says what is shown: a section, its controls, an image and one of its maps; or how a table is
// sorted.

const forms = ["gallery", "all-images", "distribution"];

function fieldsOf(key) {
  const fields = document.querySelectorAll(`#${key}-controls :is(select, input)`);
  return Array.from(fields, (field) => [field.id.slice(key.length + 1), field]);
}

function setAddress(key, asked) {
  history.replaceState(null, "", `#${key}?${new URLSearchParams(asked)}`);
}

function writeAddress(key) {
  const asked = fieldsOf(key).flatMap(([name, { value, disabled }]) => (value === "" || disabled ? [] : [[name, value]]));
  if (key === "gallery" && view.dialog.open) asked.push(["image", currentImage().id], ["shown", view.which]);
  setAddress(key, asked);
}

function readAddress() {
  const [key, query] = location.hash.slice(1).split("?", 2);
  if (query === undefined) return;
  const asked = new URLSearchParams(query);
  if (asked.has("table")) readSorting(asked);
  else if (forms.includes(key) && fieldsOf(key).length > 0) readForm(key, asked);
}

function readForm(key, asked) {
  for (const [name, field] of fieldsOf(key)) {
    const isOpen = !field.matches("select") || field.options[0]?.value === ""; // what need not be chosen
    if (asked.has(name) || isOpen) field.value = asked.get(name) ?? field.defaultValue ?? "";
    if (field.selectedIndex === -1) field.selectedIndex = 0;
    field.dispatchEvent(new Event("input")); // a model decides what the others offer
  }
  document.getElementById(key).scrollIntoView({ behavior: "instant" });
  const at = key === "gallery" ? state.gallery.images.findIndex(({ id }) => id === asked.get("image")) : -1;
  if (at >= 0) openImage(control("model").value, at, asked.get("shown"));
}

const sortable = Array.from(document.querySelectorAll("table[data-name]"));

function writeSorting(table) {
  const head = table.querySelector("[aria-sort]");
  const order = head.getAttribute("aria-sort") === "ascending" ? 1 : -1;
  setAddress(table.closest("[id]").id, { table: table.dataset.name, sort: head.textContent, order });
}

function readSorting(asked) {
  const table = sortable.find(({ dataset }) => dataset.name === asked.get("table"));
  const head = Array.from(table?.tHead.rows[0].cells ?? []).find(({ textContent }) => textContent === asked.get("sort"));
  if (head === undefined) return;
  sortTable(table, head, asked.get("order") === "-1" ? -1 : 1);
  for (let at = table.closest("details"); at; at = at.parentElement.closest("details")) at.open = true;
  table.scrollIntoView({ behavior: "instant", block: "center" });
}

for (const key of forms) {
  const form = document.getElementById(`${key}-controls`);
  for (const event of ["input", "reset"]) form?.addEventListener(event, () => setTimeout(writeAddress, 0, key));
}
for (const table of sortable) table.tHead.addEventListener("click", () => table.querySelector("[aria-sort]") && writeSorting(table));
// The large view opens, closes, and presses the button of the map that it shows.
const shown = new MutationObserver(() => writeAddress("gallery"));
shown.observe(view.dialog, { subtree: true, attributeFilter: ["open", "aria-pressed"] });
// A file's own place is no one else's: of a page opened from disk, the link is its name.
const linkHere = () => (location.protocol === "file:" ? location.pathname.split("/").at(-1) + location.hash : location.href);
part("link").addEventListener("click", () => copy(part("link"), linkHere()));
window.addEventListener("hashchange", readAddress);
// Charts above a section grow after the browser has scrolled to it, unless it has arrived.
document.getElementById(location.hash.slice(1))?.scrollIntoView({ behavior: "instant" });
readAddress();
