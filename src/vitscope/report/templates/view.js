// The large view of one image: any of its maps, each head, and the numbers of each patch.

const part = (name) => document.getElementById(`view-${name}`);
const view = { dialog: document.getElementById("view"), place: 0, which: "", patch: null };

function currentImage() {
  return state.gallery.images[state.shown[view.place]];
}

const currentGrid = () => viewOf(currentImage(), view.which).grid;

function openView(place) {
  view.place = place;
  showImage();
  if (!view.dialog.open) view.dialog.showModal();
}

// An image of any gallery, which the filter may have hidden.
function openImage(gallery, at, which = view.which) {
  if (data.galleries[gallery] !== state.gallery) {
    control("model").value = gallery;
    chooseGallery();
  }
  if (!state.shown.includes(at)) {
    for (const name of ["folder", "filter", "name"]) control(name).value = "";
    arrange();
  }
  view.which = which;
  openView(state.shown.indexOf(at));
}

function showImage() {
  const { gallery } = state;
  const image = currentImage();
  part("name").textContent = image.name;
  part("path").textContent = `${image.path} · ${view.place + 1} of ${state.shown.length} · ${gallery.label}`;
  part("told").textContent = image.told;
  part("why").textContent = image.why;
  const { kind, shares } = sharesOf(image);
  part("shares").replaceChildren(...(kind === null ? [] : [makeShares(shares)]));
  const names = Object.keys(image.maps);
  const heads = range(image.heads?.scale.length ?? 0).map(String);
  const all = [...names, ...heads, ...listLayers(image).flat()];
  part("map").replaceChildren(...all.map((which) => new Option(openMap(image, which).name, which)));
  if (!all.includes(view.which)) view.which = names[0];
  part("maps").replaceChildren(...names.map((name) => makeChoice(image, name, nameMap(image, name))));
  part("heads").replaceChildren(...heads.map((head) => makeChoice(image, head, head)));
  part("heads-title").hidden = image.heads === null;
  part("heads-title").textContent = image.heads === null ? "" : `${image.heads.title} of each head`;
  part("layers").hidden = image.layers === null;
  fillLayers();
  const numbers = gallery.columns.map((name) => [fullName(name), tell(numberOf(image, name))]);
  part("facts").replaceChildren(...listFacts(image).map(([name, value]) => makePair("div", "dt", name, "dd", value)));
  part("numbers").replaceChildren(...numbers.map(([name, value]) => makePair("tr", "th", name, "td", value)));
  part("others").replaceChildren(...listOthers(image));
  view.patch = null;
  showMap(view.which);
}

function makePair(around, first, name, second, value) {
  const named = make(first, { textContent: name, ...(first === "th" && { scope: "row" }) });
  return make(around, {}, named, make(second, { textContent: value }));
}

function makeChoice(image, which, label) {
  const map = openMap(image, which);
  const canvas = paint(map);
  canvas.style.aspectRatio = viewOf(image, which).size.join(" / ");
  const looks = { type: "button", className: "choice", value: which, "aria-label": map.name, "aria-pressed": which === view.which };
  return make("button", { ...looks, onclick: () => showMap(which) }, canvas, make("span", { textContent: label }));
}

// The heads of each layer, as `openMap` takes them.
function listLayers(image) {
  return range(image.layers?.count ?? 0).map((layer) => range(headsPerLayer(image)).map((head) => `${layer}.${head}`));
}

// Hundreds of maps, so not before they are asked for.
function fillLayers() {
  const image = currentImage();
  const rows = part("layers").open ? listLayers(image) : [];
  const label = (textContent) => make("span", { textContent });
  const head = rows.length > 0 ? ["", ...rows[0].keys()].map(label) : [];
  const cells = rows.flatMap((row, layer) => [label(layer), ...row.map((which) => makeChoice(image, which, ""))]);
  part("grid").style.gridTemplateColumns = `auto repeat(${headsPerLayer(image)}, minmax(1.8rem, 1fr))`;
  part("grid").replaceChildren(...head, ...cells);
}

