// The gallery: images sorted and filtered by any of their numbers.

const terms = ["patches", "registers", "cls", "distillation", "skip", "bias"];
const termNames = { patches: "patches", registers: "registers", cls: "[CLS] itself", distillation: "distillation", skip: "skip", bias: "bias" };
const shareKinds = ["centred_share_", "share_"];
const control = (name) => document.getElementById(`gallery-${name}`);
const cards = control("cards");
const state = { gallery: null, root: "", shown: [], elements: new Map() };

function numberOf(gallery, image, name) {
  return image.numbers[gallery.columns.indexOf(name)];
}

function sharesOf(gallery, image) {
  const kind = shareKinds.find((prefix) => gallery.columns.includes(`${prefix}patches`));
  if (kind === undefined) return { kind: null, shares: [] };
  const shares = terms
    .map((term) => ({ term, value: numberOf(gallery, image, kind + term) }))
    .filter(({ value }) => typeof value === "number");
  return { kind, shares };
}

function makeShares(shares) {
  const bar = make("span", { className: "shares" });
  bar.setAttribute("aria-hidden", "true");
  const whole = shares.reduce((sum, { value }) => sum + Math.abs(value), 0) || 1;
  for (const { term, value } of shares) {
    const part = make("span", { className: value < 0 ? "negative" : "" });
    part.style.width = `${(100 * Math.abs(value)) / whole}%`;
    part.style.background = `var(--${term})`;
    bar.append(part);
  }
  return bar;
}

const percent = (share) => `${Math.round(100 * share) || 0} %`.replace("-", "−");

// The largest first: a narrow card cuts the line.
function tellShares({ kind, shares }) {
  const sorted = [...shares].sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const told = sorted.map(({ term, value }) => `${termNames[term]} ${percent(value)}`).join(" · ");
  return kind === "share_" ? `raw: ${told}` : told;
}

function makeTile(image, which, name) {
  const view = viewOf(image, which);
  const tile = make("span", { className: "tile" }, makeImage(view));
  tile.style.aspectRatio = view.size.join(" / ");
  if (which !== null) {
    const canvas = make("canvas");
    canvas.style.opacity = `${control("mix").value}%`;
    paint(canvas, openMap(image, which));
    tile.append(canvas);
  }
  return make("span", {}, tile, make("span", { className: "tile-name", textContent: name }));
}

// Its title, and its score on the image if it was judged.
function nameMap(image, name) {
  return [image.maps[name].title, image.scores?.[name]].filter(Boolean).join(", ");
}

// A card has the first map and the one that was asked for, or all of them.
function chooseMaps(image) {
  if (state.gallery.side_by_side) return Object.keys(image.maps);
  const [first, second] = Object.keys(image.maps);
  const asked = control("map").value;
  const other = asked in image.maps && asked !== first ? asked : second;
  return other === undefined ? [first] : [first, other];
}

function offerMaps(gallery) {
  const titles = new Map();
  for (const { maps } of gallery.images) {
    for (const [name, { title }] of Object.entries(maps).slice(1)) titles.set(name, title);
  }
  if (gallery.side_by_side) titles.clear();
  if (gallery.side_by_side) titles.set("", gallery.side_by_side);
  const kept = control("map").value;
  control("map").replaceChildren(...Array.from(titles, ([name, title]) => new Option(title, name)));
  const wanted = [kept, "attention"].find((name) => titles.has(name));
  if (wanted !== undefined) control("map").value = wanted;
  control("map").disabled = titles.size < 2;
}

function changeMaps() {
  for (const [index, element] of state.elements) {
    if (element.firstChild.childElementCount > 0) fillCard(element.firstChild, state.gallery, state.gallery.images[index]);
  }
}

function fillCard(button, gallery, image) {
  const found = sharesOf(gallery, image);
  const cosine = ["centred_cosine_residual_patches", "cosine_residual_patches"].find((name) => gallery.columns.includes(name));
  const tiles = make(
    "span",
    { className: "tiles" },
    makeTile(image, null, "image"),
    ...chooseMaps(image).map((name) => makeTile(image, name, nameMap(image, name))),
  );
  const told = make("span", { className: "card-line" }, make("span", { textContent: tellShares(found) }));
  const lines = found.kind === null ? [] : [makeShares(found.shares), told];
  if (cosine !== undefined) lines.push(makeLine(gallery, image, cosine));
  const name = make("span", { className: "card-name", textContent: withoutRoot(image.path) });
  button.replaceChildren(tiles, name, ...lines);
  tellSorted(button, gallery, image);
}

function makeLine(gallery, image, name) {
  const value = tell(numberOf(gallery, image, name));
  const line = make("span", { className: "card-line" }, make("span", { textContent: fullName(name) }), make("span", { textContent: value }));
  line.dataset.number = name;
  return line;
}

function tellSorted(button, gallery, image) {
  button.querySelector(".sorted")?.remove();
  const name = control("sort").value;
  if (!name || button.querySelector(`[data-number="${name}"]`)) return;
  const line = makeLine(gallery, image, name);
  line.classList.add("sorted");
  button.append(line);
}

