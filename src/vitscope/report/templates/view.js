// The large view of one picture: any of its maps, each head, and what each patch holds.

const part = (name) => document.getElementById(`view-${name}`);
const view = { dialog: document.getElementById("view"), place: 0, which: "attention", patch: null };

function currentPicture() {
  return state.gallery.pictures[state.shown[view.place]];
}

function openView(place) {
  view.place = place;
  showPicture();
  if (!view.dialog.open) view.dialog.showModal();
}

function showPicture() {
  const { gallery } = state;
  const picture = currentPicture();
  part("name").textContent = picture.name;
  part("path").textContent = `${picture.path} · ${view.place + 1} of ${state.shown.length} · ${gallery.label}`;
  part("told").textContent = picture.told;
  part("why").textContent = picture.why;
  part("shares").replaceChildren(makeShares(sharesOf(gallery, picture).shares));
  const which = part("map");
  which.replaceChildren(
    ...["attention", "norm", "share"].map((kind) => new Option(kinds[kind].name, kind)),
    ...Array.from({ length: countHeads(picture) }, (_, head) => new Option(`attention of head ${head}`, head)),
  );
  if (!(view.which in kinds) && Number(view.which) >= countHeads(picture)) view.which = "attention";
  part("heads").replaceChildren(...Array.from({ length: countHeads(picture) }, (_, head) => makeHead(picture, head)));
  part("facts").replaceChildren(...tellFacts(gallery, picture));
  part("numbers").replaceChildren(
    ...gallery.columns.map((name) =>
      make("tr", {}, make("th", { scope: "row", textContent: fullName(name) }), make("td", { textContent: tell(numberOf(gallery, picture, name)) })),
    ),
  );
  part("others").replaceChildren(...listOthers(picture));
  view.patch = null;
  showMap(view.which);
}

function makeHead(picture, head) {
  const canvas = make("canvas");
  canvas.style.aspectRatio = `${picture.size[0]} / ${picture.size[1]}`;
  paint(canvas, openMap(picture, head));
  const button = make("button", { type: "button", className: "head" }, canvas, make("span", { textContent: head }));
  button.setAttribute("aria-label", `Attention of head ${head}`);
  button.dataset.head = head;
  button.addEventListener("click", () => showMap(String(head)));
  return button;
}

function tellFacts(gallery, picture) {
  const { kind, shares } = sharesOf(gallery, picture);
  const facts = shares.map(({ term, value }) => [fullName(kind + term), percent(value)]);
  for (const name of ["centred_cosine_residual_patches", "cosine_residual_patches", "attention_mass_patches", "patch_share"]) {
    if (gallery.columns.includes(name)) facts.push([fullName(name), tell(numberOf(gallery, picture, name))]);
  }
  return facts.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value })));
}

function listOthers(picture) {
  const others = [];
  data.galleries.forEach((gallery, index) => {
    const at = gallery.pictures.findIndex(({ id }) => id === picture.id);
    if (gallery === state.gallery || at < 0) return;
    const button = make("button", { type: "button", textContent: gallery.label });
    button.addEventListener("click", () => {
      control("model").value = index;
      for (const name of ["filter", "name"]) control(name).value = "";
      chooseGallery(index);
      openView(state.shown.indexOf(at));
    });
    others.push(button);
  });
  return others.length > 0 ? others : ["It is in no other model’s gallery."];
}

function showMap(which) {
  view.which = which;
  const picture = currentPicture();
  const map = openMap(picture, which);
  part("map").value = which;
  const canvas = make("canvas");
  canvas.style.opacity = `${part("mix").value}%`;
  paint(canvas, map);
  part("stage").style.aspectRatio = `${picture.size[0]} / ${picture.size[1]}`;
  part("stage").replaceChildren(makeImage(picture), canvas);
  for (const button of part("heads").children) button.setAttribute("aria-pressed", button.dataset.head === which);
  const steps = Uint8Array.from({ length: 256 }, (_, level) => level);
  paint(part("scale"), { bytes: steps, rows: 1, columns: 256, palette: map.palette });
  part("low").textContent = map.tell(map.signed ? -map.largest : 0);
  part("high").textContent = map.tell(map.largest);
  showPatch(view.patch);
}

function showPatch(patch) {
  view.patch = patch;
  part("stage").querySelector(".cursor")?.remove();
  if (patch === null) {
    part("token").textContent = "Point at a patch, or move over the map with the arrow keys.";
    return;
  }
  const picture = currentPicture();
  const [rows, across] = picture.grid;
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
  const shown = view.which in kinds ? ["attention", "norm", "share"] : [view.which, "attention", "norm", "share"];
  const told = shown.map((which) => {
    const map = openMap(picture, which);
    return `${map.name} ${map.tell(map.valueAt(patch))}`;
  });
  part("token").textContent = `Patch in row ${row + 1}, column ${column + 1}: ${told.join("; ")}.`;
}

function patchUnder(event) {
  const [rows, across] = currentPicture().grid;
  const { left, top, width, height } = part("stage").getBoundingClientRect();
  const column = Math.min(across - 1, Math.max(0, Math.floor(((event.clientX - left) / width) * across)));
  const row = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - top) / height) * rows)));
  return row * across + column;
}

function movePatch(event) {
  const [rows, across] = currentPicture().grid;
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  if (!(event.key in steps)) return;
  event.preventDefault();
  event.stopPropagation();
  const [down, right] = view.patch === null ? [0, 0] : steps[event.key];
  const here = view.patch ?? Math.floor(rows / 2) * across + Math.floor(across / 2);
  const row = Math.min(rows - 1, Math.max(0, Math.floor(here / across) + down));
  const column = Math.min(across - 1, Math.max(0, (here % across) + right));
  showPatch(row * across + column);
}

function step(by) {
  view.place = (view.place + by + state.shown.length) % state.shown.length;
  showPicture();
}

function startView() {
  part("stage").addEventListener("pointermove", (event) => showPatch(patchUnder(event)));
  part("stage").addEventListener("pointerdown", (event) => showPatch(patchUnder(event)));
  part("stage").addEventListener("keydown", movePatch);
  part("map").addEventListener("change", () => showMap(part("map").value));
  part("mix").addEventListener("input", () => {
    part("stage").querySelector("canvas").style.opacity = `${part("mix").value}%`;
  });
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
}
startView();