function listFacts(image) {
  const { kind, shares } = sharesOf(image);
  const facts = shares.map(({ term, value }) => [fullName(kind + term), percent(value)]);
  const others = [...cosines, "attention_mass_patches", "patch_share"].filter(hasNumber);
  return [...facts, ...others.map((name) => [fullName(name), tell(numberOf(image, name))])];
}

function listOthers(image) {
  const others = data.galleries.flatMap((gallery, index) => {
    const at = gallery.images.findIndex(({ id }) => id === image.id);
    if (gallery === state.gallery || at < 0) return [];
    return [make("button", { type: "button", textContent: gallery.label, onclick: () => openImage(index, at) })];
  });
  return others.length > 0 ? others : ["It is in no other model’s gallery."];
}

function showMap(which) {
  const image = currentImage();
  if (!isSameView(which, view.which)) view.patch = null;
  view.which = which;
  const map = openMap(image, which);
  const seen = viewOf(image, which);
  part("map").value = which;
  for (const place of ["stage", "photo"]) {
    part(place).style.aspectRatio = seen.size.join(" / ");
    part(place).replaceChildren(makeImage(seen));
  }
  part("stage").append(makeOverlay(map, part("mix").value));
  for (const button of view.dialog.querySelectorAll(".choice")) button.setAttribute("aria-pressed", button.value === which);
  part("unit").textContent = [image.scores?.[which], map.unit, map.told].filter(Boolean).join("; ");
  paint({ ...map, bytes: Uint8Array.from(range(256)), rows: 1, across: 256 }, part("scale"));
  part("low").textContent = map.tell(map.signed ? -map.largest : 0);
  part("high").textContent = map.tell(map.largest);
  showPatch(view.patch);
}

// Whether two maps have the same patches of the same image.
function isSameView(which, other) {
  const [one, two] = [which, other].map((name) => viewOf(currentImage(), name));
  return one.thumbnail === two.thumbnail && String(one.grid) === String(two.grid);
}

function showPatch(patch) {
  view.patch = patch;
  part("stage").querySelector(".cursor")?.remove();
  part("token").classList.toggle("hint", patch === null);
  if (patch === null) {
    part("token").textContent = "Point at a patch, or move over the map with the arrow keys.";
    return;
  }
  const image = currentImage();
  const [rows, across] = currentGrid();
  const row = Math.floor(patch / across);
  const column = patch % across;
  const cursor = make("span", { className: "cursor" });
  Object.assign(cursor.style, {
    left: `${(100 * column) / across}%`,
    top: `${(100 * row) / rows}%`,
    width: `${100 / across}%`,
    height: `${100 / rows}%`,
  });
  part("stage").append(cursor);
  const names = Object.keys(image.maps);
  const shown = names.includes(view.which) ? names : [view.which, ...names];
  const told = shown.filter((which) => isSameView(which, view.which)).map((which) => {
    const map = openMap(image, which);
    return `${map.name} ${map.tell(map.valueAt(patch))}`;
  });
  part("token").textContent = `Patch in row ${row + 1}, column ${column + 1}: ${told.join("; ")}.`;
}

const stemOf = ({ name }) => name.replace(/\.[^.]*$/, "").slice(0, 40);

// The shown map, alone or over its image as it is on the page.
async function saveMap(over) {
  const image = viewOf(currentImage(), view.which);
  const map = openMap(image, view.which);
  const [width, height] = image.size.map((side) => pngScale * side);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  if (over) {
    const photo = makeImage(image);
    await photo.decode();
    context.drawImage(photo, 0, 0, width, height);
    context.globalAlpha = part("mix").value / 100;
  }
  context.imageSmoothingEnabled = false;
  context.drawImage(paint(map), 0, 0, width, height);
  const words = [stemOf(image), map.name, over ? "overlay" : "", state.gallery.label];
  save(`${nameFile(...words)}.png`, await canvas.convertToBlob());
}

