// The gallery: images sorted and filtered by any of their numbers.

const termNames = { patches: "patches", registers: "registers", cls: "[CLS] itself", distillation: "distillation", skip: "skip", bias: "bias" };
const shareKinds = ["centred_share_", "share_"];
const cosines = ["centred_cosine_residual_patches", "cosine_residual_patches"];
const control = (name) => document.getElementById(`gallery-${name}`);
const cards = control("cards");
const state = { gallery: null, paths: [], shown: [], buttons: [] };

const hasNumber = (name) => state.gallery.columns.includes(name);

function numberOf(image, name) {
  return image.numbers[state.gallery.columns.indexOf(name)] ?? null;
}

function sharesOf(image) {
  const kind = shareKinds.find((prefix) => hasNumber(`${prefix}patches`));
  if (kind === undefined) return { kind: null, shares: [] };
  const shares = Object.keys(termNames).map((term) => ({ term, value: numberOf(image, kind + term) }));
  return { kind, shares: shares.filter(({ value }) => value !== null) };
}

function makeShares(shares) {
  const whole = shares.reduce((sum, { value }) => sum + Math.abs(value), 0) || 1;
  const parts = shares.map(({ term, value }) => {
    const part = make("span", { className: value < 0 ? "negative" : "" });
    part.style.width = `${(100 * Math.abs(value)) / whole}%`;
    part.style.background = `var(--${term})`;
    return part;
  });
  return make("span", { className: "shares", "aria-hidden": true }, ...parts);
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
  if (which !== null) tile.append(makeOverlay(openMap(image, which), control("mix").value));
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

function offerMaps({ images, side_by_side: common }) {
  const others = images.flatMap(({ maps }) => Object.entries(maps).slice(1).map(([name, { title }]) => [name, title]));
  const titles = new Map(common ? [["", common]] : others);
  replaceOptions(control("map"), Array.from(titles, ([name, title]) => new Option(title, name)), undefined, "attention");
  control("map").disabled = titles.size < 2;
}

const isEmpty = (index) => state.buttons[index].childElementCount === 0;

function fillCard(index) {
  const [button, image] = [state.buttons[index], state.gallery.images[index]];
  comingNear.unobserve(button);
  const found = sharesOf(image);
  const maps = chooseMaps(image).map((name) => makeTile(image, name, nameMap(image, name)));
  const tiles = make("span", { className: "tiles" }, makeTile(image, null, "image"), ...maps);
  const name = make("span", { className: "card-name", textContent: state.paths[index] });
  const told = make("span", { className: "card-line" }, make("span", { textContent: tellShares(found) }));
  const cosine = cosines.find(hasNumber);
  const lines = found.kind === null ? [] : [makeShares(found.shares), told];
  button.replaceChildren(tiles, name, ...lines, ...(cosine === undefined ? [] : [makeLine(image, cosine)]));
  tellSorted(index);
}

function makeLine(image, name) {
  const words = [fullName(name), tell(numberOf(image, name))].map((textContent) => make("span", { textContent }));
  const line = make("span", { className: "card-line" }, ...words);
  line.dataset.number = name;
  return line;
}

function tellSorted(index) {
  const button = state.buttons[index];
  button.querySelector(".sorted")?.remove();
  const name = control("sort").value;
  if (!name || button.querySelector(`[data-number="${name}"]`)) return;
  const line = makeLine(state.gallery.images[index], name);
  line.classList.add("sorted");
  button.append(line);
}

const comingNear = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) fillCard(state.buttons.indexOf(target));
  },
  { rootMargin: "600px" },
);

function fillAll() {
  state.shown.filter(isEmpty).forEach(fillCard);
}

// Images away from the screen are filled when the browser is idle, so that the page prints completely.
function fillRest() {
  const index = state.shown.find(isEmpty);
  if (index === undefined) return;
  fillCard(index);
  whenIdle(fillRest);
}

function makeCard(image, index) {
  const onclick = () => openView(state.shown.indexOf(index));
  const button = make("button", { type: "button", className: "card", onclick });
  make("li", {}, button);
  return button;
}

function chooseGallery() {
  comingNear.disconnect();
  const gallery = data.galleries[control("model").value];
  const paths = gallery.images.map(({ path }) => path.slice(gallery.root.length));
  Object.assign(state, { gallery, paths, buttons: gallery.images.map(makeCard) });
  control("note").textContent = `${gallery.label}: ${gallery.note}`;
  offerMaps(gallery);
  offerNumbers(control("sort"), gallery.columns, undefined, gallery.sort);
  offerFilters(control, paths, gallery.columns);
  arrange();
  whenIdle(fillRest);
}

function arrange() {
  const { images } = state.gallery;
  const [sort, order] = [control("sort").value, control("order").value];
  state.shown = chooseImages(control, state.paths, (index, name) => numberOf(images[index], name));
  cards.replaceChildren(...state.shown.map((index) => state.buttons[index].parentElement));
  state.shown.forEach((index, place) => {
    const button = state.buttons[index];
    button.tabIndex = place === 0 ? 0 : -1;
    const told = sort ? `, ${fullName(sort)} ${tell(numberOf(images[index], sort))}` : "";
    button.setAttribute("aria-label", `${state.paths[index]}${told}. Open.`);
    if (isEmpty(index)) comingNear.observe(button);
    else tellSorted(index);
  });
  const way = order > 0 ? "lowest" : "highest";
  const sorted = sort ? `, ${way} “${fullName(sort)}” first` : "";
  control("status").textContent = `${state.shown.length} of ${images.length} images${sorted}.`;
}

function walk(event) {
  const here = state.shown.indexOf(state.buttons.indexOf(event.target));
  if (here < 0) return;
  const across = Math.max(1, getComputedStyle(cards).gridTemplateColumns.split(" ").length);
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -here, End: state.shown.length - 1 - here };
  if (!(event.key in steps)) return;
  event.preventDefault();
  focusCard(Math.min(state.shown.length - 1, Math.max(0, here + steps[event.key])));
}

function focusCard(place) {
  for (const button of state.buttons) button.tabIndex = -1;
  const button = state.buttons[state.shown[place]];
  button.tabIndex = 0;
  button.focus();
}

function clearFilters(event) {
  event.preventDefault();
  for (const name of ["folder", "filter", "from", "to", "name"]) control(name).value = "";
  control("sort").value = state.gallery.sort;
  control("order").value = "1";
  arrange();
}

if (data.galleries.length > 0) {
  control("map").addEventListener("input", () => range(state.buttons.length).filter((index) => !isEmpty(index)).forEach(fillCard));
  control("mix").addEventListener("input", () => {
    for (const canvas of cards.querySelectorAll("canvas")) canvas.style.opacity = `${control("mix").value}%`;
  });
  control("controls").addEventListener("reset", clearFilters);
  cards.addEventListener("keydown", walk);
  startForm(control, data.galleries, chooseGallery, arrange);
}