const comingNear = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      comingNear.unobserve(target);
      fillCard(target, state.gallery, state.gallery.images[target.dataset.index]);
    }
  },
  { rootMargin: "600px" },
);

function fillAll() {
  for (const index of state.shown) {
    const button = state.elements.get(index).firstChild;
    if (button.childElementCount === 0) fillCard(button, state.gallery, state.gallery.images[index]);
  }
}

// Images away from the screen are filled when the browser is idle, so that the page prints completely.
function fillRest() {
  const { gallery } = state;
  const index = state.shown.find((at) => state.elements.get(at).firstChild.childElementCount === 0);
  if (index === undefined) return;
  const button = state.elements.get(index).firstChild;
  comingNear.unobserve(button);
  fillCard(button, gallery, gallery.images[index]);
  whenIdle(fillRest);
}

function makeCard(image, index) {
  const button = make("button", { type: "button", className: "card", tabIndex: -1 });
  button.dataset.index = index;
  button.addEventListener("click", () => openView(state.shown.indexOf(index)));
  return make("li", {}, button);
}

const withoutRoot = (path) => path.slice(state.root.length);

function chooseGallery(index) {
  comingNear.disconnect();
  state.gallery = data.galleries[index];
  state.elements = new Map(state.gallery.images.map((image, at) => [at, makeCard(image, at)]));
  control("note").textContent = `${state.gallery.label}: ${state.gallery.note}`;
  offerMaps(state.gallery);
  const kept = control("sort").value;
  offer(control("sort"), state.gallery.columns);
  control("sort").value = state.gallery.columns.includes(kept) ? kept : state.gallery.sort;
  const filtered = control("filter").value;
  offer(control("filter"), state.gallery.columns, "any number");
  control("filter").value = state.gallery.columns.includes(filtered) ? filtered : "";
  const paths = state.gallery.images.map(({ path }) => path);
  state.root = findRoot(paths);
  offerFolders(control("folder"), paths.map(withoutRoot));
  arrange();
  whenIdle(fillRest);
}

function arrange() {
  const { gallery } = state;
  const sort = control("sort").value;
  const order = Number(control("order").value);
  const keeps = readFilter(control);
  state.shown = gallery.images
    .map((image, index) => ({ image, index, value: numberOf(gallery, image, sort) ?? null }))
    .filter(({ image }) => keeps(withoutRoot(image.path), (name) => numberOf(gallery, image, name)))
    // Undefined numbers come last in either direction.
    .sort((a, b) => (a.value === null) - (b.value === null) || order * (a.value - b.value) || a.index - b.index)
    .map(({ index }) => index);
  cards.replaceChildren(...state.shown.map((index) => state.elements.get(index)));
  state.shown.forEach((index, place) => {
    const button = state.elements.get(index).firstChild;
    const image = gallery.images[index];
    button.tabIndex = place === 0 ? 0 : -1;
    const told = sort ? `, ${fullName(sort)} ${tell(numberOf(gallery, image, sort))}` : "";
    button.setAttribute("aria-label", `${withoutRoot(image.path)}${told}. Open.`);
    if (button.childElementCount === 0) comingNear.observe(button);
    else tellSorted(button, gallery, image);
  });
  const way = order > 0 ? "lowest" : "highest";
  const sorted = sort ? `, ${way} “${fullName(sort)}” first` : "";
  control("status").textContent = `${state.shown.length} of ${gallery.images.length} images${sorted}.`;
}

function walk(event) {
  const here = state.shown.indexOf(Number(event.target.dataset?.index));
  if (here < 0) return;
  const across = Math.max(1, getComputedStyle(cards).gridTemplateColumns.split(" ").length);
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -here, End: state.shown.length - 1 - here };
  if (!(event.key in steps)) return;
  event.preventDefault();
  focusCard(Math.min(state.shown.length - 1, Math.max(0, here + steps[event.key])));
}

function focusCard(place) {
  for (const { firstChild } of state.elements.values()) firstChild.tabIndex = -1;
  const button = state.elements.get(state.shown[place]).firstChild;
  button.tabIndex = 0;
  button.focus();
}

function mixCards() {
  const opacity = `${control("mix").value}%`;
  for (const canvas of cards.querySelectorAll("canvas")) canvas.style.opacity = opacity;
}

function startGallery() {
  if (data.galleries.length === 0) return;
  data.galleries.forEach(({ label }, index) => control("model").append(new Option(label, index)));
  control("model").addEventListener("change", () => chooseGallery(control("model").value));
  for (const name of ["sort", "order", "folder", "filter", "from", "to", "name"]) control(name).addEventListener("input", arrange);
  control("map").addEventListener("change", changeMaps);
  control("mix").addEventListener("input", mixCards);
  control("controls").addEventListener("submit", (event) => event.preventDefault());
  control("controls").addEventListener("reset", (event) => {
    event.preventDefault();
    for (const name of ["folder", "filter", "from", "to", "name"]) control(name).value = "";
    control("sort").value = state.gallery.sort;
    control("order").value = "1";
    arrange();
  });
  cards.addEventListener("keydown", walk);
  chooseGallery(0);
}
startGallery();