const gridCell = 64; // least width of a map in the file, in pixels

// The attention of each head in each layer as one file.
async function saveGrid() {
  const image = currentImage();
  const maps = listLayers(image).map((row) => row.map((which) => openMap(image, which)));
  const [{ across, rows: down }] = maps[0];
  const side = Math.ceil(gridCell / across);
  const [cell, edge, gap] = [{ width: side * across, height: side * down }, 44, 6];
  const top = edge + 60;
  const told = [`${image.name} · ${state.gallery.label}`, `${image.layers.title} of each head (across) in each layer (down); each map has its own scale`];
  const canvas = new OffscreenCanvas(1, top + maps.length * (cell.height + gap));
  const context = canvas.getContext("2d");
  const font = (context.font = "16px sans-serif");
  const words = Math.max(...told.map((text) => context.measureText(text).width));
  canvas.width = Math.max(edge + maps[0].length * (cell.width + gap), Math.ceil(words) + 2 * gap);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  Object.assign(context, { font, fillStyle: "#000", textBaseline: "middle", imageSmoothingEnabled: false });
  told.forEach((text, line) => context.fillText(text, gap, 18 + 26 * line));
  context.textAlign = "center";
  maps.forEach((row, layer) => {
    const y = top + layer * (cell.height + gap);
    context.fillText(layer, edge / 2, y + cell.height / 2);
    row.forEach((map, head) => {
      const x = edge + head * (cell.width + gap);
      if (layer === 0) context.fillText(head, x + cell.width / 2, top - 18);
      context.drawImage(paint(map), x, y, cell.width, cell.height);
    });
  });
  save(`${nameFile(stemOf(image), "heads by layer", state.gallery.label)}.png`, await canvas.convertToBlob());
}

// The patch in a row and a column, or the next inside the map.
function patchAt(row, column) {
  const [rows, across] = currentGrid();
  const inside = (place, count) => Math.min(count - 1, Math.max(0, Math.floor(place)));
  return inside(row, rows) * across + inside(column, across);
}

function pointAt({ clientX, clientY }) {
  const [rows, across] = currentGrid();
  const { left, top, width, height } = part("stage").getBoundingClientRect();
  showPatch(patchAt(((clientY - top) / height) * rows, ((clientX - left) / width) * across));
}

function movePatch(event) {
  const [rows, across] = currentGrid();
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  if (!(event.key in steps)) return;
  event.preventDefault();
  event.stopPropagation();
  const [down, right] = steps[event.key];
  const here = view.patch;
  showPatch(here === null ? patchAt(rows / 2, across / 2) : patchAt(Math.floor(here / across) + down, (here % across) + right));
}

function step(by) {
  view.place = (view.place + by + state.shown.length) % state.shown.length;
  showImage();
}

for (const name of ["pointermove", "pointerdown"]) part("stage").addEventListener(name, pointAt);
part("stage").addEventListener("keydown", movePatch);
part("map").addEventListener("change", () => showMap(part("map").value));
part("mix").addEventListener("input", () => {
  part("stage").querySelector("canvas").style.opacity = `${part("mix").value}%`;
});
part("mix").closest("p").after(makeButtons("the shown map", { "Map as PNG": () => saveMap(false), "Overlay as PNG": () => saveMap(true) }));
part("grid").parentElement.before(makeButtons("attention of each head in each layer", { "Grid as PNG": saveGrid }));
part("layers").addEventListener("toggle", () => view.dialog.open && fillLayers());
part("print").addEventListener("click", () => window.print());
part("previous").addEventListener("click", () => step(-1));
part("next").addEventListener("click", () => step(1));
part("close").addEventListener("click", () => view.dialog.close());
view.dialog.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select");
  if (typing || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  event.preventDefault();
  step(event.key === "ArrowLeft" ? -1 : 1);
});
view.dialog.addEventListener("click", (event) => {
  if (event.target === view.dialog) view.dialog.close();
});
view.dialog.addEventListener("close", () => focusCard(view.place));
