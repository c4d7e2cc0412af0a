// The page of `vitscope serve`: an image is sent, and what comes back is shown in the large view.

const field = (name) => document.getElementById(`serve-${name}`);
const form = document.getElementById("serve");
let file = null;
let wish = null; // what to ask for next
let isAsking = false;

function offerLayers() {
  const layers = field("model").selectedOptions[0].dataset.layers.split(" ");
  const last = layers.at(-1);
  field("layer").replaceChildren(...layers.map((layer) => new Option(layer === last ? `${layer}, the last` : layer, layer)));
  field("layer").value = last;
}

function say(text, failed = false) {
  field("status").textContent = text;
  field("status").classList.toggle("failed", failed);
  view.dialog.classList.toggle("old", failed || isAsking);
}

// One request at a time; of what was chosen meanwhile, the last is asked for.
async function ask() {
  if (file === null) return;
  wish = { file, model: field("model").value, layer: field("layer").value };
  if (isAsking) return;
  isAsking = true;
  let now, answer;
  while (wish !== null) {
    [now, wish] = [wish, null];
    say(`Explaining ${now.file.name} …`);
    answer = await send(now).catch((error) => ({ error: `${error.message}: is vitscope still running?` }));
  }
  isAsking = false;
  if (answer.error === undefined) show(answer, now);
  else say(answer.error, true);
}

async function send({ file, model, layer }) {
  if (file.size > form.dataset.mostBytes) {
    return { error: `${file.name} has ${Math.ceil(file.size / 2 ** 20)} MiB: expected ${form.dataset.mostBytes / 2 ** 20} or less` };
  }
  const response = await fetch(`/explain?${new URLSearchParams({ model, layer })}`, { method: "POST", body: file });
  return response.ok ? response.json() : { error: await response.text() };
}

function show(answer, { file, model, layer }) {
  for (const column of answer.columns) columns.set(column.name, column);
  Object.assign(data, { thumbnails: answer.thumbnails, galleries: answer.galleries });
  [state.gallery] = answer.galleries;
  state.shown = [0];
  Object.assign(currentImage(), { name: file.name, path: file.name });
  view.place = 0;
  view.dialog.className = answer.mood;
  view.dialog.open = true; // not modal, and the focus stays where it is
  showImage();
  part("path").textContent = `${model}, layer ${layer}`;
  say(`${file.name} is explained below.`);
}

function take(files) {
  if (files.length === 0) return;
  [file] = files;
  ask();
}

field("model").addEventListener("change", () => {
  offerLayers();
  ask();
});
field("layer").addEventListener("change", ask);
field("image").addEventListener("change", () => take(field("image").files));
form.addEventListener("submit", (event) => event.preventDefault());
for (const [name, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  window.addEventListener(name, (event) => {
    event.preventDefault(); // else the browser would open the file
    document.body.classList.toggle("dropping", isOver);
  });
}
window.addEventListener("drop", ({ dataTransfer }) => take(dataTransfer.files));
offerLayers();
