// The address of the page says what is shown: a section, its controls, an image and one of its maps.

const forms = new Map([["gallery", chooseGallery], ["all-images", chooseTable]]); // each with what its model decides

function fieldsOf(key) {
  const fields = document.querySelectorAll(`#${key}-controls :is(select, input)`);
  return Array.from(fields, (field) => [field.id.slice(key.length + 1), field]);
}

function writeAddress(key) {
  const found = new URLSearchParams();
  for (const [name, { value, disabled }] of fieldsOf(key)) if (value !== "" && !disabled) found.set(name, value);
  if (key === "gallery" && view.dialog.open) {
    found.set("image", currentImage().id);
    found.set("shown", view.which);
  }
  history.replaceState(null, "", `#${key}?${found}`);
}

function readAddress() {
  const [key, query] = location.hash.slice(1).split("?", 2);
  if (query === undefined || !forms.has(key) || fieldsOf(key).length === 0) return;
  const asked = new URLSearchParams(query);
  for (const [name, field] of fieldsOf(key)) {
    const isOpen = !field.matches("select") || field.options[0]?.value === ""; // what need not be chosen
    if (asked.has(name) || isOpen) field.value = asked.get(name) ?? field.defaultValue ?? "";
    if (field.selectedIndex === -1) field.selectedIndex = 0;
    if (name === "model") forms.get(key)(field.value);
  }
  for (const [, field] of fieldsOf(key)) field.dispatchEvent(new Event(field.id === "gallery-map" ? "change" : "input"));
  document.getElementById(key).scrollIntoView({ behavior: "instant" });
  const at = key === "gallery" ? state.gallery.images.findIndex(({ id }) => id === asked.get("image")) : -1;
  if (at >= 0) openImage(control("model").value, at, asked.get("shown"));
}

for (const key of forms.keys()) {
  const form = document.getElementById(`${key}-controls`);
  for (const event of ["input", "reset"]) form?.addEventListener(event, () => setTimeout(writeAddress, 0, key));
}
// The large view opens, closes, and presses the button of the map that it shows.
const shown = new MutationObserver(() => writeAddress("gallery"));
shown.observe(view.dialog, { subtree: true, attributeFilter: ["open", "aria-pressed"] });
window.addEventListener("hashchange", readAddress);
// Charts above a section grow after the browser has scrolled to it, unless it has arrived.
document.getElementById(location.hash.slice(1))?.scrollIntoView({ behavior: "instant" });
readAddress();
