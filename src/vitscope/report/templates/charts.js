// Charts and colours of the page. It opens with drawings that are still; a chart that answers to the
// pointer takes the place of each.

const charts = JSON.parse(document.getElementById("charts").textContent);
const options = {
  ast: true, // expressions are interpreted: the page's policy forbids code made from text
  renderer: "svg",
  actions: false,
  defaultStyle: false,
  // Beside long labels a legend reaches over them, not beyond the chart.
  config: { legend: { layout: { top: { anchor: { signal: "width < 350 ? 'end' : 'start'" }, bounds: "full" } } } },
  tooltip: { disableDefaultStyle: true },
};
const views = new Map();

function draw(element) {
  if (!views.has(element)) {
    const drawn = window.vegaEmbed(element, charts[element.dataset.chart], options);
    views.set(element, drawn.then(({ view }) => view));
    drawn.then(() => element.classList.add("drawn"));
  }
  return views.get(element);
}

// Charts to be drawn one at a time, so that the page answers in between: those near the screen first.
const waiting = new Set(document.querySelectorAll(".chart"));
const whenIdle = window.requestIdleCallback ?? ((then) => setTimeout(then, 50));

function isNear(element) {
  const { top, bottom } = element.getBoundingClientRect();
  return bottom > -400 && top < window.innerHeight + 400;
}

async function drawNext() {
  const all = [...waiting];
  const next = all.find(isNear) ?? all[0];
  if (next === undefined) {
    document.documentElement.dataset.drawn = "all";
    return;
  }
  waiting.delete(next);
  await draw(next);
  whenIdle(drawNext);
}

window.addEventListener("load", () => whenIdle(drawNext));

for (const choice of document.querySelectorAll("input[name=theme]")) {
  choice.addEventListener("change", () => {
    document.documentElement.dataset.theme = choice.value;
  });
}
